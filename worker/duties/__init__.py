"""The scheduler's periodic duties, one a file."""
