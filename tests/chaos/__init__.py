"""Proof by harm: real processes under load, a seeded adversary, and questions afterwards. `python -m tests.chaos`.

Nothing here is collected by `make test` but the tests of its own judge, in tests/unit/test_chaos.py.
"""
