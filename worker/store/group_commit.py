"""Group commit: what arrives while a transaction is under way travels together in the next one.

An idle process adds no wait; a busy one pays for one COMMIT per batch. One bad operation never fails its
neighbours, and an account that somebody else holds never delays the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import structlog

from worker.store.database import TRANSIENT_TRIES, Transient
from worker.store.errors import AccountBusy, LedgerUnavailable, LedgerUnfit, OutcomeUnknown

log = structlog.get_logger(__name__)


class Operation(Protocol):
    """What can travel in a batch: it concerns one account, and maybe one job."""

    @property
    def account_id(self) -> str: ...


class Hasty(Protocol):
    """An operation that would rather be answered `AccountBusy` than wait for its account again after so long."""

    @property
    def patience_seconds(self) -> float: ...


class Busy(Enum):
    """Another transaction held the account: try again in the next round."""

    BUSY = "busy"


O = TypeVar("O", bound=Operation)  # noqa: E741  an operation


@dataclass(slots=True)
class Figures:
    """What the batches looked like, for benchmarks and metrics."""

    transactions: int = 0
    operations: int = 0
    busy: int = 0
    alone: int = 0

    @property
    def operations_per_transaction(self) -> float:
        return self.operations / self.transactions if self.transactions else 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    operation: Operation
    answer: asyncio.Future[Any]
    since: float
    tries: int = 0
    rounds: int = 0
    key: Hashable = None


#: An operation must have met its account busy this often before it waits in a transaction of its own, which costs as
#: much as a batch of forty. Two busy processes meet by chance in one round of twenty, and again in the next if that
#: comes before the other's COMMIT: with 3 a thousandth of all went alone, and batches were a quarter smaller.
ALONE_ROUNDS_MIN = 6

_BROKEN_OFF = "the transaction was broken off"

#: One transaction over the given operations. Answers one by one: a result, an exception, or `Busy`.
#: `wait` says whether to wait for account locks (bounded by lock_timeout) or to skip busy accounts.
Apply = Callable[[Sequence[Any], bool], Awaitable[list[Any]]]


class GroupCommit(Generic[O]):
    """Batches operations of one process into transactions run by `apply`."""

    def __init__(
        self,
        apply: Apply,
        *,
        batch_max: int = 500,
        busy_alone_seconds: float = 0.1,
        alone_max: int = 2,
        key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        """`key`: at most one operation of the same key travels in one transaction (a job, say).

        `alone_max`: how many transactions may wait for locks at a time. Each holds a connection of the pool, and
        one frozen process can hold hundreds of accounts.
        """
        self._apply = apply
        self._batch_max = batch_max
        self._busy_alone_seconds = busy_alone_seconds
        self._alone_max = alone_max
        self._key = key
        self._pending: deque[_Waiting] = deque()
        self._loop_task: asyncio.Task[None] | None = None
        self._alone: dict[str, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.figures = Figures()
        #: Told how many operations each transaction has, once somebody wants to know.
        self.counts: Callable[[int], object] | None = None

    async def do(self, operation: O) -> Any:
        """The operation's result, once its transaction has committed.

        Raises what the operation raised, `LedgerUnavailable`, or `OutcomeUnknown` if the COMMIT's answer was
        lost, be it by a mistake of ours. Cancelling the caller does not cancel the operation: it may have been
        sent already.
        """
        return await self.start(operation)

    def start(self, operation: O) -> asyncio.Future[Any]:
        """What `do` waits for, for whoever must know the answer even if it is cancelled."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        key = self._key(operation) if self._key else None
        self._pending.append(_Waiting(operation, answer, monotonic(), key=key))
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._drain())
        return answer

    async def close(self) -> None:
        """Wait until everything under way has its answer."""
        while self._tasks or (self._loop_task is not None and not self._loop_task.done()):
            await asyncio.wait([*self._tasks, *([self._loop_task] if self._loop_task else [])])

    async def _drain(self) -> None:
        while True:
            # A turn of the event loop: what was started together, or answered together and goes on, travels together.
            await asyncio.sleep(0)
            if not self._pending:
                return
            batch = self._next_batch()
            busy = await self._run(batch, wait=False)
            if busy:
                self._put_back(busy)
                if len(busy) == len(batch):
                    # Everything is held by others; their COMMIT is milliseconds away.
                    await asyncio.sleep(min(0.005, self._busy_alone_seconds))

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        later: list[_Waiting] = []
        keys: set[Hashable] = set()
        while self._pending and len(batch) < self._batch_max:
            waiting = self._pending.popleft()
            if waiting.key is not None and waiting.key in keys:
                later.append(waiting)
                continue
            keys.add(waiting.key)
            batch.append(waiting)
        self._pending.extendleft(reversed(later))
        return batch

    def _put_back(self, busy: list[_Waiting]) -> None:
        self.figures.busy += len(busy)
        long_ago = monotonic() - self._busy_alone_seconds
        again = []
        for waiting in busy:
            waiting.rounds += 1
            account_id = waiting.operation.account_id
            if account_id in self._alone:
                self._alone[account_id].append(waiting)
            elif waiting.since > long_ago or waiting.rounds < ALONE_ROUNDS_MIN:
                again.append(waiting)
            elif len(self._alone) < self._alone_max:
                self._alone[account_id] = [waiting]
                self._spawn(self._run_alone(account_id))
            else:
                self._pending.append(waiting)  # behind all others: it may be busy for long
        self._pending.extendleft(reversed(again))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_alone(self, account_id: str) -> None:
        """One account's operations in a transaction of their own, waiting for its lock."""
        try:
            while self._alone[account_id]:
                await self._run_next_alone(account_id)
        finally:
            # An account that stayed here would gather operations that nobody runs.
            for one in self._alone.pop(account_id):
                _fail(one, OutcomeUnknown(_BROKEN_OFF))

    async def _run_next_alone(self, account_id: str) -> None:
        waiting = self._alone[account_id]
        self._alone[account_id] = []
        self.figures.alone += 1
        batch: list[_Waiting] = []
        seen: set[Hashable] = set()
        for one in waiting:
            if (one.key is not None and one.key in seen) or len(batch) == self._batch_max:
                self._alone[account_id].append(one)
            else:
                seen.add(one.key)
                batch.append(one)
        busy = await self._run(batch, wait=True)
        if len(busy) < len(batch):
            # Dropped for the sake of a neighbour that raised and has its answer now.
            self._alone[account_id][:0] = busy
            return
        for one in busy:
            _fail(one, LedgerUnavailable(f"account {account_id} is held by another transaction"))

    async def _run(self, batch: list[_Waiting], *, wait: bool) -> list[_Waiting]:
        """One transaction; answers its operations and returns those whose account was busy.

        Whatever happens in it, each has its answer then: who waited for ever would keep an account from its duties.
        """
        try:
            return await self._try(batch, wait=wait)
        except asyncio.CancelledError:
            # The process ends, or a driver was torn down under us.
            for one in batch:
                _fail(one, OutcomeUnknown(_BROKEN_OFF))
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return []
        except Exception as error:
            # A mistake of ours, maybe behind the COMMIT: only the rows know.
            log.exception("a batch was not answered", operations=len(batch))
            unknown = OutcomeUnknown(f"a mistake of our own, {type(error).__name__}")
            unknown.__cause__ = error
            for one in batch:
                _fail(one, unknown)
            return []

    async def _try(self, batch: list[_Waiting], *, wait: bool) -> list[_Waiting]:
        self.figures.transactions += 1
        self.figures.operations += len(batch)
        if self.counts is not None:
            self.counts(len(batch))
        try:
            results = await self._apply([one.operation for one in batch], wait)
        except Transient as error:
            return await self._again(batch, error, wait)
        except LedgerUnfit as error:
            # Maybe of one table that only some of them touch.
            return await self._isolate(batch, error, wait)
        except (LedgerUnavailable, OutcomeUnknown) as error:
            for one in batch:
                _fail(one, error)
            return []
        except Exception as error:
            return await self._isolate(batch, error, wait)
        busy = []
        for one, result in zip(batch, results, strict=True):
            if result is Busy.BUSY:
                busy.append(one)
            elif isinstance(result, Exception):
                _fail(one, result)
            elif not one.answer.done():
                one.answer.set_result(result)
        return busy

    async def _again(self, batch: list[_Waiting], error: Transient, wait: bool) -> list[_Waiting]:
        again = []
        for one in batch:
            one.tries += 1
            if wait and monotonic() - one.since > getattr(one.operation, "patience_seconds", float("inf")):
                _fail(one, AccountBusy(f"account {one.operation.account_id} is held by another transaction"))
            elif one.tries < TRANSIENT_TRIES:
                again.append(one)
            else:
                _fail(one, LedgerUnavailable(f"gave way {one.tries} times ({error})"))
        if not wait or not again:
            return again
        return await self._run(again, wait=True)

    async def _isolate(self, batch: list[_Waiting], error: Exception, wait: bool) -> list[_Waiting]:
        """The whole batch was turned away, maybe for one operation's sake: halve it until that one is alone."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return []
        middle = len(batch) // 2
        return [
            *await self._run(batch[:middle], wait=wait),
            *await self._run(batch[middle:], wait=wait),
        ]


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
