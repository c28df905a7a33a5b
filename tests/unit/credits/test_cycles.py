"""Billing cycles follow the calendar, in UTC, without gap or overlap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.credits.cycles import Cycle, cycle_bounds, cycle_start

FIRST = datetime(2000, 1, 1, tzinfo=UTC)

moments = st.integers(0, 100 * 365 * 86_400 * 10**6).map(
    lambda microseconds: FIRST + timedelta(microseconds=microseconds)
)
numbers = st.integers(0, 1200)


class London(tzinfo):
    """A zone with summer time, in winter."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "GMT"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "starts"),
    [
        ("2026-01-31", ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
        ("2028-01-31", ["2028-01-31", "2028-02-29", "2028-03-31"]),  # a leap year
        ("2026-01-30", ["2026-01-30", "2026-02-28", "2026-03-30"]),
        ("2027-12-29", ["2027-12-29", "2028-01-29", "2028-02-29", "2028-03-29"]),
        ("2025-12-31T23:59:59.999999", ["2025-12-31T23:59:59.999999", "2026-01-31T23:59:59.999999"]),
        ("2100-01-29", ["2100-01-29", "2100-02-28", "2100-03-29"]),  # 2100 is no leap year
        ("2026-11-15T12:00", ["2026-11-15T12:00", "2026-12-15T12:00", "2027-01-15T12:00"]),
    ],
)
def test_cycles_begin_on_the_day_of_the_anchor_or_the_last_day_of_a_shorter_month(
    anchor: str, starts: list[str]
) -> None:
    """A short month pulls the day down once; the next month has the anchor's day again."""
    assert [utc(start) for start in starts] == [cycle_start(utc(anchor), number) for number in range(len(starts))]


@pytest.mark.parametrize(
    ("now", "starts_at", "ends_at", "number"),
    [
        ("2024-02-29T10:00", "2024-02-29T10:00", "2024-03-29T10:00", 0),  # the anchor itself
        ("2024-03-29T09:59:59.999999", "2024-02-29T10:00", "2024-03-29T10:00", 0),
        ("2024-03-29T10:00", "2024-03-29T10:00", "2024-04-29T10:00", 1),  # the very instant of the turn
        ("2025-02-28T09:59", "2025-01-29T10:00", "2025-02-28T10:00", 11),
        ("2025-02-28T10:00", "2025-02-28T10:00", "2025-03-29T10:00", 12),
        ("2025-12-31T23:59", "2025-12-29T10:00", "2026-01-29T10:00", 22),
    ],
)
def test_the_cycle_of_an_instant(now: str, starts_at: str, ends_at: str, number: int) -> None:
    """A cycle holds its first instant and not its last: that one belongs to the next."""
    assert Cycle(utc(starts_at), utc(ends_at), number) == cycle_bounds(utc("2024-02-29T10:00"), utc(now))


@given(anchor=moments, number=numbers)
def test_cycles_are_contiguous_and_last_a_month(anchor: datetime, number: int) -> None:
    """Each cycle ends when the next begins, and none is shorter than 28 days or longer than 31."""
    start = cycle_start(anchor, number)
    cycle = cycle_bounds(anchor, start)
    assert Cycle(start, cycle_start(anchor, number + 1), number) == cycle
    assert timedelta(days=28) <= cycle.ends_at - cycle.starts_at <= timedelta(days=31)


@given(anchor=moments, now=moments)
def test_every_instant_lies_in_exactly_one_cycle(anchor: datetime, now: datetime) -> None:
    """The cycle found holds the instant; its neighbours don't."""
    anchor, now = sorted((anchor, now))
    cycle = cycle_bounds(anchor, now)
    assert cycle.starts_at <= now < cycle.ends_at
    assert cycle.number >= 0
    assert cycle.starts_at == cycle_start(anchor, cycle.number)


@given(anchor=moments, number=numbers)
def test_the_last_instant_belongs_to_the_cycle(anchor: datetime, number: int) -> None:
    """One microsecond before the turn is still the old cycle."""
    before_turn = cycle_start(anchor, number + 1) - timedelta(microseconds=1)
    assert number == cycle_bounds(anchor, before_turn).number


@pytest.mark.parametrize(
    ("anchor", "now", "reason"),
    [
        (datetime(2026, 1, 1), utc("2026-02-01"), "anchor 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001 (that is the point)
        (utc("2026-01-01"), datetime(2026, 2, 1), "now 2026-02-01T00:00:00 has no time zone"),  # noqa: DTZ001 (that is the point)
        (utc("2026-01-01").astimezone(timezone(timedelta(hours=2))), utc("2026-02-01"), "is not in UTC"),
        (utc("2026-01-01"), utc("2026-02-01").replace(tzinfo=London()), "is not in UTC"),
        (utc("2026-02-01"), utc("2026-01-31T23:59:59"), "before the anchor"),
    ],
)
def test_times_that_are_not_utc_or_before_the_anchor_are_refused(anchor: datetime, now: datetime, reason: str) -> None:
    """London in winter has UTC's offset, but not its calendar: only UTC itself is taken."""
    with pytest.raises(ValueError, match=reason):
        cycle_bounds(anchor, now)


@pytest.mark.parametrize(("number", "reason"), [(-1, "the first one is 0"), (12, "after the year 9999")])
def test_cycles_before_the_first_and_after_the_calendar_are_refused(number: int, reason: str) -> None:
    """The calendar ends with the year 9999; nothing wraps around."""
    with pytest.raises(ValueError, match=reason):
        cycle_start(utc("9999-01-01"), number)
