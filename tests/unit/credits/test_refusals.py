"""What a customer is told of a job that could not be paid."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from worker.credits.allocation import Shortfall
from worker.credits.plans import parse_plan_book
from worker.credits.refusals import HOLDS_SHOWN_MAX, HeldBy, refusal_of, words_of

#: Packs of 100, 500 and 2,000 credits.
PLANS = parse_plan_book((Path(__file__).parents[3] / "config" / "plans.toml").read_text())


@pytest.mark.parametrize(
    ("needed", "available", "pack"),
    [(100, 0, "small"), (101, 0, "medium"), (600, 100, "medium"), (601, 100, "large"), (2100, 0, None)],
)
def test_the_smallest_pack_that_covers_what_is_missing_is_named(needed: int, available: int, pack: str | None) -> None:
    """Not what is needed: what is missing. Where no single pack would do, none is named."""
    refusal = refusal_of(Shortfall(needed, available, 0, 0), (), PLANS, topups_frozen=False)
    assert pack == (refusal.pack and refusal.pack.name)


def test_no_pack_helps_an_account_whose_topups_are_frozen() -> None:
    """What it buys is born frozen: the subscription is what it lacks."""
    refusal = refusal_of(Shortfall(10, 0, 0, 200), (), PLANS, topups_frozen=True)
    assert refusal.pack is None
    assert "needed 10, available 0; 200 frozen until the account has an active subscription" == words_of(refusal)


def test_the_largest_holds_are_named_first_and_not_all_of_many() -> None:
    """A long list helps nobody; the sum has them all."""
    holds = [HeldBy(UUID(int=number), 1 + number % 3) for number in range(50)]
    refusal = refusal_of(Shortfall(500, 0, 100, 0), holds, PLANS, topups_frozen=False)
    assert [3] * 16 + [2] * (HOLDS_SHOWN_MAX - 16) == [hold.credits for hold in refusal.held_by]
    assert words_of(refusal) == (
        "needed 500, available 0; 100 held by 20 or more jobs under way; the pack medium (500 credits) would do"
    )
