"""Telling others of events over HTTP: what is said, signed by whom, and to whom it may be said at all."""
