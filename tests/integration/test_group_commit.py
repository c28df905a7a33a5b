"""Group commit: together when busy, at once when idle, and nobody pays for a neighbour's trouble.

The first half runs against a made-up `apply`, the second on a real PostgreSQL that is locked, frozen and cut off.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import psutil
import pytest
import uuid_utils.compat as uuids
from structlog.testing import capture_logs

from tests.integration.books import ACTOR, Store, opened
from tests.integration.frozen import IDLE_SECONDS
from tests.integration.proxy import wired
from tests.servers import Database
from worker.credits.account_ledger import NewLot
from worker.credits.lots import BrokenInvariant, LotSource
from worker.credits.operations import Claimed, Ended, Fenced, Settle
from worker.credits.outcomes import Ending
from worker.credits.page import Page
from worker.store.database import TRANSIENT_TRIES, Transient
from worker.store.errors import AccountBusy, LedgerUnavailable, LedgerUnfit, OutcomeUnknown, RefusedByDatabase
from worker.store.group_commit import Busy, GroupCommit
from worker.store.leases import Held, Standing


async def until(condition: Callable[[], Awaitable[object]], what: str, seconds: float = 10) -> None:
    """Wait for a condition, not for a time."""
    deadline = monotonic() + seconds
    while not await condition():
        assert monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)


# --- the batches themselves ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """An operation that only has a name. `key` may be shared by several."""

    name: int
    account_id: str = "ada"
    key: Any = None


@dataclass(slots=True)
class Ledger:
    """A made-up `apply`: notes each batch, answers by name, and waits at the gate while it is shut."""

    answer: Callable[[Sequence[Step], bool], list[Any]] = lambda steps, _: [step.name for step in steps]
    batches: list[list[int]] = field(default_factory=list)
    waited: list[bool] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def apply(self, steps: Sequence[Step], wait: bool) -> list[Any]:
        self.batches.append([step.name for step in steps])
        self.waited.append(wait)
        self.reached.set()
        await asyncio.sleep(0)
        await self.gate.wait()
        return self.answer(steps, wait)


def batching(ledger: Ledger, **more: Any) -> GroupCommit[Step]:
    return GroupCommit(ledger.apply, key=lambda step: step.key, **more)


async def outcomes(commit: GroupCommit[Step], steps: Sequence[Step]) -> list[Any]:
    """Every answer or error, in order. Nobody waits for ever."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*(commit.do(step) for step in steps), return_exceptions=True)


async def test_what_is_started_together_travels_together() -> None:
    """One transaction, in the order of their start; each gets its own answer."""
    ledger = Ledger()
    assert list(range(10)) == await outcomes(batching(ledger), [Step(n) for n in range(10)])
    assert [list(range(10))] == ledger.batches


