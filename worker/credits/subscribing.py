"""Steps of a subscription on its account's page: what the ledger and the claims after them in the batch see of it."""

from __future__ import annotations

from typing import ClassVar

from worker.credits.account_ledger import NewLot
from worker.credits.lots import LotSource
from worker.credits.page import Page, SubscriptionRow
from worker.credits.subscriptions import Step, Subscription, turned
from worker.credits.values import value

#: Who turns cycles, for the journal: whoever meets the ended cycle first.
TURN_ACTOR = "cycle"


@value
class Turn:
    """Begin the cycle that is due. The work is done before any operation decides: this only brings the account up."""

    step: ClassVar[str] = "turn"

    account_id: str
    job_id: None = None

    def decide(self, page: Page) -> int:
        """How many cycles began, skipped ones included."""
        return len(page.writes.cycles)


def turn(page: Page) -> None:
    """Begin the cycles that are due, before anything else is decided on the page."""
    subscription = page.subscription
    if subscription is None:
        return
    step = turned(subscription, page.terms[upcoming_plan(subscription)], page.now)
    if step is not None:
        take(page, step, TURN_ACTOR)


def upcoming_plan(subscription: Subscription) -> str:
    """The plan of the next cycle."""
    return subscription.next_plan or subscription.plan


def expire_topups(page: Page, actor: str) -> int:
    """Write down which top-ups were frozen for too long; returns their credits. They must not thaw."""
    expired = 0
    for lot_id, lot in list(page.ledger.lots.items()):
        if lot.source is LotSource.TOPUP and lot.expired_by(page.now):
            expired += page.ledger.expire(lot_id, "frozen_too_long", actor)
    return expired


def take(page: Page, step: Step, actor: str) -> None:
    """Do the step: its cycles, its credits, and what it thaws or freezes."""
    after, ledger = step.after, page.ledger
    page.subscription, page.active_until = after, after.active_until
    if step.plan is not None:
        running_max, page.running_max = page.running_max, page.own_running_max or step.plan.jobs_at_a_time
        page.writes.more_room = running_max is not None and running_max < page.running_max
        page.warn_below = step.plan.warn_below if page.own_warn_below is None else page.own_warn_below
    page.writes.subscription = SubscriptionRow(after)
    page.writes.cycles += step.opened
    if step.raised:
        page.writes.cycles_raised.append((after.cycle_starts_at, after.granted))
    ledger.cycle_ends_at = after.cycle_ends_at
    thawed = ledger.topups_frozen and not after.lapsed_by(page.now)
    if thawed:
        expire_topups(page, actor)
    ledger.topups_frozen = after.lapsed_by(page.now)
    if step.credits:
        lot = NewLot(LotSource.SUBSCRIPTION, "cycle", cycle_starts_at=after.cycle_starts_at)
        ledger.grant(step.credits, lot, after.cycle_ends_at, actor)
    ledger.raised = ledger.raised or thawed
