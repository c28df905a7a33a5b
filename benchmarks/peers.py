"""Another ledger beside ours: hf-nostro of PyPI, in a database of its own on the same server, with fsync as ours.

It has no holds, and a reversal undoes an entry whole. What comes nearest to "reserve 12, commit 8, return 4":

- `credit`: debit 12 before the work, credit 4 after it. Two calls, two transactions, the cheapest that one can do with
  it; the 4 come back as a lot of their own, not to the lots that paid.
- `exact`: debit 12 before the work; after it, in one transaction of the caller's (`cur=`), reverse that and debit 8.
  The lots are right, as with ours.

Ours is reserve and commit of 8 through the ledger alone, once with one transaction each on as many connections, once
batched as the product does it. Each figure's reference is hf-nostro's faster way, measured just before it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import monotonic
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids
import uvloop
from nostro import AsyncLedger
from nostro.migrate import migrate
from psycopg_pool import AsyncConnectionPool

from benchmarks.crew import Desk, Done, dealt, each, together
from benchmarks.ledger import IN_FLIGHT, PROCESSES, held_and_spent
from benchmarks.report import Figure, figure_of
from benchmarks.server import made_database
from benchmarks.stock import CREDITS, PRICE, accounts_made, drift
from worker.local.postgres import EmbeddedPostgres
from worker.local.roles import dsn
from worker.local.waiting import finished

DATABASE = "nostro"
ACCOUNTS = 2_000
#: What of the 12 that are held is charged.
CHARGED = 8
#: Connections in all, as `ledger_pairs_single` has them.
CONNECTIONS = 16
PAIRS_A_ROUND, BATCHED_A_ROUND = 1_500, 30_000


def measured(url: str, postgres: EmbeddedPostgres, rounds: int) -> list[Figure]:
    """Pairs a second of both, each round one after the other. Raises `AssertionError` if our books are not exact."""
    peer_url = dsn(postgres.url("postgres", DATABASE))
    finished(made_database(postgres.superuser_url, DATABASE))
    migrate(dsn=peer_url, scale=0)
    peer_accounts = uvloop.run(_peer_accounts(peer_url))
    accounts = asyncio.run(accounts_made(url, ACCOUNTS))
    taken = [_round(url, accounts, peer_url, peer_accounts) for _ in range(rounds)]
    wrong = asyncio.run(drift(url))
    assert wrong == 0, f"{wrong} lots or reservations are wrong after the benchmark"
    return list(_figures(taken))


async def part_of_it(desk: Desk, part: tuple[Sequence[str], int]) -> int:
    """Reserve and commit a part once for each account named, batched."""
    return await held_and_spent(part, desk.operations.do, CHARGED)


async def part_of_it_single(desk: Desk, part: tuple[Sequence[str], int]) -> int:
    """The same, one transaction each."""
    return await held_and_spent(part, desk.alone, CHARGED)


@dataclass(frozen=True, slots=True)
class _Round:
    credit: float
    exact: float
    single: Done
    batched: Done

    @property
    def peer(self) -> float:
        """hf-nostro's faster way."""
        return max(self.credit, self.exact)


