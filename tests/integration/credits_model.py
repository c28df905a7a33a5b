"""A small model of one account's credits, that shares no line with the ledger: what a careful bookkeeper would say.

It knows lots as a list, months by the calendar, and time only as a number it is given. It is asked the same as the
store is, and must answer the same.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

CREDITS = {"starter": 150, "creator": 1200, "label": 5000}
LIMITS = {"starter": 1, "creator": 3, "label": 10}
FROZEN = timedelta(days=30)
NEVER = datetime.max.replace(tzinfo=UTC)


class No(Exception):
    """It can't be done; nothing changed."""


def months_later(anchor: datetime, months: int) -> datetime:
    """The same day, or the last of a shorter month."""
    year, month = anchor.year + (anchor.month - 1 + months) // 12, (anchor.month - 1 + months) % 12 + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, calendar.monthrange(year, month)[1]))


@dataclass(eq=False)
class Lot:
    source: str
    free: int
    ends: datetime | None
    came: datetime
    held: int = 0
    spent: int = 0
    paid: int = 0  # of older debts
    taken: bool = False


@dataclass
class Plan:
    """The subscription, if there ever was one."""

    name: str
    anchor: datetime
    month: int  # the cycle that was begun last, counted from the anchor
    granted: int
    external: bool
    grace: timedelta
    paid_until: datetime | None  # the end of a month; None: for ever
    next_name: str | None = None
    cancelled: bool = False
    ended: datetime | None = None  # since when, if it is cancelled

    @property
    def cycle_ends(self) -> datetime:
        return months_later(self.anchor, self.month + 1)

    @property
    def ends(self) -> datetime | None:
        if self.paid_until is None:
            return None
        return self.ended if self.cancelled else self.paid_until + self.grace

    def over(self, now: datetime) -> bool:
        return self.ends is not None and self.ends <= now