async def test_what_comes_while_one_is_under_way_travels_in_the_next() -> None:
    """An idle process waits for nobody; a busy one pays one COMMIT for all that came meanwhile."""
    ledger = Ledger()
    commit = batching(ledger)
    ledger.gate.clear()
    tasks = [asyncio.create_task(commit.do(Step(0)))]
    await ledger.reached.wait()
    tasks += [asyncio.create_task(commit.do(Step(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    ledger.gate.set()
    assert [0, 1, 2, 3] == await asyncio.gather(*tasks)
    assert [[0], [1, 2, 3]] == ledger.batches
    assert 2.0 == commit.figures.operations_per_transaction


async def test_a_batch_has_a_largest_size_and_keeps_the_order() -> None:
    """First come, first served, over several transactions."""
    ledger = Ledger()
    await outcomes(batching(ledger, batch_max=4), [Step(n) for n in range(10)])
    assert [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] == ledger.batches


async def test_one_job_travels_once_in_a_transaction() -> None:
    """A second operation on it goes in the next, behind the first and before what came after it."""
    ledger = Ledger()
    steps = [Step(0, key="a"), Step(1, key="a"), Step(2, key="b"), Step(3, key="a"), Step(4), Step(5)]
    assert list(range(6)) == await outcomes(batching(ledger), steps)
    assert [[0, 2, 4, 5], [1], [3]] == ledger.batches


#: Of one operation, maybe: also a table of which only some want something.
BAD = [RefusedByDatabase("a CHECK"), LedgerUnfit("no right"), BrokenInvariant("rows"), KeyError("a bug")]


@pytest.mark.parametrize("bad", [set(), {0}, {6}, {2, 3}, {0, 3, 6}, set(range(7))])
@pytest.mark.parametrize("error", BAD)
async def test_only_the_bad_operations_of_a_refused_batch_fail(bad: set[int], error: Exception) -> None:
    """Whatever turned the batch away: it is halved until the bad ones are alone, and all others go through."""

    def answer(steps: Sequence[Step], _: bool) -> list[Any]:
        if any(step.name in bad for step in steps):
            raise error
        return [step.name for step in steps]

    told = await outcomes(batching(Ledger(answer)), [Step(n) for n in range(7)])
    assert [error if n in bad else n for n in range(7)] == told


async def test_an_error_that_is_an_answer_is_its_callers_alone() -> None:
    """The transaction has committed without it."""
    ledger = Ledger(lambda steps, _: [ValueError("no") if step.name == 1 else step.name for step in steps])
    first, second, third = await outcomes(batching(ledger), [Step(n) for n in range(3)])
    assert (0, ValueError, 2) == (first, type(second), third)
    assert 1 == len(ledger.batches)


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), OutcomeUnknown("cut")])
async def test_nothing_is_tried_twice_that_may_have_happened(error: Exception) -> None:
    """All of the batch are told, at once, and each was sent once."""

    def answer(*_: Any) -> list[Any]:
        raise error

    ledger = Ledger(answer)
    assert [error] * 3 == await outcomes(batching(ledger), [Step(n) for n in range(3)])
    assert [[0, 1, 2]] == ledger.batches


@pytest.mark.parametrize("lost", [1, TRANSIENT_TRIES - 1, TRANSIENT_TRIES])
async def test_who_lost_against_another_transaction_tries_again_a_few_times(lost: int) -> None:
    """Deadlock, serialization: the same batch again, and after the bound `LedgerUnavailable`."""

    def answer(steps: Sequence[Step], _: bool) -> list[Any]:
        if len(ledger.batches) <= lost:
            raise Transient("40P01")
        return [step.name for step in steps]

    ledger = Ledger(answer)
    told = await outcomes(batching(ledger), [Step(0), Step(1)])
    if lost < TRANSIENT_TRIES:
        assert [0, 1] == told
    else:
        assert [LedgerUnavailable] * 2 == [type(one) for one in told]
    assert min(lost + 1, TRANSIENT_TRIES) == len(ledger.batches)


async def test_a_cancelled_caller_takes_nothing_back() -> None:
    """The operation may have been sent; its neighbours never notice."""
    ledger = Ledger()
    commit = batching(ledger)
    ledger.gate.clear()
    tasks = [asyncio.create_task(commit.do(Step(n))) for n in range(3)]
    await ledger.reached.wait()
    tasks[1].cancel()
    ledger.gate.set()
    assert [0, 2] == [await tasks[0], await tasks[2]]
    assert tasks[1].cancelled() or tasks[1].cancelling()
    assert [[0, 1, 2]] == ledger.batches


async def test_close_waits_for_what_is_under_way() -> None:
    """Nothing is left half done at the end of a process."""
    ledger = Ledger()
    commit = batching(ledger)
    tasks = [asyncio.create_task(commit.do(Step(n))) for n in range(3)]
    await asyncio.sleep(0)
    await commit.close()
    assert all(task.done() or not task.cancelled() for task in tasks)
    assert [0, 1, 2] == await asyncio.gather(*tasks)


async def test_who_was_busy_goes_alone_after_a_while_and_waits() -> None:
    """Skipped in the rounds of the others first, then in a transaction of its own that waits for the lock."""
    ledger = Ledger(
        lambda steps, wait: [Busy.BUSY if step.account_id == "held" and not wait else step.name for step in steps]
    )
    commit = batching(ledger, busy_alone_seconds=0.02)
    told = await outcomes(commit, [Step(0, "held"), Step(1, "free"), Step(2, "held")])
    assert [0, 1, 2] == told
    assert ([[0, 2]], 1) == ([batch for batch, wait in zip(ledger.batches, ledger.waited, strict=True) if wait], 1)
    assert commit.figures.alone == 1 < commit.figures.transactions


async def test_alone_too_only_the_bad_operation_fails() -> None:
    """Its neighbours on the account were dropped for its sake, and go again."""

    def answer(steps: Sequence[Step], wait: bool) -> list[Any]:
        if not wait:
            return [Busy.BUSY] * len(steps)
        bad = [step for step in steps if step.name in (0, 1)][:1]
        return [ValueError(step.name) if step in bad else Busy.BUSY if bad else step.name for step in steps]

    told = await outcomes(batching(Ledger(answer), busy_alone_seconds=0.0), [Step(n) for n in range(4)])
    assert [ValueError, ValueError, 2, 3] == [type(one) if isinstance(one, Exception) else one for one in told]


async def test_an_account_that_cannot_be_had_is_given_up() -> None:
    """With an error that says so, not by waiting for ever."""
    ledger = Ledger(lambda steps, _: [Busy.BUSY] * len(steps))
    (told,) = await outcomes(batching(ledger, busy_alone_seconds=0.0), [Step(0)])
    assert isinstance(told, LedgerUnavailable)


@pytest.mark.parametrize("alone", [False, True])
async def test_a_transaction_that_is_broken_off_leaves_nobody_waiting(*, alone: bool) -> None:
    """A driver that is torn down raises what a cancelled task does. Its batch is told, and the account goes on."""
    broken = iter([True])

    def answer(steps: Sequence[Step], wait: bool) -> list[Any]:
        if alone and not wait:
            return [Busy.BUSY] * len(steps)
        if next(broken, False):
            raise asyncio.CancelledError
        return [step.name for step in steps]

    commit = batching(Ledger(answer), busy_alone_seconds=0.0, batch_max=2)
    told = await outcomes(commit, [Step(n) for n in range(3)])
    assert [OutcomeUnknown, OutcomeUnknown, 2] == [type(one) if isinstance(one, Exception) else one for one in told]
    assert [3] == await outcomes(commit, [Step(3)])


@pytest.mark.parametrize("alone", [False, True])
async def test_a_mistake_of_our_own_after_a_transaction_leaves_nobody_waiting(*, alone: bool) -> None:
    """Nobody knows then what was written: that is the batch's answer, with the reason; later operations run."""
    answers: Iterator[list[Any]] = iter([[]])  # one answer too few

    def answer(steps: Sequence[Step], wait: bool) -> list[Any]:
        return [Busy.BUSY] * len(steps) if alone and not wait else next(answers, [step.name for step in steps])

    commit = batching(Ledger(answer), busy_alone_seconds=0.0)
    with capture_logs() as lines:
        (told,) = await outcomes(commit, [Step(0)])
    assert (OutcomeUnknown, ValueError) == (type(told), type(told.__cause__))
    assert [("a batch was not answered", "error", 1)] == [
        (line["event"], line["log_level"], line["operations"]) for line in lines
    ]
    assert [1] == await outcomes(commit, [Step(1)])


async def test_whoever_waits_is_told_when_the_process_ends() -> None:
    """The loop's end cancels what is under way: not one answer stays out."""
    ledger = Ledger()
    commit = batching(ledger)
    ledger.gate.clear()
    answer = commit.start(Step(0))
    await ledger.reached.wait()
    (draining,) = [task for task in asyncio.all_tasks() if "_drain" in repr(task.get_coro())]
    draining.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(OutcomeUnknown):
            await answer
        await asyncio.wait([draining])
    assert draining.cancelled()


async def test_only_a_few_transactions_wait_for_locks_at_a_time() -> None:
    """Each holds a connection: hundreds of held accounts must leave the pool to the others."""
    held, three = asyncio.Event(), asyncio.Event()
    alone = most = 0

    async def apply(steps: Sequence[Step], wait: bool) -> list[Any]:
        nonlocal alone, most
        await asyncio.sleep(0)
        if wait:
            alone += 1
            most = max(most, alone)
            if alone == 3:
                three.set()
            await held.wait()
            alone -= 1
            return [step.name for step in steps]
        return [step.name if step.account_id == "free" or held.is_set() else Busy.BUSY for step in steps]

    commit: GroupCommit[Step] = GroupCommit(apply, batch_max=8, busy_alone_seconds=0.01, alone_max=3)
    async with asyncio.timeout(10):
        waiting = [asyncio.create_task(commit.do(Step(n, f"held-{n}"))) for n in range(40)]
        await three.wait()
        for n in range(20):  # though more wait than fit in a batch
            assert n == await commit.do(Step(n, "free"))
        held.set()
        assert list(range(40)) == await asyncio.gather(*waiting)
    assert 3 == most


# --- bad neighbours on a real PostgreSQL -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """A well-behaved operation."""

    account_id: str
    amount: int = 5
    job_id: UUID | None = None

    def decide(self, page: Page) -> int:
        page.ledger.grant(self.amount, NewLot(LotSource.GRANT, "grant"), None, "test")
        return self.amount


@dataclass(frozen=True, slots=True)
class Raise:
    """Moves credits, then finds that it should not have."""

    account_id: str
    job_id: UUID | None = None

    def decide(self, page: Page) -> None:
        page.ledger.grant(1_000, NewLot(LotSource.GRANT, "grant"), None, "test")
        raise BrokenInvariant("a bug, found in time")


@dataclass(frozen=True, slots=True)
class BreakCheck:
    """A bug that our guards let through, and the schema does not: two make-goods for one job."""

    account_id: str
    job_id: UUID

    def decide(self, page: Page) -> None:
        for _ in range(2):
            page.ledger.grant(1_000, NewLot(LotSource.GRANT, "make_good", job_id=self.job_id), None, "test")


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Text that PostgreSQL can't store."""

    account_id: str
    text: str
    job_id: UUID | None = None

    def decide(self, page: Page) -> None:
        page.ledger.grant(1_000, NewLot(LotSource.GRANT, self.text), None, "test")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Raise("a"), BrokenInvariant),
        (BreakCheck("a", UUID(int=1)), RefusedByDatabase),
        (Unwritable("a", "nul \0"), RefusedByDatabase),
        (Unwritable("a", "half \ud800"), RefusedByDatabase),
    ],
    ids=["raises", "breaks a rule of the schema", "a NUL", "half a character"],
)
async def test_one_bad_operation_fails_none_of_its_neighbours(database: Database, bad: Any, error: type) -> None:
    """Neither on its own account nor on others, in the same batch; and nothing of it is kept."""
    async with opened(database) as store:
        for account in "abc":
            await store.account(account)
        batch = [Grant("a"), Grant("b"), bad, Grant("a"), Grant("c"), Grant("a")]
        told = await asyncio.gather(*map(store.operations.do, batch), return_exceptions=True)
        assert [5, 5, error, 5, 5, 5] == [type(one) if isinstance(one, Exception) else one for one in told]
        assert [15, 5, 5] == [(await store.buckets(account))["available"] for account in "abc"]
        assert 5 == await store.value("SELECT count(*) FROM journal")


