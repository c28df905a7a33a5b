"""Tests of local models: they need the extra `torch`, and say so where it is missing."""
