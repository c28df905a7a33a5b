"""The books' speed: claim and settle on real job rows, and the ledger alone, against pgbench on the same server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import UUID

from benchmarks.crew import Desk, Done, dealt, each, together
from benchmarks.reference import NAME, Reference
from benchmarks.report import Figure, figure_of
from benchmarks.stock import ACTOR, PRICE, JobKey, accounts_made, drift, jobs_queued
from worker.credits.account_ledger import Reservation
from worker.credits.operations import Claim, Claimed, Ended, Settle
from worker.credits.outcomes import Ending
from worker.credits.page import Artifact, Lease, Page
from worker.store.errors import LedgerUnavailable
from worker.store.ids import new_id

#: Jobs under way at a time, over all processes.
IN_FLIGHT = 1_000
#: Connections, and so transactions at a time, of the variant without batches.
SINGLE_CONNECTIONS = 16
PAIRS_A_ROUND = 30_000
OUTPUTS_A_ROUND = 20_000
SINGLES_A_ROUND = 1_500
BARE_A_ROUND = 60_000
REFERENCE_SECONDS = 6


@dataclass(frozen=True, slots=True)
class Hold:
    """Reserve through the ledger alone: no job rows."""

    account_id: str
    reserved_for: UUID
    job_id: None = None

    def decide(self, page: Page) -> Reservation:
        """Never short: the accounts are rich."""
        held = page.ledger.reserve(self.reserved_for, PRICE, ACTOR)
        assert isinstance(held, Reservation)
        return held


@dataclass(frozen=True, slots=True)
class Spend:
    """Commit through the ledger alone. The hold is known from its reserve; the database refuses one that has ended."""

    account_id: str
    held: Reservation
    charged: int
    job_id: None = None

    def spends_all(self, _: Lease | None) -> bool:
        """As a settle that knows its hold."""
        return self.charged == self.held.amount

    def decide(self, page: Page) -> Reservation:
        """What is charged, the rest goes back to its lots."""
        page.ledger.reservations[self.held.job_id] = self.held
        return page.ledger.settle(self.held.job_id, self.charged, Ending.SUCCEEDED, ACTOR)


async def pairs(desk: Desk, part: tuple[Sequence[JobKey], int]) -> int:
    """Claim and settle each job, `in_flight` at a time, batched as the product does."""
    jobs, in_flight = part
    await each(jobs, in_flight, lambda job: _pair(job, desk.operations.do))
    return len(jobs)


async def pairs_with_output(desk: Desk, part: tuple[Sequence[JobKey], int]) -> int:
    """The same jobs, each with an audio file to be registered when it is settled."""
    jobs, in_flight = part
    await each(jobs, in_flight, lambda job: _pair(job, desk.operations.do, outputs=1))
    return len(jobs)


async def singles(desk: Desk, part: tuple[Sequence[JobKey], int]) -> int:
    """The same operations, each in a transaction of its own, waiting for its account."""
    jobs, connections = part
    await each(jobs, connections, lambda job: _pair(job, desk.alone))
    return len(jobs)


async def bare(desk: Desk, part: tuple[Sequence[str], int]) -> int:
    """Reserve and commit once for each account named."""
    return await held_and_spent(part, desk.operations.do, PRICE)


async def held_and_spent(part: tuple[Sequence[str], int], do: Callable[[Any], Any], charged: int) -> int:
    """Reserve, and commit what is charged of it, once for each account named."""

    async def one(account_id: str) -> None:
        held = await do(Hold(account_id, new_id()))
        await do(Spend(account_id, held, charged))

    accounts, in_flight = part
    await each(accounts, in_flight, one)
    return len(accounts)


async def _pair(job: JobKey, do: Callable[[Any], Any], outputs: int = 0) -> None:
    account_id, job_id = job
    token = new_id()  # as the runner makes it
    claimed = None
    while claimed is None:
        with suppress(LedgerUnavailable):  # busy for too long: another hint would bring it back
            claimed = await do(Claim(account_id, job_id, token, "benchmark", 30.0))
    assert isinstance(claimed, Claimed), claimed
    made = [_output(token) for _ in range(outputs)]
    settle = Settle(
        account_id,
        job_id,
        token,
        Ending.SUCCEEDED,
        measured=PRICE,
        outputs=made,
        outputs_due=outputs > 0,
        claimed=claimed,
    )
    ended = await do(settle)
    assert isinstance(ended, Ended), ended


def _output(token: UUID) -> Artifact:
    return Artifact(
        new_id(), "song", "audio/wav", f"outputs/{token}/song.wav", bytes(32), 1_323_000, 44_100, 2, 5_292_044
    )


#: Worker processes, measured on two cores: see README.md.
PROCESSES = 2
SINGLE_PROCESSES = 2
HOT_PROCESSES = 1


def measured(url: str, reference: Reference, rounds: int) -> list[Figure]:
    """All figures of the ledger, each round beside pgbench runs just before and just after.

    Raises `AssertionError` if the books are not exact at the end: then no figure counts.
    """
    accounts = asyncio.run(accounts_made(url))
    taken = [_round(url, accounts, reference) for _ in range(rounds)]
    wrong = asyncio.run(drift(url))
    assert wrong == 0, f"{wrong} lots or reservations are wrong after the benchmark"
    return list(_figures(taken))


@dataclass(frozen=True, slots=True)
class _Round:
    pairs: Done
    outputs: Done
    single: Done
    bare: Done
    hot: Done
    #: tps before each of the five, and after the last.
    tps: tuple[float, ...]

    def beside(self, place: int) -> float:
        return (self.tps[place] + self.tps[place + 1]) / 2


def _round(url: str, accounts: list[str], reference: Reference) -> _Round:
    def tps() -> float:
        return reference.tps(REFERENCE_SECONDS)

    def queued(count: int) -> list[JobKey]:
        return asyncio.run(jobs_queued(url, accounts, count))

    jobs = queued(PAIRS_A_ROUND)
    first = tps()
    of_pairs = together(url, pairs, dealt(jobs, IN_FLIGHT, PROCESSES))
    jobs = queued(OUTPUTS_A_ROUND)
    second = tps()
    of_outputs = together(url, pairs_with_output, dealt(jobs, IN_FLIGHT, PROCESSES))
    jobs = queued(SINGLES_A_ROUND)
    third = tps()
    parts = dealt(jobs, SINGLE_CONNECTIONS, SINGLE_PROCESSES)
    of_singles = together(url, singles, parts, connections=SINGLE_CONNECTIONS // SINGLE_PROCESSES)
    fourth = tps()
    spread = random.choices(accounts, k=BARE_A_ROUND)
    of_bare = together(url, bare, dealt(spread, IN_FLIGHT, PROCESSES))
    fifth = tps()
    of_hot = together(url, bare, dealt(accounts[:1] * BARE_A_ROUND, IN_FLIGHT, HOT_PROCESSES))
    tps_around = (first, second, third, fourth, fifth, tps())
    return _Round(of_pairs, of_outputs, of_singles, of_bare, of_hot, tps_around)


def _figures(rounds: Sequence[_Round]) -> Iterator[Figure]:
    def batches(done: Callable[[_Round], Done]) -> str:
        filled = median(done(one).operations_per_transaction for one in rounds)
        python = median(done(one).python_seconds / done(one).count for one in rounds)
        return f"{filled:.0f} operations a transaction; Python {python * 1e6:,.0f} µs a pair"

    unit = "pairs/s"
    yield Figure("pgbench", median(tps for one in rounds for tps in one.tps), "transactions/s", batches=NAME)
    yield figure_of(
        "ledger_pairs",
        unit,
        [(one.pairs.per_second, one.beside(0)) for one in rounds],
        against="pgbench",
        batches=batches(lambda one: one.pairs),
    )
    yield figure_of(
        "ledger_pairs_output",
        unit,
        [(one.outputs.per_second, one.beside(1)) for one in rounds],
        against="pgbench",
        batches=batches(lambda one: one.outputs),
    )
    yield figure_of(
        "ledger_pairs_single",
        unit,
        [(one.single.per_second, one.beside(2)) for one in rounds],
        against="pgbench",
        batches=f"1 operation a transaction, {SINGLE_CONNECTIONS} connections",
    )
    yield figure_of(
        "ledger_pairs_batched",
        unit,
        [(one.pairs.per_second, one.single.per_second) for one in rounds],
        against="ledger_pairs_single",
        batches=batches(lambda one: one.pairs),
    )
    yield figure_of(
        "ledger_bare",
        unit,
        [(one.bare.per_second, one.beside(3)) for one in rounds],
        against="pgbench",
        batches=batches(lambda one: one.bare),
    )
    yield figure_of(
        "ledger_hot",
        unit,
        [(one.hot.per_second, one.bare.per_second) for one in rounds],
        against="ledger_bare, 10,000 accounts",
        batches=batches(lambda one: one.hot),
    )