async def test_the_name_of_a_broken_rule_is_told_and_no_value(database: Database) -> None:
    """What leaves the store names the constraint; the row stays inside."""
    async with opened(database) as store:
        await store.account("a")
        with pytest.raises(RefusedByDatabase, match="lots_make_good") as refused:
            await store.operations.do(BreakCheck("a", UUID(int=1)))
        assert "00000000" not in str(refused.value)


async def test_an_operation_on_an_account_that_is_not_there_is_its_own_trouble(database: Database) -> None:
    """Its neighbours commit in the same transaction."""
    async with opened(database) as store:
        await store.account("a")
        told = await asyncio.gather(*map(store.operations.do, [Grant("a"), Grant("nobody")]), return_exceptions=True)
        assert [5, "UnknownAccount"] == [type(one).__name__ if isinstance(one, Exception) else one for one in told]
        assert 1 == store.operations.figures.transactions


# --- accounts that others hold ---------------------------------------------------------------------------------


@asynccontextmanager
async def holding(database: Database, *accounts: str) -> AsyncIterator[asyncpg.Connection]:
    """Another session with these accounts locked, in an open transaction that is rolled back at the end."""
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        for account in accounts:
            await connection.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE", account)
        yield connection
        await transaction.rollback()


async def test_a_held_account_delays_itself_only(database: Database) -> None:
    """The others of the batch complete while it is held; it completes once it is free."""
    async with opened(database, busy_alone_seconds=0.05) as store:
        for account in ("held", "x", "y"):
            await store.account(account)
        async with holding(database, "held"), asyncio.timeout(10):
            waiting = asyncio.create_task(store.operations.do(Grant("held")))
            assert [5, 5] == await asyncio.gather(*map(store.operations.do, [Grant("x"), Grant("y")]))
            await until(lambda: _waits_for_lock(store), "the busy one waits alone")
            assert 5 == await store.operations.do(Grant("x"))
            assert not waiting.done()
        assert 5 == await waiting
        assert 1 == store.operations.figures.alone


