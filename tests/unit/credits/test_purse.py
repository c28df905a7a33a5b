"""Whether an account could have paid: what it had, when, and in which order it would have gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from worker.credits.purse import Purse, PurseLot

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def test_what_expires_first_pays_first() -> None:
    """So the month's credits go before those that stay, as in a claim."""
    purse = Purse([PurseLot(START, None, 10), PurseLot(START, START + 5 * DAY, 10)])
    assert purse.pay(10, START)
    assert purse.pay(10, START + 6 * DAY)
    assert not purse.pay(1, START + 6 * DAY)
    assert (1, START + 6 * DAY) == (purse.unpaid, purse.short_at)


def test_what_has_expired_or_is_not_there_yet_pays_nothing() -> None:
    """Nor does a cost take a part: what it can't pay whole stays for cheaper ones."""
    purse = Purse([PurseLot(START, START + DAY, 10), PurseLot(START + 9 * DAY, None, 3)])
    assert not purse.pay(11, START)
    assert not purse.pay(1, START + DAY)
    assert purse.pay(3, START + 9 * DAY)
    assert purse.pay(0, START + 9 * DAY)
    assert (2, START) == (purse.unpaid, purse.short_at)


def test_a_cost_is_paid_by_several_lots() -> None:
    """To the last credit, and no further."""
    purse = Purse([PurseLot(START, START + DAY, 4), PurseLot(START, START + 2 * DAY, 4), PurseLot(START, None, 4)])
    assert purse.pay(9, START)
    assert not purse.pay(4, START)
    assert purse.pay(3, START)
