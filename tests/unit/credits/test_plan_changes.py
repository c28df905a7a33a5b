"""How much a new plan book changes what is sold."""

from __future__ import annotations

import pytest

from worker.credits.plan_changes import large_plan_changes
from worker.credits.plans import PlanBook, parse_plan_book

PLANS = """
[plans.solo]
monthly_credits = 150
price_shown = "9"
kinds = ["song"]
jobs_at_a_time = 2
[packs.small]
credits = 100
price_shown = "6"
"""


def book(document: str = PLANS) -> PlanBook:
    return parse_plan_book(document)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("= 150", "= 180", None),  # 20 %
        ("= 150", "= 120", None),
        ("= 150", "= 181", "plan solo brings 181 credits a month instead of 150 (+20.7 %)"),
        ("= 150", "= 119", "plan solo brings 119 credits a month instead of 150 (-20.7 %)"),
        ("= 150", "= 1500000", "plan solo brings 1,500,000 credits a month instead of 150 (+999,900 %)"),
        ("= 100", "= 1000000", "pack small brings 1,000,000 credits instead of 100 (+999,900 %)"),
        ("jobs_at_a_time = 2", "jobs_at_a_time = 9", None),
        # What is new: within ten times the largest, or some zeros too many.
        ("[packs.small]", '[packs.large]\ncredits = 1000\nprice_shown = "30"\n[packs.small]', None),
        (
            "[packs.small]",
            '[packs.large]\ncredits = 1001\nprice_shown = "30"\n[packs.small]',
            "the new pack large brings 1,001 credits, the largest so far 100",
        ),
        ("plans.solo", "plans.duo", None),
    ],
)
def test_what_may_be_a_slip_is_said(old: str, new: str, sentence: str | None) -> None:
    """Credits of plans and of packs, up and down, by more than so many percent."""
    found = large_plan_changes(book(), book(PLANS.replace(old, new, 1)), 20)
    assert (() if sentence is None else (sentence,)) == found


def test_all_of_them_are_said() -> None:
    """Plans first."""
    found = large_plan_changes(book(), book(PLANS.replace("= 150", "= 1").replace("= 100", "= 1")), 20)
    assert ["plan", "pack"] == [sentence.split()[0] for sentence in found]


def test_the_first_packs_of_a_shop_have_nothing_to_be_compared_with() -> None:
    """Nothing is larger than nothing."""
    no_packs = PLANS[: PLANS.index("[packs")]
    assert () == large_plan_changes(book(no_packs), book(), 20)