async def _waits_for_lock(store: Store) -> bool:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(await store.value(sql))


async def test_purchases_for_a_held_account_leave_the_pool_to_others(database: Database) -> None:
    """One of them waits in the database, the others before it, without a connection; all go through in the end."""
    async with opened(database, pool_size=2, connect_seconds=2, lock_timeout_seconds=10) as store:
        await store.account("held")
        await store.account("yan", 10)
        async with holding(database, "held"):
            buys = [
                asyncio.create_task(store.accounts.topup("held", f"p{number}", ACTOR, amount=1)) for number in range(12)
            ]
            await until(lambda: _waits_for_lock(store), "the first one waits")
            await store.running("yan", 10)
            assert not any(buy.done() for buy in buys)
        await asyncio.gather(*buys)
        assert 12 == (await store.buckets("held"))["available"]


async def test_purchases_for_an_account_that_stays_held_are_told_so_in_time(database: Database) -> None:
    """Whoever waits in line waits no longer than for the lock itself; afterwards the same purchases go through."""
    async with opened(database, lock_timeout_seconds=0.2) as store:
        await store.account("held")
        buys = [partial(store.accounts.topup, "held", f"p{number}", ACTOR, amount=1) for number in range(6)]
        async with holding(database, "held"), asyncio.timeout(10):
            told = await asyncio.gather(*(buy() for buy in buys), return_exceptions=True)
        assert 6 == sum(isinstance(one, LedgerUnavailable) for one in told)
        for buy in buys:
            await buy()
        assert 6 == (await store.buckets("held"))["available"]


