"""Any story of an account, told to the real store and to a bookkeeper's model: after each step both say the same.

And after each step the auditor finds nothing. The clock jumps over days and ends of months.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.integration.books import ACTOR, Store
from tests.integration.credits_model import CREDITS, Account, No
from tests.integration.stories import LONG, as_stories, violations
from worker.credits.operations import Cancel, Claimed, Dropped, Ended, Expire
from worker.credits.outcomes import Ending
from worker.credits.subscribing import Turn
from worker.store.errors import Refused
from worker.store.reads import Reads

#: A price that takes all there is: only so do jobs draw on what lies behind the plan's credits.
ALL = -1

plans = st.sampled_from(sorted(CREDITS))
endings = st.sampled_from(["whole", "part", "nothing", "ours", "theirs", "cancelled", "given up"])
amounts = st.sampled_from([1, 20, 75, 150, 400, 1200])


class Story(RuleBasedStateMachine):
    """One account's life."""

    numbers = iter(range(10**9))

    def __init__(self, runner: asyncio.Runner, store: Store) -> None:
        super().__init__()
        self.run, self.store, self.model = runner.run, store, Account()
        self.account = self.run(store.account(f"story-{next(self.numbers)}"))
        self.jobs: dict[int, Claimed] = {}

    def now(self) -> datetime:
        now: datetime = self.run(self.store.value("SELECT fermata_now()"))
        return now

    def both(self, model: Callable[[datetime], None], real: Callable[[], Awaitable[Any]]) -> None:
        """Do it in both; either both can or neither."""
        now, could = self.now(), True
        self.model.look(now)
        try:
            model(now)
        except No:
            could = False
        try:
            self.run(_awaited(real))
        except Refused:
            assert not could
            # What was refused has not even begun a cycle: whoever comes next does.
            self.run(self.store.operations.do(Turn(self.account)))
        else:
            assert could

    def reference(self) -> str:
        return f"r-{next(self.numbers)}"

    @initialize(plan=plans, amount=amounts)
    def begins(self, plan: str, amount: int) -> None:
        """As most customers do; what comes then may be anything."""
        self.subscribe(plan, None)
        self.topup(amount, twice=False)

    @rule(amount=amounts, days=st.none() | st.integers(1, 40))
    def grant(self, amount: int, days: int | None) -> None:
        ends = None if days is None else self.now() + timedelta(days=days)
        self.both(
            lambda now: self.model.grant(amount, ends, now),
            lambda: self.store.accounts.grant(self.account, amount, self.reference(), ACTOR, expires_at=ends),
        )

    @rule(amount=amounts, twice=st.booleans())
    def topup(self, amount: int, twice: bool) -> None:
        reference = self.reference()

        async def real() -> None:
            for _ in range(1 + twice):
                await self.store.accounts.topup(self.account, reference, ACTOR, amount=amount)

        self.both(lambda now: self.model.topup(reference, amount, now), real)

    @rule(plan=plans, grace=st.none() | st.integers(0, 27))
    def subscribe(self, plan: str, grace: int | None) -> None:
        external, days = grace is not None, grace or 0
        renewal = "external" if external else "automatic"
        self.both(
            lambda now: self.model.subscribe(plan, now, external, timedelta(days=days)),
            lambda: self.store.accounts.subscribe(
                self.account, plan, self.reference(), ACTOR, renewal=renewal, grace_days=days
            ),
        )

    @rule(plan=plans)
    def change(self, plan: str) -> None:
        self.both(
            lambda now: self.model.change(plan, now),
            lambda: self.store.accounts.change(self.account, plan, self.reference(), ACTOR),
        )

    @rule(at_once=st.booleans())
    def cancel(self, at_once: bool) -> None:
        self.both(
            lambda now: self.model.cancel(now, at_once),
            lambda: self.store.accounts.cancel(self.account, self.reference(), ACTOR, at_once=at_once),
        )

    @rule()
    def resume(self) -> None:
        self.both(self.model.resume, lambda: self.store.accounts.resume(self.account, self.reference(), ACTOR))

    @rule()
    def renewed(self) -> None:
        self.both(self.model.renewed, lambda: self.store.accounts.renewed(self.account, self.reference(), ACTOR))

    @precondition(lambda self: self.model.purchases)
    @rule(data=st.data())
    def chargeback(self, data: st.DataObject) -> None:
        reference = data.draw(st.sampled_from(sorted(self.model.purchases)))
        self.both(
            lambda now: self.model.chargeback(reference),
            lambda: self.store.accounts.chargeback(self.account, reference, ACTOR),
        )

    @rule(price=st.sampled_from([0, 1, 30, 75, 150, ALL, ALL]))
    def claim(self, price: int) -> None:
        number = next(self.numbers)
        now = self.now()
        self.model.look(now)
        price = self.model.spendable(now) if price == ALL else price
        job = self.run(self.store.queued(self.account, price, job_seconds=LONG))
        expected = self.model.claim(number, price, now)
        claimed = self.run(self.store.claim(self.account, job))
        match claimed:
            case Claimed():
                self.jobs[number] = claimed
                assert expected == "claimed"
            case Ended(reason=Ending.INSUFFICIENT_CREDITS):
                assert expected == "refused"
            case _:
                assert (expected, claimed) == ("limit", Dropped.ACCOUNT_LIMIT)
                self.run(self.store.operations.do(Cancel(self.account, job, "no room")))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), how=endings)
    def settle(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.jobs)))
        claimed = self.jobs.pop(number)
        held = claimed.job.quoted
        charge = {"whole": held, "part": held // 3}.get(how, 0)
        now = self.now()
        self.model.look(now)
        self.model.settle(number, charge, now, ours=how in ("ours", "given up"))
        if how in ("cancelled", "given up"):  # its worker stops for it, or was lost before
            self.run(self.store.operations.do(Cancel(self.account, claimed.job.job_id, "no more")))
        broken = {"ours": Ending.ENGINE_ERROR, "theirs": Ending.INVALID_INPUT, "given up": Ending.LOST_WORKER}
        ending = {**broken, "cancelled": Ending.HANDED_BACK}.get(how)
        if ending is None:
            self.run(self.store.settle(self.account, claimed, measured=charge))
        else:
            self.run(self.store.settle(self.account, claimed, ending))

    @rule(by=st.sampled_from([5, 24, 9 * 24, 31 * 24]).map(lambda hours: timedelta(hours=hours)), more=st.booleans())
    def time_passes(self, by: timedelta, more: bool) -> None:
        self.run(self.store.database.advance(by * (3 if more else 1)))

    @rule(days=st.sampled_from([3, 29, 31, 70]))
    def leaves_and_comes_back(self, days: int) -> None:
        """Chance alone would seldom stay away for just so long."""
        self.cancel(at_once=True)
        self.run(self.store.database.advance(timedelta(days=days)))
        self.both_say_the_same()
        self.resume()

    @rule(grace=st.integers(1, 27), at_once=st.booleans(), then=st.sampled_from(["pays", "resumes", "stays away"]))
    def pays_late_or_never(self, grace: int, at_once: bool, then: str) -> None:
        """Billed from outside, cancelled in the middle of the grace: chance alone would seldom meet those days."""
        self.cancel(at_once=True)
        self.subscribe("creator", grace)
        plan, now = self.model.plan, self.now()
        assert plan
        assert plan.paid_until
        self.run(self.store.database.advance(plan.paid_until + plan.grace / 2 - now))
        self.cancel(at_once)
        self.a_duty_passes(turn=True)
        self.both_say_the_same()
        if then == "pays":
            self.renewed()
        elif then == "resumes":
            self.resume()

    @rule(data=st.data(), how=endings)
    def charges_back_what_a_job_still_holds(self, data: st.DataObject, how: str) -> None:
        """All there is goes into one job, a purchase is charged back, and only then it ends."""
        self.topup(20, twice=False)
        self.claim(ALL)
        self.chargeback(data)
        if self.jobs:
            self.settle(data, how)

    @rule(turn=st.booleans())
    def a_duty_passes(self, turn: bool) -> None:
        self.model.look(self.now())
        self.run(self.store.operations.do(Turn(self.account) if turn else Expire(self.account)))

    @invariant()
    def both_say_the_same(self) -> None:
        now, model = self.now(), self.model
        balance = self.run(Reads(self.store.engine).balance(self.account))
        buckets = self.run(self.store.buckets(self.account))
        assert (
            model.spendable(now),
            model.spendable(now, "subscription"),
            model.spendable(now, "topup"),
            model.frozen(now),
            model.held,
            model.spent,
            model.debt,
        ) == (
            balance.spendable,
            balance.subscription.available,
            balance.topup.available,
            balance.topup.frozen,
            buckets["held"],
            buckets["spent"],
            balance.debt,
        )

    @invariant()
    def the_auditor_finds_nothing(self) -> None:
        # No scheduler and no worker lives here: leases lapse, and nobody takes them back.
        assert () == self.run(violations(self.store))

    def teardown(self) -> None:
        for claimed in self.jobs.values():
            with suppress(Exception):
                self.run(self.store.settle(self.account, claimed))


async def _awaited(step: Callable[[], Awaitable[Any]]) -> Any:
    return await step()


@pytest.mark.proof
def test_any_story_of_an_account_is_told_alike(told: tuple[asyncio.Runner, Store], whole: bool) -> None:
    """Grants, top-ups, subscriptions in all their turns, chargebacks, jobs that end in every way, and time."""
    stories = as_stories(15, 20, whole=whole)
    run_state_machine_as_test(lambda: Story(*told), settings=stories)  # type: ignore[arg-type]  # any maker