@dataclass
class Account:
    lots: list[Lot] = field(default_factory=list)
    plan: Plan | None = None
    purchases: dict[str, Lot] = field(default_factory=dict)
    holds: dict[int, list[tuple[Lot, int]]] = field(default_factory=dict)
    debt: int = 0

    # --- what is there

    def active(self, now: datetime) -> bool:
        return self.plan is not None and not self.plan.over(now)

    def gone(self, lot: Lot, now: datetime) -> bool:
        """Whether time has taken what comes back to it."""
        if lot.ends is not None:
            return lot.ends <= now
        plan = self.plan
        if lot.source != "topup" or plan is None or plan.ends is None or plan.ends > now:
            return False
        return max(plan.ends, lot.came) + FROZEN <= now

    def spendable(self, now: datetime, source: str | None = None) -> int:
        return sum(
            lot.free
            for lot in self.lots
            if source in (None, lot.source) and not self.gone(lot, now) and not lot.taken
            if lot.source != "topup" or self.active(now)
        )

    def frozen(self, now: datetime) -> int:
        if self.active(now):
            return 0
        return sum(x.free for x in self.lots if x.source == "topup" and not self.gone(x, now) and not x.taken)

    @property
    def held(self) -> int:
        return sum(lot.held for lot in self.lots)

    @property
    def spent(self) -> int:
        return sum(lot.spent for lot in self.lots)

    # --- what happens

    def look(self, now: datetime) -> None:
        """Whoever touches the account begins the cycle that is due."""
        plan = self.plan
        begun = False
        while plan and plan.cycle_ends <= now and (plan.paid_until is None or plan.cycle_ends < plan.paid_until):
            plan.month, plan.granted, begun = plan.month + 1, 0, True
            plan.name, plan.next_name = plan.next_name or plan.name, None
        if plan and begun and plan.cycle_ends > now:
            self.refill(now)

    def refill(self, now: datetime) -> None:
        """The running cycle up to what its plan brings."""
        plan = self.plan
        assert plan
        more = CREDITS[plan.name] - plan.granted
        if more > 0:
            plan.granted += more
            self.lots.append(Lot("subscription", more, plan.cycle_ends, now))

    def subscribe(self, name: str, now: datetime, external: bool, grace: timedelta) -> None:
        if self.active(now):
            raise No
        before = self.plan
        if before is not None and before.cycle_ends > now:
            before.external, before.grace = external, grace
            self.go_on(name, now)
            return
        self.start(name, now, external, grace)

    def start(self, name: str, now: datetime, external: bool, grace: timedelta) -> None:
        self.forget_frozen(now)
        self.plan = Plan(name, now, 0, 0, external, grace, None)
        if external:
            self.plan.paid_until = self.plan.cycle_ends
        self.refill(now)

    def resume(self, now: datetime) -> None:
        plan = self.plan
        if plan is None or not (plan.cancelled or plan.over(now)):
            raise No
        if plan.cycle_ends > now:
            self.go_on(plan.name, now)
        elif not plan.external:
            self.start(plan.next_name or plan.name, now, plan.external, plan.grace)
        elif plan.cycle_ends + plan.grace > now:  # whoever pays for each month waits for the payment
            self.forget_frozen(now)
            plan.paid_until, plan.cancelled = plan.cycle_ends, False
        else:
            raise No

    def go_on(self, name: str, now: datetime) -> None:
        """Within the last cycle: it is not granted again."""
        plan = self.plan
        assert plan
        self.forget_frozen(now)
        if name != plan.name:
            plan.next_name = None
        plan.name, plan.cancelled = name, False
        plan.paid_until = (plan.paid_until or plan.cycle_ends) if plan.external else None
        self.refill(now)

    def forget_frozen(self, now: datetime) -> None:
        for lot in self.lots:
            if lot.source == "topup" and self.gone(lot, now):
                lot.free = 0

    def change(self, name: str, now: datetime) -> None:
        plan = self.plan
        if plan is None or plan.over(now) or (name == plan.name and plan.next_name is None):
            raise No
        if name == plan.name:
            plan.next_name = None
        elif plan.cycle_ends <= now or CREDITS[name] < CREDITS[plan.name]:
            plan.next_name = name
        else:
            plan.name, plan.next_name = name, None
            self.refill(now)

    def cancel(self, now: datetime, at_once: bool) -> None:
        plan = self.plan
        if plan is None or plan.over(now) or (plan.cancelled and not at_once):
            raise No
        if at_once or plan.paid_until is None:
            plan.paid_until = plan.cycle_ends
        plan.cancelled, plan.ended = True, now if at_once else max(plan.paid_until, now)

    def renewed(self, now: datetime) -> None:
        plan = self.plan
        if plan is None or not plan.external:
            raise No
        if plan.over(now) and plan.cycle_ends <= now:
            self.start(plan.next_name or plan.name, now, plan.external, plan.grace)
            return
        if plan.over(now):  # ended at once, and its last month still runs: that was paid before
            self.go_on(plan.name, now)
        assert plan.paid_until
        month = plan.month
        while months_later(plan.anchor, month) <= max(plan.paid_until, plan.cycle_ends):
            month += 1
        plan.paid_until, plan.cancelled = months_later(plan.anchor, month), False
        self.look(now)

    def grant(self, amount: int, ends: datetime | None, now: datetime) -> None:
        self.lots.append(Lot("grant", amount, ends, now))

    def topup(self, reference: str, amount: int, now: datetime) -> None:
        lot = Lot("topup", amount, None, now)
        lot.paid = min(self.debt, amount)
        lot.free -= lot.paid
        self.debt -= lot.paid
        self.purchases[reference] = lot
        self.lots.append(lot)

    def chargeback(self, reference: str) -> None:
        lot = self.purchases[reference]
        if not lot.taken:
            self.debt += lot.spent + lot.paid
            lot.free, lot.taken = 0, True

    def claim(self, number: int, price: int, now: datetime) -> str:
        limit = LIMITS[self.plan.name] if self.plan else None
        if limit is not None and len(self.holds) >= limit:
            return "limit"
        if price > self.spendable(now):
            return "refused"
        hold = []
        for lot in sorted(self.lots, key=lambda lot: lot.ends or NEVER):
            usable = not self.gone(lot, now) and not lot.taken and (lot.source != "topup" or self.active(now))
            part = min(price, lot.free) if usable else 0
            if part:
                lot.free, lot.held, price = lot.free - part, lot.held + part, price - part
                hold.append((lot, part))
        self.holds[number] = hold
        return "claimed"

    def settle(self, number: int, charge: int, now: datetime, ours: bool) -> None:
        good = 0
        for lot, part in self.holds.pop(number):
            spent = min(charge, part)
            back, charge = part - spent, charge - spent
            lot.held -= part
            lot.spent += spent
            if lot.taken:
                self.debt += spent
            elif self.gone(lot, now):
                good += back if ours else 0
            else:
                lot.free += back
        if good:
            ends = now + timedelta(hours=24)
            self.grant(good, max(ends, self.plan.cycle_ends) if self.plan else ends, now)