async def test_an_account_that_stays_held_is_given_up_after_the_lock_timeout(database: Database) -> None:
    """`LedgerUnavailable`: nothing was written, and it works again afterwards."""
    async with opened(database, busy_alone_seconds=0.01, lock_timeout_seconds=0.05) as store:
        await store.account("held")
        async with holding(database, "held"), asyncio.timeout(10):
            with pytest.raises(LedgerUnavailable):
                await store.operations.do(Grant("held"))
            with pytest.raises(LedgerUnavailable):  # also for who moves lots by hand
                await store.accounts.grant("held", 5, "r", "test")
        assert {"available": 0} == {k: v for k, v in (await store.buckets("held")).items() if k == "available"}
        assert 5 == await store.operations.do(Grant("held"))


async def test_many_held_accounts_leave_the_pool_to_the_others(database: Database) -> None:
    """A batch of a frozen worker can hold more accounts than a process has connections."""
    held = [f"held-{n:02}" for n in range(20)]
    async with opened(database, busy_alone_seconds=0.01, pool_size=2, connect_seconds=0.5) as store:
        for account in [*held, "free"]:
            await store.account(account)
        async with holding(database, *held), asyncio.timeout(15):
            waiting = [asyncio.create_task(store.operations.do(Grant(account))) for account in held]
            await until(lambda: _waits_for_lock(store), "the first of them wait alone")
            for _ in range(10):
                assert 5 == await store.operations.do(Grant("free"))
                await store.leases.renew([Held("free", UUID(int=1), UUID(int=2))], 30)
            assert not any(task.done() for task in waiting)
        assert [5] * 20 == await asyncio.gather(*waiting)


