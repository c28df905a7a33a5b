"""The life of a subscription, by literal dates: cycles by the calendar, each granted once, and nothing minted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.credits.cycles import cycle_start
from worker.credits.plans import Plan
from worker.credits.subscriptions import (
    FROZEN_LIFE,
    CycleRow,
    NotPossible,
    Renewal,
    Step,
    Subscription,
    begun,
    cancelled,
    changed,
    frozen_until,
    renewed,
    resumed,
    subscribed_again,
    turned,
)

SMALL, LARGE = (Plan(name, most, ("generation",), {}, 0, 1, "x") for name, most in (("small", 100), ("large", 400)))
DAY = timedelta(days=1)


def at(text: str) -> datetime:
    """A literal date, at ten in the morning."""
    return datetime.fromisoformat(f"{text}T10:00:00+00:00")


def a_subscription(since: str = "2032-01-31", plan: Plan = SMALL, grace_days: int | None = None) -> Subscription:
    """One that began then; external with a grace if that is given."""
    if grace_days is None:
        return begun(plan, at(since)).after
    return begun(plan, at(since), Renewal.EXTERNAL, grace_days * DAY).after


def cycles_of(step: Step | None) -> list[tuple[str, int, bool]]:
    """Begin, credits and whether it was skipped, of each cycle that the step begins."""
    return [(f"{row.starts_at:%Y-%m-%d}", row.granted, row.skipped) for row in (step.opened if step else ())]


@pytest.mark.parametrize(
    ("since", "turns"),
    [
        ("2032-01-31", ["2032-02-29", "2032-03-31", "2032-04-30", "2032-05-31"]),  # a leap year
        ("2033-01-31", ["2033-02-28", "2033-03-31", "2033-04-30", "2033-05-31"]),
        ("2033-01-30", ["2033-02-28", "2033-03-30", "2033-04-30", "2033-05-30"]),
        ("2033-01-29", ["2033-02-28", "2033-03-29", "2033-04-29", "2033-05-29"]),
        ("2032-02-29", ["2032-03-29", "2032-04-29", "2032-05-29", "2032-06-29"]),
        ("2032-11-30", ["2032-12-30", "2033-01-30", "2033-02-28", "2033-03-30"]),
    ],
)
def test_cycles_turn_by_the_calendar(since: str, turns: list[str]) -> None:
    """At the anchor's day and time in UTC, at the last day of shorter months, and back to the anchor's day after."""
    subscription, seen = a_subscription(since), []
    for when in turns:
        assert turned(subscription, SMALL, at(when) - timedelta(microseconds=1)) is None
        step = turned(subscription, SMALL, at(when))
        assert step is not None
        seen += cycles_of(step)
        subscription = step.after
        assert 100 == step.credits == subscription.granted
    assert [(when, 100, False) for when in turns] == seen


def test_a_late_turn_grants_the_running_cycle_only() -> None:
    """Three missed cycles are on record as skipped, with nothing granted; the one that runs is granted."""
    step = turned(a_subscription(), SMALL, at("2032-05-20"))
    skipped = [("2032-02-29", 0, True), ("2032-03-31", 0, True)]
    assert [*skipped, ("2032-04-30", 100, False)] == cycles_of(step)
    assert step is not None
    assert (100, at("2032-05-31")) == (step.credits, step.after.cycle_ends_at)
    assert turned(step.after, SMALL, at("2032-05-20")) is None


def test_up_and_down_again_mints_nothing() -> None:
    """Up brings what is missing to the larger allotment; down is for the next cycle; up again brings nothing."""
    first = a_subscription()
    up = changed(first, SMALL, LARGE, at("2032-02-01"))
    assert (300, 400, "large") == (up.credits, up.after.granted, up.after.plan)
    down = changed(up.after, LARGE, SMALL, at("2032-02-02"))
    assert (0, "large", "small") == (down.credits, down.after.plan, down.after.next_plan)
    again = changed(down.after, LARGE, LARGE, at("2032-02-03"))
    assert (0, None) == (again.credits, again.after.next_plan)
    turn = turned(down.after, SMALL, at("2032-02-29"))
    assert turn is not None
    assert (100, "small", None) == (turn.credits, turn.after.plan, turn.after.next_plan)
    # Nor does ending it at once and coming back within its cycle.
    ended = cancelled(up.after, at("2032-02-04"), at_once=True)
    back = resumed(ended.after, SMALL, at("2032-02-05"))
    assert (0, "small", 400, at("2032-01-31")) == (back.credits, back.after.plan, back.after.granted, back.after.anchor)
    assert 0 == changed(back.after, SMALL, LARGE, at("2032-02-06")).credits


def test_an_edited_plan_is_for_the_next_cycle() -> None:
    """The running one was granted what its plan was when it began: that is what a change is compared with."""
    first, richer, when = a_subscription(), replace(SMALL, monthly_credits=1000), at("2032-02-01")
    for back in (
        resumed(cancelled(first, when).after, richer, when),
        resumed(cancelled(first, when, at_once=True).after, richer, when),
        subscribed_again(cancelled(first, when, at_once=True).after, richer, when),
    ):
        assert (0, None, 100) == (back.credits, back.plan, back.after.granted)
    up = changed(first, richer, LARGE, when)
    assert (300, "large", None) == (up.credits, up.after.plan, up.after.next_plan)
    down = changed(up.after, LARGE, richer, when)  # by now it would bring more: not to the cycle that it began
    assert (0, "small", 400) == (down.credits, down.after.plan, down.after.granted)
    # Plans that became poorer: a change at once brings nothing, and takes nothing.
    poorer = changed(first, replace(SMALL, monthly_credits=10), replace(LARGE, monthly_credits=50), when)
    assert (0, "large", 100) == (poorer.credits, poorer.after.plan, poorer.after.granted)


def test_a_cancelled_subscription_runs_to_its_cycles_end() -> None:
    """From that very instant it has lapsed, and no cycle follows, however late somebody looks."""
    step = cancelled(a_subscription(), at("2032-02-10"))
    assert at("2032-02-29") == step.after.active_until
    assert not step.after.lapsed_by(at("2032-02-29") - timedelta(microseconds=1))
    assert step.after.lapsed_by(at("2032-02-29"))
    assert turned(step.after, SMALL, at("2032-08-01")) is None
    assert at("2032-02-29") + 40 * DAY == step.after.look_at(40 * DAY)
    back = resumed(step.after, SMALL, at("2032-02-20"))
    assert (None, 0) == (back.after.active_until, back.credits)


def test_a_resume_keeps_the_anchor_while_the_last_cycle_runs() -> None:
    """Without another grant for it; after that a new anchor begins a new first cycle."""
    ended = cancelled(a_subscription(), at("2032-02-10"), at_once=True).after
    soon = resumed(ended, SMALL, at("2032-02-28"))
    assert (at("2032-01-31"), 0, ()) == (soon.after.anchor, soon.credits, soon.opened)
    late = resumed(ended, LARGE, at("2032-02-29"))
    assert (at("2032-02-29"), 400) == (late.after.anchor, late.credits)
    assert [("2032-02-29", 400, False)] == cycles_of(late)


def test_an_external_renewal_waits_for_its_report() -> None:
    """Nothing is refilled until then; within the grace it stays active, and the report grants the running cycle."""
    first = a_subscription(grace_days=5)
    assert turned(first, SMALL, at("2032-03-02")) is None
    assert first.turns_at is None
    assert not first.lapsed_by(at("2032-03-04"))
    report = renewed(first, SMALL, at("2032-03-02"))
    assert [("2032-02-29", 100, False)] == cycles_of(report)
    assert at("2032-03-31") + 5 * DAY == report.after.active_until
    # After the grace it has lapsed; a payment that comes then is never lost.
    assert first.lapsed_by(at("2032-03-05"))
    late = renewed(first, SMALL, at("2032-03-09"))
    assert [("2032-03-09", 100, False)] == cycles_of(late)
    assert at("2032-04-09") + 5 * DAY == late.after.active_until


def test_a_renewal_that_is_reported_ahead_begins_in_its_time() -> None:
    """Also several: each pays one cycle more. A cancel keeps what was paid."""
    once = renewed(a_subscription(grace_days=3), SMALL, at("2032-02-01"))
    ahead = renewed(once.after, SMALL, at("2032-02-02"))
    assert (0, ()) == (ahead.credits, ahead.opened)
    assert at("2032-02-29") == ahead.after.turns_at
    assert at("2032-04-30") == ahead.after.paid_until
    gone = cancelled(ahead.after, at("2032-02-03")).after
    assert at("2032-04-30") == gone.active_until == gone.paid_until
    step = turned(gone, SMALL, at("2032-06-01"))
    assert [("2032-02-29", 0, True), ("2032-03-31", 0, True)] == cycles_of(step)
    back = resumed(gone, SMALL, at("2032-02-04")).after
    assert at("2032-04-30") + 3 * DAY == back.active_until
    # Whoever ends it at once gives them up, and is told. The running cycle was granted: that stays.
    end = cancelled(ahead.after, at("2032-02-03"), at_once=True)
    assert (at("2032-02-29"), at("2032-04-30")) == (end.given_up_from, end.given_up_until)
    for kept in (cancelled(ahead.after, at("2032-02-03")), cancelled(a_subscription(), at("2032-02-03"), at_once=True)):
        assert (None, None) == (kept.given_up_from, kept.given_up_until)


def test_a_cancel_within_the_grace_ends_it_now() -> None:
    """Never in the past: what ran until now had every right to. Nor does it pay for what would come."""
    for at_once in (False, True):
        gone = cancelled(a_subscription(grace_days=5), at("2032-03-02"), at_once=at_once).after
        assert at("2032-03-02") == gone.active_until
        assert (at("2032-02-29"), None) == (gone.paid_until, gone.turns_at)
        assert turned(gone, SMALL, at("2032-03-02")) is None
        # To come back is to be in the grace again; the payment pays for a cycle, from now if it had ended.
        back = resumed(gone, SMALL, at("2032-03-03"))
        assert ((), 0, at("2032-02-29") + 5 * DAY) == (back.opened, back.credits, back.after.active_until)
        assert [("2032-02-29", 100, False)] == cycles_of(renewed(back.after, SMALL, at("2032-03-04")))
        assert [("2032-03-04", 100, False)] == cycles_of(renewed(gone, SMALL, at("2032-03-04")))
        with pytest.raises(NotPossible, match="not paid for"):
            resumed(gone, SMALL, at("2032-03-05"))


def test_another_plan_within_the_grace_comes_with_the_payment() -> None:
    """Larger or smaller: no cycle runs that it could be for. So does one that is taken with the resume."""
    late = a_subscription(grace_days=5)
    wanted = changed(late, SMALL, LARGE, at("2032-03-02"))
    assert (0, "small", "large") == (wanted.credits, wanted.after.plan, wanted.after.next_plan)
    assert [("2032-02-29", 400, False)] == cycles_of(renewed(wanted.after, LARGE, at("2032-03-03")))
    gone = cancelled(late, at("2032-03-02")).after
    back = resumed(gone, LARGE, at("2032-03-03"))
    assert (0, "small", "large") == (back.credits, back.after.plan, back.after.next_plan)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (lambda now: begun(SMALL, now, Renewal.AUTOMATIC, DAY), "a grace is for external renewals"),
        (lambda now: begun(SMALL, now, Renewal.EXTERNAL, 28 * DAY), "from 0 to 27 days"),
        (lambda now: begun(SMALL, now, Renewal.EXTERNAL, -DAY), "from 0 to 27 days"),
        (lambda now: changed(a_subscription(), SMALL, SMALL, now), "the plan is small already"),
        (lambda now: changed(gone(now), SMALL, LARGE, now), "has lapsed; resume it first"),
        (lambda now: cancelled(gone(now), now), "has lapsed already"),
        (lambda now: cancelled(cancelled(a_subscription(), now).after, now), "is cancelled already"),
        (lambda now: resumed(a_subscription(), SMALL, now), "is active"),
        (lambda now: renewed(a_subscription(), SMALL, now), "renews by itself"),
    ],
)
def test_steps_that_can_not_be_say_why(step: object, complaint: str) -> None:
    """And change nothing: a step is a value."""
    with pytest.raises(NotPossible, match=complaint):
        step(at("2032-02-10"))  # type: ignore[operator]


def gone(now: datetime) -> Subscription:
    """Ended at this very instant."""
    return cancelled(a_subscription(), now, at_once=True).after


def test_top_ups_stay_frozen_from_the_later_of_lapse_and_purchase() -> None:
    """As long as is set, from either."""
    lapsed, bought = at("2032-02-01"), at("2032-02-10")
    assert bought + FROZEN_LIFE == frozen_until(lapsed, bought, FROZEN_LIFE)
    assert lapsed + 45 * DAY == frozen_until(lapsed, lapsed - 400 * DAY, 45 * DAY)


@given(
    since=st.integers(0, 24 * 4000).map(lambda hours: datetime(2027, 1, 1, tzinfo=UTC) + timedelta(hours=hours)),
    looks=st.lists(st.integers(0, 400), min_size=1, max_size=12),
)
def test_whoever_looks_whenever_each_cycle_begins_once(since: datetime, looks: list[int]) -> None:
    """In order, without a gap, and never more credits than one allotment a month that somebody looked in."""
    subscription, now = begun(SMALL, since).after, since
    rows: list[CycleRow] = []
    for days in looks:
        now += timedelta(days=days)
        step = turned(subscription, SMALL, now)
        if step is not None:
            rows += step.opened
            subscription = step.after
        assert subscription.cycle_starts_at <= now < subscription.cycle_ends_at
    assert [cycle_start(since, number) for number in range(1, len(rows) + 1)] == [row.starts_at for row in rows]
    assert all((row.granted == 0) == row.skipped for row in rows)


#: What somebody does, and how many days later: a payment, a resume, a change, a cancel, or just a look.
acts = st.tuples(
    st.sampled_from(["paid", "subscribed", "resume", "up", "down", "cancel", "end", "look"]), st.integers(0, 45)
)


@given(
    since=st.integers(0, 24 * 4000).map(lambda hours: datetime(2027, 1, 1, tzinfo=UTC) + timedelta(hours=hours)),
    grace=st.integers(0, 27),
    story=st.lists(acts, max_size=25),
)
def test_no_cycle_begins_that_nobody_paid_for(since: datetime, grace: int, story: list[tuple[str, int]]) -> None:
    """Where billing stands outside, there is a payment for each cycle, whoever does what in whatever order."""
    plans = {plan.name: plan for plan in (SMALL, LARGE)}
    subscription, now = begun(SMALL, since, Renewal.EXTERNAL, grace * DAY).after, since
    payments = cycles = 1
    for what, days in story:
        now += days * DAY
        if (turn := turned(subscription, plans[subscription.next_plan or subscription.plan], now)) is not None:
            cycles, subscription = cycles + len(turn.opened), turn.after
        step = _done(what, subscription, plans, now)
        if step is None:
            continue
        payments += what in ("paid", "subscribed")
        cycles, subscription = cycles + len(step.opened), step.after
        assert subscription.paid_until is not None
        assert subscription.paid_until >= subscription.cycle_ends_at
        assert cycles <= payments
        assert what in ("paid", "subscribed", "up") or step.credits == 0


def _done(what: str, subscription: Subscription, plans: dict[str, Plan], now: datetime) -> Step | None:
    """What that act does; None if it is not possible."""
    current = plans[subscription.plan]
    upcoming = plans[subscription.next_plan or subscription.plan]
    steps = {
        "paid": lambda: renewed(subscription, upcoming, now),
        "subscribed": lambda: subscribed_again(subscription, SMALL, now),
        "resume": lambda: resumed(subscription, current if subscription.runs_at(now) else upcoming, now),
        "up": lambda: changed(subscription, current, LARGE, now),
        "down": lambda: changed(subscription, current, SMALL, now),
        "cancel": lambda: cancelled(subscription, now),
        "end": lambda: cancelled(subscription, now, at_once=True),
    }
    try:
        return steps[what]() if what in steps else None
    except NotPossible:
        return None


@given(
    story=st.lists(
        st.tuples(st.sampled_from(["cancel", "end", "resume", "small", "large", "back"]), st.integers(1, 2000)),
        max_size=25,
    )
)
def test_a_running_cycle_is_granted_no_more_than_a_plan_that_was_taken_brought(story: list[tuple[str, int]]) -> None:
    """However often both plans are edited meanwhile: the one it began with brings nothing more, staying brings nothing.

    What a larger plan brought when it was taken is the most that the cycle ever has.
    """
    subscription, now, most = a_subscription(), at("2032-02-01"), SMALL.monthly_credits
    for what, edited in story:
        plans = {plan.name: replace(plan, monthly_credits=edited) for plan in (SMALL, LARGE)}
        current, wanted = plans[subscription.plan], plans.get(what)
        try:
            if wanted is not None:
                step = changed(subscription, current, wanted, now)
            elif what in ("cancel", "end"):
                step = cancelled(subscription, now, at_once=what == "end")
            else:
                step = resumed(subscription, current if what == "resume" else plans["large"], now)
        except NotPossible:
            continue
        if step.credits:
            assert (subscription.plan, step.after.plan) == ("small", "large")
            most = max(most, edited)
        assert step.after.granted == subscription.granted + step.credits <= most
        assert (step.plan is None) == (step.after.plan == subscription.plan)
        subscription = step.after
