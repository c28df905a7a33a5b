"""Processes wired as worker processes are, doing their parts of one job of work at the same time."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from time import monotonic, process_time
from typing import Any

import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import load
from worker.collector import calm
from worker.store.books import Books
from worker.store.database import make_engine, reading
from worker.store.group_commit import Figures, GroupCommit
from worker.store.prices import PriceBooks
from worker.store.submits import Submits

#: Longer than any part may take, in seconds.
PATIENCE_SECONDS = 300


@dataclass(slots=True)
class Desk:
    """The store as one worker process has it."""

    engine: AsyncEngine
    books: Books
    operations: GroupCommit[Any]
    submits: GroupCommit[Any]

    @classmethod
    def opened(cls, url: str, *, connections: int | None = None) -> Desk:
        """Bound to the running loop. `connections` None: as many as the settings say."""
        settings = load({}, database_url=url)
        engine = make_engine(settings, name="benchmark", pool_size=connections)
        price_books = PriceBooks()
        books = Books(engine, price_books)
        operations: GroupCommit[Any] = GroupCommit(
            books.apply,
            batch_max=settings.batch_max,
            busy_alone_seconds=settings.busy_alone_seconds,
            key=lambda operation: operation.job_id,
        )
        submits: GroupCommit[Any] = GroupCommit(Submits(engine, price_books).apply, batch_max=settings.batch_max)
        return cls(engine, books, operations, submits)

    async def alone(self, operation: Any) -> Any:
        """One operation in a transaction of its own, waiting for its account."""
        [answer] = await self.books.apply([operation], True)
        return answer

    async def close(self) -> None:
        """Give the connections back."""
        await self.operations.close()
        await self.submits.close()
        await self.engine.dispose()


#: What one process does with its part: returns how many pairs it did.
Work = Callable[[Desk, Any], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Done:
    """What a crew did, from the first start to the last end."""

    count: int
    seconds: float
    transactions: int
    operations: int
    #: Operations whose account another transaction held, and transactions that then waited for one account.
    busy: int
    alone: int
    #: Seconds of processor time that the crew itself used, without PostgreSQL.
    python_seconds: float

    @property
    def per_second(self) -> float:
        """Pairs a second."""
        return self.count / self.seconds

    @property
    def operations_per_transaction(self) -> float:
        """How well the batches were filled."""
        return self.operations / self.transactions if self.transactions else 0.0


def together(url: str, work: Work, parts: Sequence[Any], *, connections: int | None = None) -> Done:
    """Do each part in a process of its own, all started at once. `work` is a function of a module."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(parts))
    processes, ends = [], []
    for part in parts:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(url, work, part, connections, barrier, sending), daemon=True)
        process.start()
        sending.close()  # so that a process that dies is seen as the end of its pipe
        processes.append(process)
        ends.append(receiving)
    told = [receiving.recv() for receiving in ends]
    for process in processes:
        process.join()
    return Done(
        count=sum(count for count, *_ in told),
        seconds=max(ended for _, _, ended, *_ in told) - min(started for _, started, *_ in told),
        python_seconds=sum(python_seconds for _, _, _, python_seconds, _ in told),
        transactions=sum(figures.transactions for *_, figures in told),
        operations=sum(figures.operations for *_, figures in told),
        busy=sum(figures.busy for *_, figures in told),
        alone=sum(figures.alone for *_, figures in told),
    )


async def each(things: Iterable[Any], in_flight: int, do: Callable[[Any], Awaitable[None]]) -> None:
    """Do it with each, so many at a time."""
    waiting = iter(things)

    async def lane() -> None:
        for thing in waiting:
            await do(thing)

    await asyncio.gather(*(lane() for _ in range(in_flight)))


def dealt(things: Sequence[Any], in_flight: int, processes: int) -> list[tuple[Sequence[Any], int]]:
    """The things and the room in flight, dealt out over that many processes."""
    return [(things[number::processes], in_flight // processes) for number in range(processes)]


def _one(url: str, work: Work, part: Any, connections: int | None, barrier: Barrier, answer: Connection) -> None:
    calm()  # as every worker process does
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer.send(runner.run(_worked(url, work, part, connections, barrier)))


async def _worked(
    url: str, work: Work, part: Any, connections: int | None, barrier: Barrier
) -> tuple[int, float, float, float, Figures]:
    desk = Desk.opened(url, connections=connections)
    async with reading(desk.engine):
        pass  # connected before the clock runs
    await asyncio.to_thread(barrier.wait, PATIENCE_SECONDS)
    started, used = monotonic(), process_time()
    count = await work(desk, part)
    ended, used = monotonic(), process_time() - used
    await desk.close()
    return count, started, ended, used, desk.operations.figures