async def test_what_was_committed_during_the_wait_for_the_lock_is_seen(database: Database) -> None:
    """Credits that came are spendable, credits that went are not: lots are read after the lock, in a new snapshot."""
    async with opened(database, busy_alone_seconds=0.0) as store:
        for account, before, left in (("rich", 0, 10), ("poor", 10, 0)):
            await store.account(account, before)
            job = await store.queued(account, quoted=10)
            async with holding(database, account) as other:
                claiming = asyncio.create_task(store.claim_patiently(account, job))
                await until(lambda: _waits_for_lock(store), "the claim waits")
                if left:
                    await other.execute(
                        "INSERT INTO lots (account_id, source, granted, available, created_at, reason) "
                        "VALUES ($1, 'grant', 10, 10, now(), 'grant')",
                        account,
                    )
                else:
                    await other.execute("UPDATE lots SET available = 0, revoked = 10 WHERE account_id = $1", account)
                await other.execute("COMMIT")
                await other.execute("BEGIN")
                assert type(await claiming) is (Claimed if left else Ended), account


async def test_a_lot_that_expires_during_the_wait_for_the_lock_is_not_spent(database: Database) -> None:
    """The clock is read once, after the lock."""
    async with opened(database, busy_alone_seconds=0.0) as store:
        later = await store.value("SELECT fermata_now() + interval '1 hour'")
        await store.account("ada", 10, expires_at=later)
        job = await store.queued("ada", quoted=10)
        async with holding(database, "ada"):
            claiming = asyncio.create_task(store.claim_patiently("ada", job))
            await until(lambda: _waits_for_lock(store), "the claim waits")
            async with database.connection() as clock:
                await clock.execute("UPDATE test_clock SET ahead = interval '61 minutes'")
        answer = await claiming
        assert isinstance(answer, Ended)
        assert Ending.INSUFFICIENT_CREDITS is answer.reason


async def test_a_claim_gives_up_a_busy_account_and_its_slot_soon(database: Database) -> None:
    """It waits for one lock at most: another account's job could have the slot. Others' claims don't notice."""
    async with opened(database) as store:
        for account in ("held", "free"):
            await store.account(account, 100)
        held, free = await store.queued("held"), await store.queued("free")
        async with holding(database, "held"):
            refused = asyncio.create_task(store.claim("held", held))
            assert isinstance(await store.claim("free", free), Claimed)
            async with asyncio.timeout(5):
                with pytest.raises(AccountBusy):
                    await refused
        assert isinstance(await store.claim("held", held), Claimed)


@pytest.mark.parametrize("table", ["due", "live"])
async def test_a_row_that_is_held_without_its_account_delays_only_its_job(database: Database, table: str) -> None:
    """A dispatch or a renewal that froze in its transaction holds rows of many accounts."""
    async with opened(database) as store:
        for account in ("ada", "eve"):
            await store.account(account, 100)
        queued, running = await store.queued("ada"), await store.running("ada")
        async with database.connection() as other:
            await other.execute("BEGIN")
            await other.execute(f"SELECT FROM {table} WHERE account_id = 'ada' FOR UPDATE")
            if table == "due":
                blocked: Any = asyncio.create_task(store.claim("ada", queued))
            else:
                blocked = asyncio.create_task(store.settle("ada", running))
            async with asyncio.timeout(2):
                neighbour = await store.running("eve")
                assert isinstance(await store.settle("eve", neighbour), Ended)
            await other.execute("ROLLBACK")
        answer = await asyncio.gather(blocked, return_exceptions=True)
        assert isinstance(answer[0], Claimed | Ended | AccountBusy)


async def test_jobs_are_submitted_while_a_batch_holds_their_account(database: Database) -> None:
    """The batch's lock lets foreign keys through: a submit never waits for a claim or a settle."""
    async with opened(database) as store, database.connection() as other:
        await store.account("ada", 100)
        claimed = await store.running("ada")
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT 1 FROM live FOR UPDATE")
        settling = asyncio.create_task(store.settle("ada", claimed))
        await until(lambda: _waits_for_lock(store), "the settle has the account and waits for the job")
        async with asyncio.timeout(2):
            await store.queued("ada")
        assert not settling.done()
        await transaction.rollback()
        assert 10 == (await settling).charged


