"""Embedded PostgreSQL and Valkey as child processes, for demo, development and tests."""
