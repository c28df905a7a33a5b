"""The default engines: real signal processing on the CPU, no model download."""
