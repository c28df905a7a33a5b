"""The slots of one worker process: how many jobs run at once, apart from dramatiq's threads.

A slot is an asyncio task. Everything here runs on the event loop, except `free`, `closed` and `freed`, which any
thread may read: the consumer threads fetch hints only while a slot is free.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

import structlog

from worker.queue.hints import Pair

#: Called by a runner, on the event loop, as soon as the job is its own (the claim is committed).
Claimed = Callable[[], None]

#: Runs one job to its settled end. Returns early, without calling `Claimed`, when the claim was dropped.
Run = Callable[[str, UUID, Claimed], Awaitable[None]]

#: Seconds that the ids of one hint wait for free slots. Longer only helps a process that should not have fetched;
#: shorter sends back hints that a quick job was about to make room for.
OFFER_SECONDS: Final = 1.0

#: Seconds that runners get for handing their jobs back. What takes longer is left to its lease.
HAND_BACK_SECONDS: Final = 10.0

#: What a runner finds as the argument of its `CancelledError` when the process is leaving.
HAND_BACK: Final = "hand back"

log = structlog.get_logger(__name__)


class Slots:
    """`count` slots. Claims nothing itself: it decides only whether, and when, a runner starts."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError("a worker process needs at least one slot")
        self.count = count
        self.busy = 0
        self.closed = False
        #: Set exactly while a slot is free and the process takes jobs: consumer threads wait on it.
        self.freed = threading.Event()
        self.freed.set()
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._hand_back = asyncio.Event()

    @property
    def free(self) -> int:
        """Slots that a job could have now; 0 once closed."""
        return 0 if self.closed else self.count - self.busy

    @property
    def handing_back(self) -> bool:
        """Whether running jobs were told to stop because the process is leaving."""
        return self._hand_back.is_set()

    async def offer(self, pairs: Sequence[Pair], run: Run) -> list[Pair]:
        """Run the jobs in slots; return those that found none, for which nothing was done.

        Each waits at most `OFFER_SECONDS` for a slot, in the order of arrival. Returns as soon as every job that
        got one is claimed, or dropped by its runner; the jobs themselves run on. Closing sends all that still
        wait back at once.
        """
        deadline = asyncio.get_running_loop().time() + OFFER_SECONDS
        left_over: list[Pair] = []
        decided: list[asyncio.Future[None]] = []
        for pair in pairs:
            if await self._take_slot(deadline):
                decided.append(self._start(pair, run))
            else:
                left_over.append(pair)
        if decided:
            await asyncio.wait(decided)
        return left_over

    def close(self) -> None:
        """Start nothing more. What runs goes on; offers that wait get their jobs back."""
        self.closed = True
        self.freed.clear()
        while self._waiting:
            _answer(self._waiting.popleft(), False)

    def hand_back_all(self) -> None:
        """Cancel every running job, once, with `HAND_BACK` as the reason: its runner puts it back in the queue."""
        self.close()
        if not self._hand_back.is_set():
            self._hand_back.set()
            for task in self._running:
                task.cancel(HAND_BACK)

    async def drain(self, seconds: float) -> int:
        """Close, let the running jobs end for `seconds`, then hand the rest back. Bounded in any case.

        Returns how many were abandoned: neither ended nor handed back `HAND_BACK_SECONDS` after they were asked
        to. Their leases lapse. `hand_back_all` from elsewhere cuts the first wait short.
        """
        self.close()
        ended = asyncio.ensure_future(self._all_ended())
        asked = asyncio.ensure_future(self._hand_back.wait())
        try:
            await asyncio.wait({ended, asked}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            self.hand_back_all()
            await asyncio.wait({ended}, timeout=HAND_BACK_SECONDS)
        finally:
            ended.cancel()
            asked.cancel()
        return len(self._running)

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def _take_slot(self, deadline: float) -> bool:
        if self.closed:
            return False
        if self.busy < self.count:
            self.busy += 1
            if self.busy == self.count:
                self.freed.clear()
            return True
        return await self._wait_for_slot(deadline)

    async def _wait_for_slot(self, deadline: float) -> bool:
        """Wait in line. A timer, not a cancellation, ends the wait, so that no slot is lost between the two."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(place)
        timer = loop.call_at(deadline, _answer, place, False)
        try:
            got_slot = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.result():
                self._release()
            raise
        finally:
            timer.cancel()
        if got_slot and self.closed:
            self._release()
            return False
        return got_slot

    def _start(self, pair: Pair, run: Run) -> asyncio.Future[None]:
        """Run one job in a slot that is ours. The future is done when the job is claimed or its runner is."""
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()

        def claimed() -> None:
            if not decided.done():
                decided.set_result(None)

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            self._release()
            claimed()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("runner raised", account_id=pair[0], job_id=str(pair[1]), exc_info=error)

        async def held() -> None:
            await run(*pair, claimed)

        task = loop.create_task(held(), name=f"job {pair[1]}")
        self._running.add(task)
        task.add_done_callback(ended)
        return decided

    def _release(self) -> None:
        """Pass the slot to the first in line, or free it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(True)
                return
        self.busy -= 1
        assert self.busy >= 0, "a slot was released twice"
        if not self.closed:
            self.freed.set()


def _answer(place: asyncio.Future[bool], got_slot: bool) -> None:
    if not place.done():
        place.set_result(got_slot)
