"""What billing does with subscriptions. Each step is one transaction, idempotent by the caller's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits import subscriptions as life
from worker.credits.page import Page
from worker.credits.plans import Plan, PlanBook
from worker.credits.subscribing import take, upcoming_plan
from worker.credits.subscriptions import NotPossible, Renewal, Step, Subscription
from worker.store.books import Books
from worker.store.database import tried_again
from worker.store.errors import Conflict, Refused
from worker.store.references import check_actor, check_reference


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription after a step. `credits`: what the step granted. `replayed`: it was done before, so named.

    `given_up_from`, `given_up_until`: months that were paid for ahead and that an end at once gave up. The step that
    comes back after it says it, too: they do not come back with it.
    """

    account_id: str
    plan: str
    credits: int
    cycle_ends_at: datetime
    reference: str
    replayed: bool
    next_plan: str | None = None
    active_until: datetime | None = None
    next_refill_at: datetime | None = None
    given_up_from: datetime | None = None
    given_up_until: datetime | None = None


#: The page and the plans on sale -> what is to be done.
Decide = Callable[[Page, PlanBook], Step]


class Subscriptions:
    """Subscribe, change, cancel, resume, renew."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def subscribe(
        self, account_id: str, plan: str, reference: str, actor: str, *, renewal: str = "automatic", grace_days: int = 0
    ) -> Subscribed:
        """Begin a subscription now: its first cycle starts and its credits are there.

        With `external` renewal each further cycle waits for a `renewed`, until `grace_days` after the last one's end.
        On an account whose subscription has lapsed it goes on in its last cycle while that runs. Raises `Refused` for
        an unknown plan or an account that is subscribed, `Conflict` for a reference that was used for another step.
        """
        if renewal not in tuple(Renewal):
            raise Refused("renewal", f"must be {' or '.join(Renewal)}")
        way, grace = Renewal(renewal), timedelta(days=grace_days)

        def decide(page: Page, sold: PlanBook) -> Step:
            chosen, before = _on_sale(sold, plan), page.subscription
            fresh = life.begun(chosen, page.now, way, grace)
            if before is None:
                return fresh
            if not before.lapsed_by(page.now):
                raise Refused("account", f"{account_id} has a subscription already")
            return life.subscribed_again(replace(before, renewal=way, grace=grace), chosen, page.now)

        asked = {"plan": plan, "renewal": renewal, "grace_days": grace_days}
        return await self._step(account_id, "subscribe", asked, reference, actor, decide)

    async def change(self, account_id: str, plan: str, reference: str, actor: str) -> Subscribed:
        """Another plan: a larger one at once, a smaller one from the next cycle, its own keeps it as it is.

        Raises `Refused` for an unknown plan, a subscription that has lapsed or has that plan already.
        """

        def decide(page: Page, sold: PlanBook) -> Step:
            current = _subscription(page)
            wanted = page.terms[plan] if plan == current.plan else _on_sale(sold, plan)
            return life.changed(current, page.terms[current.plan], wanted, page.now)

        return await self._step(account_id, "change", {"plan": plan}, reference, actor, decide)

    async def cancel(self, account_id: str, reference: str, actor: str, *, at_once: bool = False) -> Subscribed:
        """No further cycle: it runs to the end of all that is paid for, or ends `at_once`. Raises `Refused`."""

        def decide(page: Page, _: PlanBook) -> Step:
            return life.cancelled(_subscription(page), page.now, at_once=at_once)

        return await self._step(account_id, "cancel", {"at_once": at_once}, reference, actor, decide)

    async def resume(self, account_id: str, reference: str, actor: str, *, plan: str | None = None) -> Subscribed:
        """Go on after a cancel or a lapse, with the plan it had or another; frozen top-ups thaw within their grace.

        While its last cycle runs it keeps its anchor. An external one whose month is over waits for its payment in
        what is left of its grace. Raises `Refused` where there is nothing to resume, or nothing but a payment would.
        """

        def decide(page: Page, sold: PlanBook) -> Step:
            current = _subscription(page)
            name = plan or (current.plan if current.runs_at(page.now) else upcoming_plan(current))
            chosen = _on_sale(sold, name) if plan is not None else page.terms[name]
            return life.resumed(current, chosen, page.now)

        return await self._step(account_id, "resume", {"plan": plan}, reference, actor, decide)

    async def renewed(self, account_id: str, reference: str, actor: str) -> Subscribed:
        """External billing has been paid for one more cycle: granted now if it is due, else in its time.

        Raises `Refused` for a subscription that renews by itself.
        """

        def decide(page: Page, _: PlanBook) -> Step:
            current = _subscription(page)
            return life.renewed(current, page.terms[upcoming_plan(current)], page.now)

        return await self._step(account_id, "renewed", {}, reference, actor, decide)

    @tried_again
    async def _step(
        self, account_id: str, what: str, asked: Mapping[str, Any], reference: str, actor: str, decide: Decide
    ) -> Subscribed:
        check_reference(reference)
        check_actor(actor)
        async with self._books.page(account_id) as (connection, page):
            before = await _done_before(connection, account_id, reference)
            if before is not None:
                if (before["what"], before["asked"]) != (what, asked):
                    raise Conflict("reference", reference, f"was used before, for another step ({before['what']})")
                return msgspec.convert({**before["answer"], "replayed": True}, Subscribed)
            try:
                step = decide(page, await self._books.plan_books.current(connection))
            except NotPossible as problem:
                raise Refused("subscription", str(problem)) from None
            given_up = await _given_up(connection, page, step)
            take(page, step, actor)
            answer = _answer(account_id, step, reference, given_up)
            body = {"what": what, "asked": asked, "answer": answer}
            await connection.execute(
                _REMEMBER,
                {
                    "account": account_id,
                    "reference": reference,
                    "what": what,
                    "body": msgspec.json.encode(body).decode(),
                    "now": page.now,
                    "actor": actor,
                },
            )
        return answer


#: Since when and until when paid months are given up, if any are.
GivenUp = tuple[datetime | None, datetime | None]


def _answer(account_id: str, step: Step, reference: str, given_up: GivenUp) -> Subscribed:
    after = step.after
    return Subscribed(
        account_id,
        after.plan,
        step.credits,
        after.cycle_ends_at,
        reference,
        replayed=False,
        next_plan=after.next_plan,
        active_until=after.active_until,
        next_refill_at=after.turns_at,
        given_up_from=given_up[0],
        given_up_until=given_up[1],
    )


async def _given_up(connection: AsyncConnection, page: Page, step: Step) -> GivenUp:
    """By this step; or by the cancel that it takes back, which has told then."""
    cancelled_at = page.subscription and page.subscription.cancelled_at
    if not cancelled_at or step.after.cancelled_at is not None:
        return step.given_up_from, step.given_up_until
    told = await connection.scalar(_CANCEL_TOLD, {"account": page.account_id, "at": cancelled_at})
    before = msgspec.convert(told or {}, Told)
    return before.given_up_from, before.given_up_until


class Told(msgspec.Struct):
    """What of an earlier answer still counts; answers of before it was told have none of it."""

    given_up_from: datetime | None = None
    given_up_until: datetime | None = None


def _subscription(page: Page) -> Subscription:
    if page.subscription is None:
        raise Refused("account", f"{page.account_id} has no subscription")
    return page.subscription


def _on_sale(sold: PlanBook, name: str) -> Plan:
    if name not in sold.plans:
        raise Refused("plan", f"no plan {name!r}; there are {', '.join(sorted(sold.plans))}")
    return sold.plans[name]


async def _done_before(connection: AsyncConnection, account_id: str, reference: str) -> dict[str, Any] | None:
    body: Any = await connection.scalar(_DONE_BEFORE, {"account": account_id, "reference": reference})
    return None if body is None else dict(body)


_DONE_BEFORE = text("""
    SELECT body
    FROM subscription_changes
    WHERE account_id = :account
      AND reference = :reference
""")

_CANCEL_TOLD = text("""
    SELECT body -> 'answer'
    FROM subscription_changes
    WHERE account_id = :account
      AND what = 'cancel'
      AND at = :at
""")

_REMEMBER = text("""
    INSERT INTO subscription_changes (account_id, reference, what, body, at, actor)
    VALUES (:account, :reference, :what, CAST(:body AS jsonb), :now, :actor)
""")
