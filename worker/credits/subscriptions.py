"""The life of a subscription: begin, turn, change, cancel, resume, renew. Each a pure step from one state to the next.

A cycle is granted once, when it begins, and only if it is paid for. Whoever renews by itself (`automatic`) has paid
until it is cancelled; where billing stands outside (`external`) each cycle is paid for by a `renewed` of its own, and
until that comes the subscription goes on for its grace, without credits. Lapsed is what `active_until` says, never
written down.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from worker.credits.cycles import cycle_bounds, cycle_start
from worker.credits.lots import BrokenInvariant
from worker.credits.plans import Plan
from worker.credits.values import value

#: Shorter than any month: a late payment always pays the cycle that is running.
GRACE_MAX = timedelta(days=27)

#: How long top-ups stay frozen after a lapse, or a purchase after it, before they expire. A deployment may be more
#: patient, never less: the auditor holds every expiry to this (`expired_before_expiry`).
FROZEN_LIFE = timedelta(days=30)


class Renewal(StrEnum):
    """Who says that the next cycle is paid for."""

    AUTOMATIC = "automatic"
    EXTERNAL = "external"


@value
class Subscription:
    """A subscription as it stands, with the cycle that was begun last: by which plan, and granted how much in all."""

    plan: str
    anchor: datetime
    cycle_starts_at: datetime
    cycle_ends_at: datetime
    cycle_plan: str
    granted: int
    active_until: datetime | None = None  # None: open-ended
    next_plan: str | None = None
    renewal: Renewal = Renewal.AUTOMATIC
    grace: timedelta = timedelta(0)
    cancelled_at: datetime | None = None

    @property
    def paid_until(self) -> datetime | None:
        """Cycles that begin before this are paid for; None: all. It is the end of a cycle, never one before the last.

        A cancelled one is active until the end of what is paid for, or until it was cancelled within its grace or at
        once. Neither of these pays for the cycle that it falls into.
        """
        if self.active_until is None:
            return None
        if self.cancelled_at is None:
            return self.active_until - self.grace
        if self.active_until <= self.cycle_ends_at:
            return self.cycle_ends_at
        return cycle_bounds(self.anchor, self.active_until).starts_at

    @property
    def turns_at(self) -> datetime | None:
        """When the next cycle begins; None if none is paid for."""
        paid = self.paid_until
        return self.cycle_ends_at if paid is None or paid > self.cycle_ends_at else None

    def runs_at(self, now: datetime) -> bool:
        """Whether the cycle that was begun last still runs, whoever cancelled what: it was paid for."""
        return now < self.cycle_ends_at

    def lapsed_by(self, now: datetime) -> bool:
        """Whether it is over at `now`: top-ups are frozen from that very instant."""
        return self.active_until is not None and self.active_until <= now

    def look_at(self, frozen_life: timedelta) -> datetime:
        """When time next changes something: a cycle begins, or what was frozen at its end expires."""
        if (turns_at := self.turns_at) is not None:
            return turns_at
        assert self.active_until is not None
        return self.active_until + frozen_life


@value
class CycleRow:
    """A cycle that begins. A skipped one had ended before anybody looked: it is on record, and granted nothing."""

    starts_at: datetime
    ends_at: datetime
    plan: str
    granted: int
    skipped: bool = False


@value
class Step:
    """What one step changes: the subscription after it, cycles that begin, credits to be granted to the last cycle.

    `plan` is the one whose terms hold from here on; None: those that hold stay as they are, whatever a newer book says.
    """

    after: Subscription
    plan: Plan | None = None
    opened: tuple[CycleRow, ...] = ()
    credits: int = 0
    given_up_from: datetime | None = None  # what was paid ahead, and is not begun any more
    given_up_until: datetime | None = None

    @property
    def raised(self) -> bool:
        """Whether a cycle that began before is granted more."""
        return self.credits > 0 and not self.opened


class NotPossible(ValueError):
    """The subscription is not in a state for this step. The message says why."""


def frozen_until(lapsed_at: datetime, bought_at: datetime, frozen_life: timedelta) -> datetime:
    """When a top-up of a lapsed account expires: the grace counts from the later of lapse and purchase."""
    return max(lapsed_at, bought_at) + frozen_life


def begun(plan: Plan, now: datetime, renewal: Renewal = Renewal.AUTOMATIC, grace: timedelta = timedelta(0)) -> Step:
    """A subscription that begins now, anchored at this instant, its first cycle paid for and granted."""
    if renewal is Renewal.AUTOMATIC and grace:
        raise NotPossible("a grace is for external renewals: an automatic one is never late")
    if not timedelta(0) <= grace <= GRACE_MAX:
        raise NotPossible(f"the grace must be from 0 to {GRACE_MAX.days} days")
    bounds = cycle_bounds(now, now)
    fresh = Subscription(plan.name, now, bounds.starts_at, bounds.ends_at, plan.name, 0, renewal=renewal, grace=grace)
    return _opened(_paid_for(fresh, bounds.ends_at), plan, now)


def turned(subscription: Subscription, plan: Plan, now: datetime) -> Step | None:
    """The cycles that begin between the last one's end and now, if any: the running one granted, others skipped.

    `plan` is the subscription's next one. However late, each cycle is on record once, and only one is granted.
    """
    if subscription.turns_at is None or subscription.cycle_ends_at > now:
        return None
    paid, opened = subscription.paid_until, []
    number = cycle_bounds(subscription.anchor, subscription.cycle_ends_at).number
    starts_at = subscription.cycle_ends_at
    while starts_at <= now and (paid is None or starts_at < paid):
        ends_at = cycle_start(subscription.anchor, number + 1)
        skipped = ends_at <= now
        opened.append(CycleRow(starts_at, ends_at, plan.name, 0 if skipped else plan.monthly_credits, skipped))
        number, starts_at = number + 1, ends_at
    last = opened[-1]
    after = replace(
        subscription,
        plan=plan.name,
        next_plan=None,
        cycle_starts_at=last.starts_at,
        cycle_ends_at=last.ends_at,
        cycle_plan=last.plan,
        granted=last.granted,
    )
    return Step(after, plan, tuple(opened), last.granted)


def changed(subscription: Subscription, current: Plan, wanted: Plan, now: datetime) -> Step:
    """Another plan: at once if it brings as many credits or more, else from the next cycle. Within the grace of an
    external renewal no cycle runs: the plan comes with the one that is paid for next.

    At once means max(0, new allotment - what this cycle already got) further credits for the running cycle: up and
    down again mints nothing. More is what is more than this cycle was granted: what a newer book says of the plan that
    one has is for the next cycle. The plan that one has cancels a change that was to come.
    """
    if subscription.lapsed_by(now):
        raise NotPossible("the subscription has lapsed; resume it first")
    if wanted.name == subscription.plan:
        if subscription.next_plan is None:
            raise NotPossible(f"the plan is {wanted.name} already")
        return Step(replace(subscription, next_plan=None))
    # After a larger plan the cycle has more than the plan that one has now would bring.
    has = min(current.monthly_credits, subscription.granted)
    if not subscription.runs_at(now) or wanted.monthly_credits < has:
        return Step(replace(subscription, next_plan=wanted.name))
    return _switched(subscription, wanted, now)


def cancelled(subscription: Subscription, now: datetime, *, at_once: bool = False) -> Step:
    """No further cycle: it runs to the end of what is paid for, or ends `at_once`.

    What the running cycle was granted stays spendable until that cycle's end either way; top-ups freeze when the
    subscription ends. At once gives up the cycles that are paid for ahead, and says so.
    """
    if subscription.lapsed_by(now):
        raise NotPossible("the subscription has lapsed already")
    if subscription.cancelled_at is not None and not at_once:
        raise NotPossible("it is cancelled already")
    # In the grace of an external renewal the last cycle is over: it ends now, never in the past, and that pays nothing.
    paid_until = subscription.paid_until or subscription.cycle_ends_at
    ends_at = now if at_once else max(paid_until, now)
    after = replace(subscription, active_until=ends_at, cancelled_at=now)
    if not at_once or paid_until == subscription.cycle_ends_at:
        return Step(after)
    return Step(after, given_up_from=subscription.cycle_ends_at, given_up_until=paid_until)


def resumed(subscription: Subscription, plan: Plan, now: datetime) -> Step:
    """Goes on, with `plan`. While its last cycle runs it keeps its anchor, and that cycle is not granted again.

    After that an automatic one begins a new first cycle now. An external one waits for its next payment, in what is
    left of its grace: to come back is not to pay.
    """
    if subscription.cancelled_at is None and not subscription.lapsed_by(now):
        raise NotPossible("the subscription is active; there is nothing to resume")
    if subscription.runs_at(now):
        return _goes_on(subscription, plan, now)
    if subscription.renewal is Renewal.AUTOMATIC:
        return _begun_again(subscription, plan, now)
    waiting = _paid_for(replace(subscription, cancelled_at=None), subscription.cycle_ends_at)
    if waiting.lapsed_by(now):
        raise NotPossible("its next month is not paid for: report the payment (renewed), or subscribe again")
    return Step(replace(waiting, next_plan=None if plan.name == subscription.plan else plan.name))


def subscribed_again(subscription: Subscription, plan: Plan, now: datetime) -> Step:
    """After a lapse: a resume while the last cycle runs, else a new first cycle, paid for as the very first one was."""
    if not subscription.lapsed_by(now):
        raise NotPossible("there is a subscription already")
    return _goes_on(subscription, plan, now) if subscription.runs_at(now) else _begun_again(subscription, plan, now)


def renewed(subscription: Subscription, upcoming: Plan, now: datetime) -> Step:
    """One more cycle is paid for, from outside. A payment that comes after the lapse resumes the subscription.

    A cycle that is paid for ahead begins in its time; so does the one after a cycle that was cancelled at once and
    still runs.
    """
    if subscription.renewal is not Renewal.EXTERNAL:
        raise NotPossible("it renews by itself; only external renewals are reported")
    if subscription.lapsed_by(now) and not subscription.runs_at(now):
        return _begun_again(subscription, upcoming, now)
    paid = subscription.paid_until
    if paid is None:
        raise BrokenInvariant("an external renewal without an end")
    after = _paid_for(replace(subscription, cancelled_at=None), cycle_bounds(subscription.anchor, paid).ends_at)
    return turned(after, upcoming, now) or Step(after)


def _goes_on(subscription: Subscription, plan: Plan, now: datetime) -> Step:
    """Its running cycle and what is paid ahead, as if nobody had cancelled it."""
    until = subscription.paid_until or subscription.cycle_ends_at
    back = _paid_for(replace(subscription, active_until=None, cancelled_at=None), until)
    return Step(back) if plan.name == subscription.plan else _switched(back, plan, now)


def _begun_again(subscription: Subscription, plan: Plan, now: datetime) -> Step:
    """A new first cycle, paid for and granted."""
    bounds = cycle_bounds(now, now)
    fresh = replace(
        subscription,
        anchor=now,
        cycle_starts_at=bounds.starts_at,
        cycle_ends_at=bounds.ends_at,
        granted=0,
        active_until=None,
        next_plan=None,
        cancelled_at=None,
    )
    return _opened(_paid_for(fresh, bounds.ends_at), plan, now)


def _paid_for(subscription: Subscription, until: datetime) -> Subscription:
    """Paid until then by an external billing; an automatic renewal has no end."""
    if subscription.renewal is Renewal.AUTOMATIC:
        return subscription
    return replace(subscription, active_until=until + subscription.grace)


def _opened(fresh: Subscription, plan: Plan, now: datetime) -> Step:
    """Its first cycle, beginning now."""
    assert fresh.cycle_starts_at == now
    row = CycleRow(now, fresh.cycle_ends_at, plan.name, plan.monthly_credits)
    return Step(replace(fresh, plan=plan.name, cycle_plan=plan.name, granted=row.granted), plan, (row,), row.granted)


def _switched(subscription: Subscription, plan: Plan, now: datetime) -> Step:
    """Another plan from now on, the running cycle topped up to its allotment.

    The plan that the cycle began with has brought all that it brings this cycle, whatever a book has made of it since.
    """
    assert subscription.runs_at(now)
    missing = plan.monthly_credits - subscription.granted
    more = 0 if plan.name == subscription.cycle_plan else max(0, missing)
    return Step(
        replace(subscription, plan=plan.name, next_plan=None, granted=subscription.granted + more), plan, (), more
    )
