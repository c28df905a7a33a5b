"""Billing cycles: months by the calendar from an anchor, in UTC.

The day of the anchor decides: an anchor on the 31st begins its cycles on the last day of shorter months and
comes back to the 31st. Cycle 0 begins at the anchor; each cycle ends at the instant at which the next begins.
"""

from __future__ import annotations

import calendar
from datetime import MAXYEAR, UTC, datetime
from typing import NamedTuple

_MONTHS = 12


class Cycle(NamedTuple):
    """One billing cycle: from `starts_at` (included) until `ends_at` (not included)."""

    starts_at: datetime
    ends_at: datetime
    number: int


def cycle_bounds(anchor: datetime, now: datetime) -> Cycle:
    """The cycle that `now` falls into.

    Raises ValueError for times without a zone or outside UTC, and for a `now` before the anchor.
    """
    _require_utc("anchor", anchor)
    _require_utc("now", now)
    if now < anchor:
        raise ValueError(f"now {now.isoformat()} is before the anchor {anchor.isoformat()}: no cycle has begun")
    number = (now.year - anchor.year) * _MONTHS + now.month - anchor.month
    if now < cycle_start(anchor, number):
        number -= 1
    return Cycle(cycle_start(anchor, number), cycle_start(anchor, number + 1), number)


def cycle_start(anchor: datetime, number: int) -> datetime:
    """The instant at which cycle `number` (0, 1, 2 …) begins: that many months after the anchor.

    Raises ValueError for an anchor outside UTC, a negative number, and a start after the year 9999.
    """
    _require_utc("anchor", anchor)
    if number < 0:
        raise ValueError(f"cycle {number}: the first one is 0")
    year, month0 = divmod(anchor.year * _MONTHS + anchor.month - 1 + number, _MONTHS)
    if year > MAXYEAR:
        raise ValueError(f"cycle {number} begins after the year {MAXYEAR}")
    days = calendar.monthrange(year, month0 + 1)[1]
    # Always counted from the anchor, never from the cycle before: a short February must not pull the day down.
    return anchor.replace(year=year, month=month0 + 1, day=min(anchor.day, days))


def _require_utc(name: str, moment: datetime) -> None:
    """A local zone would move the turn of a cycle by an hour twice a year."""
    if moment.tzinfo is None:
        raise ValueError(f"{name} {moment.isoformat()} has no time zone: give it in UTC")
    if moment.tzinfo != UTC:
        raise ValueError(f"{name} {moment.isoformat()} is not in UTC: convert it with astimezone(UTC)")
