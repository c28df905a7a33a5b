"""Figures and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.web.dashboard import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.0042, "4 ms"),
        (1.25, "1.2 s"),
        (59, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86_400, "1 d"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_span_is_told_in_its_two_largest_units(seconds: float | None, said: str) -> None:
    """Nobody has to divide by 3,600."""
    assert said == words.span(seconds)


def test_times_are_told_in_utc_and_from_now() -> None:
    """A time of another zone is the same moment."""
    time = datetime(2026, 11, 25, 13, tzinfo=UTC)
    assert "2026-11-25 13:00:00" == words.moment(time)
    assert "5 min ago" == words.ago(time, time + timedelta(minutes=5))
    assert "in 2 h" == words.ago(time, time - timedelta(hours=2))


def test_numbers_have_separators_and_shares_have_a_sign() -> None:
    """And nothing is a dash, never a zero."""
    assert ("1,234,567", "–", "–", "12.5 %", "100 %") == (
        words.number(1_234_567),
        words.number(None),
        words.percent(1, 0),
        words.percent(1, 8),
        words.percent(8, 8),
    )