async def test_a_deadlock_is_lived_through(database: Database) -> None:
    """Somebody locks in the wrong order: PostgreSQL ends one of the two, and the batch is tried again."""
    async with opened(database) as store:
        await store.account("ada", 100)
        claimed = await store.running("ada")
        async with database.connection() as other:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT 1 FROM live FOR UPDATE")
            settling = asyncio.create_task(store.settle("ada", claimed))
            await until(lambda: _waits_for_lock(store), "the settle has the account and waits for the job")
            await other.execute("SELECT 1 FROM accounts FOR NO KEY UPDATE")  # until the deadlock is found
            await transaction.rollback()
        assert 10 == (await settling).charged
        assert store.operations.figures.transactions > 2


# --- processes and connections that die ------------------------------------------------------------------------


async def test_a_worker_frozen_inside_its_batch_delays_only_the_accounts_it_holds(database: Database) -> None:
    """Others go on at once; the held ones as soon as PostgreSQL has ended its idle session; nothing of it stays."""
    held = [*(f"h{n}" for n in range(12)), "z-last"]
    async with opened(database, busy_alone_seconds=0.02) as store:
        for account in [*held, "free"]:
            await store.account(account)
        frozen = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.frozen", *held),
            env={**os.environ, "FROZEN_URL": database.url},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: _is_stopped(frozen.pid), "the worker froze", 30)
            started = monotonic()
            waiting = [asyncio.create_task(store.operations.do(Grant(account))) for account in held]
            for _ in range(5):
                assert 5 == await store.operations.do(Grant("free"))
            assert monotonic() - started < IDLE_SECONDS / 2
            assert not any(task.done() for task in waiting)
            async with asyncio.timeout(IDLE_SECONDS + 3):
                assert [5] * len(held) == await asyncio.gather(*waiting)
            frozen.send_signal(signal.SIGCONT)
            told, _ = await asyncio.wait_for(frozen.communicate(), 30)
            assert told.decode() in ("LedgerUnavailable", "OutcomeUnknown")
        finally:
            if frozen.returncode is None:
                frozen.kill()
                await frozen.wait()
        assert 5 * len(held) + 25 == await store.value("SELECT sum(available) FROM lots")


async def _is_stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


async def test_a_connection_that_is_killed_inside_its_transaction_writes_nothing(database: Database) -> None:
    """The caller learns that the books are out of reach; the books are exact, and the next try works."""
    async with opened(database) as store:
        await store.account("ada", 100)
        claimed = await store.running("ada")
        async with database.connection() as other:
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT 1 FROM live FOR UPDATE")
            settling = asyncio.create_task(store.settle("ada", claimed))
            await until(lambda: _waits_for_lock(store), "the settle is in its transaction")
            await _terminate(store)
            with pytest.raises((LedgerUnavailable, OutcomeUnknown)):
                await settling
            await transaction.rollback()
        assert {"available": 90, "held": 10} == {k: v for k, v in (await store.buckets("ada")).items() if v}
        assert 10 == (await store.settle("ada", claimed)).charged


async def _terminate(store: Store) -> None:
    """End every session of this store's pool. The app's role may end its own."""
    await store.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'test' AND datname = current_database()"
    )


