"""Engines behind HTTP: providers that may be slow, busy, away or wrong, and never make anything twice for us."""