def _round(url: str, accounts: Sequence[str], peer_url: str, peer_accounts: Sequence[UUID]) -> _Round:
    credit, exact = (_peer(peer_url, _over(peer_accounts, PAIRS_A_ROUND), way) for way in (_credited, _exact))
    parts = dealt(_over(accounts, PAIRS_A_ROUND), CONNECTIONS, PROCESSES)
    single = together(url, part_of_it_single, parts, connections=CONNECTIONS // PROCESSES)
    batched = together(url, part_of_it, dealt(_over(accounts, BATCHED_A_ROUND), IN_FLIGHT, PROCESSES))
    return _Round(credit, exact, single, batched)


def _over(things: Sequence[Any], count: int) -> list[Any]:
    """Each in turn, so that neighbours in time never meet on one account."""
    return [things[place % len(things)] for place in range(count)]


def _figures(rounds: Sequence[_Round]) -> Iterator[Figure]:
    unit, connections = "pairs/s", f"{CONNECTIONS} connections"
    ways = {
        "nostro_credit": [(one.credit, one.single.per_second) for one in rounds],
        "nostro_exact": [(one.exact, one.single.per_second) for one in rounds],
    }
    for name, pairs in ways.items():
        yield figure_of(name, unit, pairs, against="ledger_part_single", batches=f"hf-nostro, {connections}")
    yield figure_of(
        "ledger_part_single",
        unit,
        [(one.single.per_second, one.peer) for one in rounds],
        against="hf-nostro, its faster way",
        batches=f"1 operation a transaction, {connections}; {CHARGED} of {PRICE} charged",
    )
    filled = median(one.batched.operations_per_transaction for one in rounds)
    yield figure_of(
        "ledger_part",
        unit,
        [(one.batched.per_second, one.peer) for one in rounds],
        against="hf-nostro, its faster way",
        batches=f"{filled:.0f} operations a transaction; {CHARGED} of {PRICE} charged",
    )


# --- the peer

#: One pair: the ledger, its pool, an account, a key that was never used.
Way = Callable[[AsyncLedger, "AsyncConnectionPool[Any]", UUID, str], Awaitable[None]]


async def _credited(ledger: AsyncLedger, _: AsyncConnectionPool[Any], account: UUID, key: str) -> None:
    await ledger.debit(account, ledger.amount(PRICE), category="job", idempotency_key=key)
    rest = ledger.amount(PRICE - CHARGED)
    await ledger.credit(account, rest, category="unused", idempotency_key=f"{key}-rest")


async def _exact(ledger: AsyncLedger, pool: AsyncConnectionPool[Any], account: UUID, key: str) -> None:
    held = await ledger.debit(account, ledger.amount(PRICE), category="hold", idempotency_key=key)
    async with pool.connection() as connection, connection.cursor() as cursor:
        await ledger.reverse(held, category="settled", idempotency_key=f"{key}-back", cur=cursor)
        used = ledger.amount(CHARGED)
        await ledger.debit(account, used, category="job", idempotency_key=f"{key}-used", cur=cursor)


def _peer(url: str, accounts: Sequence[UUID], way: Way) -> float:
    """Pairs a second, over as many processes as ours."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(PROCESSES), context.SimpleQueue()
    processes = [
        context.Process(target=_peer_process, args=(url, part, way, barrier, queue), daemon=True)
        for part in dealt(accounts, CONNECTIONS, PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "hf-nostro's process fell, see above"
    times: list[tuple[float, float]] = [queue.get() for _ in processes]
    started, ended = min(started for started, _ in times), max(ended for _, ended in times)
    return len(accounts) / (ended - started)


def _peer_process(url: str, part: tuple[Sequence[UUID], int], way: Way, barrier: Any, answer: Any) -> None:
    answer.put(uvloop.run(_peer_worked(url, part, way, barrier)))


async def _peer_worked(url: str, part: tuple[Sequence[UUID], int], way: Way, barrier: Any) -> tuple[float, float]:
    accounts, connections = part
    async with AsyncConnectionPool(url, min_size=connections, max_size=connections, open=False) as pool:
        await pool.wait()
        ledger = AsyncLedger(pool=pool, scale=0)
        await ledger.balance(accounts[0])  # it checks its schema once
        await asyncio.to_thread(barrier.wait, 60)
        started = monotonic()
        await each(accounts, connections, lambda account: way(ledger, pool, account, uuids.uuid7().hex))
        return started, monotonic()


async def _peer_accounts(url: str) -> list[UUID]:
    """Accounts as ours have them: every second with two lots."""
    async with AsyncConnectionPool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False) as pool:
        ledger = AsyncLedger(pool=pool, scale=0)
        made: list[UUID] = []

        async def one(number: int) -> None:
            account = await ledger.accounts.get_or_create("benchmark", f"customer-{number:05d}")
            for key in ("cycle", "topup")[: 1 + number % 2]:
                await ledger.credit(account, ledger.amount(CREDITS), category="start", idempotency_key=key)
            made.append(account.id)

        await each(range(ACCOUNTS), CONNECTIONS, one)
        return made
