"""Instants from outside, as PostgreSQL can hold them and hand them back."""

from __future__ import annotations

from datetime import UTC, datetime

#: Times beyond these are slips of the finger. At the ends of its calendar Python's become `infinity` in PostgreSQL.
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def problem_of_instant(given: object) -> str | None:
    """What is wrong with a point in time that somebody gave, or None."""
    if not isinstance(given, datetime):
        return "must be a date and time with its zone"
    if given.utcoffset() is None:
        return "must carry a time zone, as 2026-12-01T10:00:00Z or …+01:00"
    if not EARLIEST <= given <= LATEST:
        return f"must be between the years {EARLIEST.year} and {LATEST.year}"
    return None
