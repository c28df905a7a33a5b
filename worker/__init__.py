"""How jobs are metered and run. Knows nothing of music."""