async def test_a_pool_of_dead_connections_recovers(database: Database) -> None:
    """After a restart every connection is stale: the error is ours, and the next tries find new ones."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await asyncio.gather(*(store.accounts.plans() for _ in range(4)))
        await _terminate(store)
        failures = 0
        for _ in range(10):
            try:
                await store.operations.do(Grant("ada"))
                break
            except (LedgerUnavailable, OutcomeUnknown):
                failures += 1
        else:
            pytest.fail("never recovered")
        assert 105 == (await store.buckets("ada"))["available"]


async def test_calls_that_are_cancelled_anywhere_leave_no_session_behind(database: Database) -> None:
    """Each gift came whole or not at all, no transaction stays open, and the pool goes on working."""
    random = Random(11)
    async with opened(database, pool_size=2) as store:
        await store.account("ada")
        for number in range(60):
            giving = asyncio.create_task(store.accounts.grant("ada", 1, f"r{number}", "test"))
            await asyncio.wait({giving}, timeout=random.uniform(0, 0.03))
            giving.cancel()
            with suppress(asyncio.CancelledError):
                await giving
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        await until(lambda: _none(store, sql), "no transaction is left open")
        came = await store.value("SELECT count(*) FROM lots")
        assert came == await store.value("SELECT count(*) FROM journal") == (await store.buckets("ada"))["available"]
        answers = [await store.accounts.grant("ada", 1, f"r{number}", "test") for number in range(60)]
        assert came == sum(answer.replayed for answer in answers)
        assert 60 == (await store.buckets("ada"))["available"]


async def _none(store: Store, sql: str) -> bool:
    return bool(await store.value(sql) == 0)


async def test_a_lost_answer_to_a_commit_is_told_as_unknown_and_the_token_tells_the_truth(database: Database) -> None:
    """Claim and settle both stood: whoever reads the row by the token learns it."""
    async with wired(database) as wire, opened(wire.database) as store, opened(database) as straight:
        await straight.account("ada", 100)
        job, token = await straight.queued("ada"), uuids.uuid7()
        await store.accounts.plans()
        held = Held("ada", job, token)
        assert Standing.NOT_OURS is await straight.leases.standing(held)
        wire.lose("lose_answer")
        with pytest.raises(OutcomeUnknown):
            await store.claim("ada", job, token)
        assert Standing.RUNNING is await straight.leases.standing(held)
        assert 10 == (await straight.buckets("ada"))["held"]
        wire.lose("lose_answer")
        with pytest.raises(OutcomeUnknown):
            await store.operations.do(Settle("ada", job, token, Ending.CANCELLED_RUNNING))
        assert Standing.SETTLED is await straight.leases.standing(held)
        assert {"available": 100} == {k: v for k, v in (await straight.buckets("ada")).items() if v}
        # Asked again, the settle is fenced: it happened once.
        assert Fenced.FENCED is await store.operations.do(Settle("ada", job, token, Ending.CANCELLED_RUNNING))
        assert 2 == wire.lost


async def test_a_claim_whose_commit_never_arrived_leaves_its_token_without_any_right(database: Database) -> None:
    """Two workers, one job: the first's claim was rolled back unseen. Only the second may renew, settle and reap."""
    async with wired(database) as wire, opened(wire.database) as first, opened(database) as second:
        await second.account("ada", 100)
        job, lost_token = await second.queued("ada"), uuids.uuid7()
        await first.accounts.plans()
        wire.lose("lose_commit")
        with pytest.raises(OutcomeUnknown):
            await first.claim("ada", job, lost_token)
        lost = Held("ada", job, lost_token)
        assert Standing.NOT_OURS is await first.leases.standing(lost)
        # PostgreSQL notices the cut line and rolls back; then the second worker gets the very same attempt number.
        claimed = await second.claim("ada", job)
        assert isinstance(claimed, Claimed)
        assert 1 == claimed.attempt
        renewal = await first.leases.renew([lost], 30)
        assert {lost_token} == renewal.lost
        for ending, more in (
            (Ending.SUCCEEDED, {"measured": 10}),  # settle
            (Ending.HANDED_BACK, {}),  # hand-back
            (Ending.LOST_WORKER, {"reap_grace_seconds": 0.0}),  # reap
        ):
            assert Fenced.FENCED is await first.operations.do(Settle("ada", job, lost_token, ending, **more))
        assert not await first.leases.remember(lost, {"task": 1})
        await first.leases.report([(lost, 0.5, "wrong")])
        assert 0 == await second.value("SELECT progress FROM live")
        assert 10 == (await second.settle("ada", claimed)).charged
        assert {"available": 90, "spent": 10} == {k: v for k, v in (await second.buckets("ada")).items() if v}
        assert 1 == await second.value("SELECT count(*) FROM attempts")


async def test_a_server_that_is_not_there_is_unavailable(database: Database) -> None:
    """Within the connect timeout, as our own error."""
    async with wired(database) as wire:
        nowhere = wire.database
    async with opened(nowhere, connect_seconds=1) as store:
        with pytest.raises(LedgerUnavailable):
            await store.operations.do(Grant("ada"))
        with pytest.raises(LedgerUnavailable):
            await store.accounts.create("ada", "test")
