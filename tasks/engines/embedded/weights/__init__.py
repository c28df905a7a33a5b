"""Trained numbers that come with the package, and how to make them again."""
