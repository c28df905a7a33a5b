"""Everything that moves credits, at once and from two processes, while cycles end: the books stay exact."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.integration.books import ACTOR, Store, opened, set_clock
from tests.integration.test_subscriptions import ANCHOR, CREATOR, LABEL, STARTER, assert_exact
from tests.servers import Database
from worker.credits.notices import Notify
from worker.credits.operations import Cancel, Claimed, Expire, Wake
from worker.credits.outcomes import Ending
from worker.credits.subscribing import Turn
from worker.store.errors import Conflict, Refused

LONG = 400 * 86_400.0
ACCOUNTS = ("ada", "bob", "cyd")
ENDINGS = (Ending.SUCCEEDED, Ending.ENGINE_ERROR, Ending.INVALID_INPUT, Ending.HANDED_BACK)


async def one_job(store: Store, dice: random.Random, account: str) -> None:
    """A job from its submit to its end, in any of the ways."""
    how = dice.choice(("refuse", "wait"))
    job = await store.queued(account, dice.choice((0, 1, 30, 75, 400, 1250)), on_insufficient=how, job_seconds=LONG)
    claimed = await store.claim_patiently(account, job)
    if isinstance(claimed, Claimed):
        await asyncio.sleep(dice.random() / 20)
        if dice.random() < 0.2:
            await store.operations.do(Cancel(account, job, "no more"))
        ending = dice.choice(ENDINGS)
        more = {"measured": claimed.job.quoted // 2} if ending is Ending.SUCCEEDED and dice.random() < 0.5 else {}
        await store.settle(account, claimed, ending, **more)


def step(store: Store, dice: random.Random, account: str, number: int) -> Awaitable[Any]:
    """One thing that somebody does. References come from few, so that many are told twice."""
    accounts, operations, reference = store.accounts, store.operations, f"r{number % 17}"
    purchase, plan = f"p{dice.randrange(6)}", dice.choice(("starter", "creator", "label"))
    things: list[Callable[[], Awaitable[Any]]] = [
        *(4 * [lambda: one_job(store, dice, account)]),
        lambda: accounts.topup(account, purchase, ACTOR, amount=100),
        lambda: accounts.chargeback(account, purchase, ACTOR),
        lambda: accounts.grant(account, 20, f"g{number % 5}", ACTOR),
        lambda: accounts.change(account, plan, reference, ACTOR),
        lambda: accounts.cancel(account, reference, ACTOR, at_once=dice.random() < 0.5),
        lambda: accounts.resume(account, reference, ACTOR),
        lambda: accounts.renewed(account, f"paid{number % 7}", ACTOR),
        lambda: operations.do(dice.choice((Turn, Expire, Wake))(account)),
        lambda: operations.do(Notify(account, 3)),
    ]
    return dice.choice(things)()


@pytest.mark.parametrize("seed", [1, 2])
async def test_all_that_moves_credits_at_once_keeps_the_books_exact(database: Database, seed: int) -> None:
    """No cycle, purchase or gift comes twice, nothing is paid twice, and no job that fits is left waiting."""
    dice = random.Random(seed)
    async with opened(database) as one, opened(database) as other:
        await set_clock(one, ANCHOR)
        for account in ACCOUNTS:
            await one.account(account)
            renewal: dict[str, Any] = {"renewal": "external", "grace_days": 5} if account == "bob" else {}
            await one.accounts.subscribe(account, "creator", "start", ACTOR, **renewal)
        number = 0
        for days in (10, 11, 8, 2, 31, 45):
            steps = [step((one, other)[n % 2], dice, dice.choice(ACCOUNTS), number + n) for n in range(50)]
            number += len(steps)
            for answer in await asyncio.gather(*steps, return_exceptions=True):
                assert answer is None or not isinstance(answer, Exception) or isinstance(answer, Refused | Conflict)
            await assert_exact(one)
            await assert_nothing_twice(one)
            await assert_nobody_waits_in_vain(one)
            await one.database.advance(timedelta(days=days))


async def assert_nothing_twice(store: Store) -> None:
    """A cycle is granted its largest plan at most, and each reference one lot."""
    rows = await store.fetch(
        "SELECT c.granted_total, coalesce(sum(l.granted), 0)::bigint AS granted FROM cycles AS c LEFT JOIN lots AS l "
        "ON l.account_id = c.account_id AND l.cycle_starts_at = c.starts_at GROUP BY c.account_id, c.starts_at"
    )
    assert all(row["granted"] == row["granted_total"] for row in rows)
    assert {row["granted"] for row in rows} <= {0, STARTER, CREATOR, LABEL}
    assert 0 == await store.value(
        "SELECT count(*) FROM (SELECT 1 FROM lots WHERE reference IS NOT NULL "
        "GROUP BY account_id, source, reference HAVING count(*) > 1) AS twice"
    )


async def assert_nobody_waits_in_vain(store: Store) -> None:
    """When all that may run has run, the safety net finds nobody whom whoever brought credits had forgotten."""
    while due := await store.fetch("SELECT account_id, job_id FROM due WHERE not_before <= fermata_now()"):
        for account, job in due:
            claimed = await store.claim_patiently(account, job)
            if isinstance(claimed, Claimed):
                await store.settle(account, claimed)
    for account in ACCOUNTS:
        await store.operations.do(Turn(account))
        before = await store.value("SELECT count(*) FROM parked WHERE account_id = $1", account)
        await store.operations.do(Wake(account))
        assert before == await store.value("SELECT count(*) FROM parked WHERE account_id = $1", account)
