"""What is likely to expire unused at the cycle's end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.unit.credits.strategies import NOON
from worker.credits.forecast import forecast_of
from worker.credits.lots import Lot, LotSource

DAY = timedelta(days=1)
END = NOON + 10 * DAY


def a_lot(available: int, expires_in_days: int | None, **more: object) -> Lot:
    """A lot of that age."""
    ends = None if expires_in_days is None else NOON + expires_in_days * DAY
    return Lot(1, LotSource.SUBSCRIPTION, available, available, ends, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lots", "spent", "days", "expected"),
    [
        ([a_lot(100, 10)], 0, 30, (0, 100)),  # nobody spends: all of it
        ([a_lot(100, 10)], 90, 30, (30, 70)),  # 3 a day for ten days
        ([a_lot(100, 10)], 600, 30, (200, 0)),  # never below zero
        ([a_lot(100, 10), a_lot(50, 3)], 90, 30, (30, 120)),  # what ends sooner counts too
        ([a_lot(100, 10), a_lot(50, 11), a_lot(70, None)], 90, 30, (30, 70)),  # what stays does not
        ([a_lot(100, 0)], 90, 30, (30, 0)),  # gone already
        ([a_lot(100, 10, charged_back=True)], 0, 30, (0, 0)),
        ([a_lot(100, 10)], 8, 0, (80, 20)),  # an account of today: a day's pace at most
    ],
)
def test_what_expires_is_what_the_usual_pace_leaves(
    lots: list[Lot], spent: int, days: int, expected: tuple[int, int]
) -> None:
    """Spending goes on as it did; credits that expire go first."""
    seen = forecast_of(lots, spent, NOON - days * DAY, NOON, END)
    assert expected == (seen.spent_by_then, seen.expires_unused)
    assert END == seen.at
