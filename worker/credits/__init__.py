"""The pure core: lots, allocation, cycles, prices, states and policies. No I/O, no clock, no randomness."""
