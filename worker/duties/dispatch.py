"""Dispatch: mark due jobs, commit, send their hints. Keeps Redis thin, so order, pause and limits stay in SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from time import monotonic, time_ns

import structlog

from config.settings import Settings
from worker import tracing
from worker.failpoints import failpoint
from worker.queue.connection import QueueUnavailable
from worker.queue.hints import ForeignNamespace, HintSender, Pair
from worker.store.dispatching import Dispatching, QueueDemand

log = structlog.get_logger(__name__)

#: A worker that was not seen for so many renewals takes no hints.
_ALIVE_RENEWALS = 3
#: How much of the recent throughput is admitted beyond the free slots: what is taken until the next look.
_AHEAD_SECONDS = 0.25
#: Looks while there is a backlog: soon when jobs are taken fast, calmly when all slots are full.
_BUSY_WAIT_SECONDS = 0.03
_FULL_WAIT_SECONDS = 0.05
#: Seconds to let Redis be when it is out of reach.
_AWAY_WAIT_SECONDS = 1.0
#: Seconds until another look at a namespace that is another deployment's.
_FOREIGN_WAIT_SECONDS = 5.0


@dataclass(slots=True)
class Dispatch:
    """The dispatch duty. Any number of schedulers may run it: marks are rows, locked while they are made."""

    dispatching: Dispatching
    sender: HintSender
    settings: Settings
    hints: int = 0
    hinted: int = 0
    #: Looks that went through, Redis included.
    reached: int = 0
    #: Told how many jobs each hint has, once somebody wants to know.
    counts: Callable[[int], object] | None = None
    _deployment: str | None = None
    _rates: dict[str, float] = field(default_factory=dict)
    _looked_at: float = field(default_factory=monotonic)
    _away_until: float = 0.0

    name = "dispatch"

    @property
    def tick_seconds(self) -> float:
        return self.settings.dispatch_tick_seconds

    async def run(self) -> float:
        """One look; returns the seconds after which to look again if nobody wakes the duty before."""
        if (away_seconds := self._away_until - monotonic()) > 0:
            # Whatever woke us, taking back our own marks included, Redis gets its rest.
            return away_seconds
        try:
            await self._check_epoch()
            demands = await self.dispatching.demand(
                self.settings.renew_seconds * _ALIVE_RENEWALS, self.settings.hint_repeat_seconds
            )
            if any(demand.ripe for demand in demands):
                await self.dispatching.ripen()
            waits = [await self._dispatch(demand) for demand in demands]
        except QueueUnavailable as error:
            log.warning("Redis is out of reach, hints wait", error=str(error))
            self._away_until = monotonic() + _AWAY_WAIT_SECONDS
            return _AWAY_WAIT_SECONDS
        except ForeignNamespace as error:
            log.error("no hint is sent", error=str(error))
            self._away_until = monotonic() + _FOREIGN_WAIT_SECONDS
            return _FOREIGN_WAIT_SECONDS
        self._looked_at = monotonic()
        self.reached += 1
        return min(waits, default=self.tick_seconds)

    async def _check_epoch(self) -> None:
        """A Redis without our mark has lost its hints: all marked jobs are sent again at once.

        Raises `ForeignNamespace`: workers would take hints of two deployments, and drop those of the other.
        """
        if self._deployment is None:
            self._deployment = await self.dispatching.deployment()
        if not await self.sender.epoch_stands(self._deployment):
            cleared = await self.dispatching.forget_marks()
            await self.sender.set_epoch(self._deployment)
            if cleared:
                log.warning("Redis had lost our mark, jobs are hinted again", jobs=cleared)

    async def _dispatch(self, demand: QueueDemand) -> float:
        room, began = demand.free + self._ahead(demand), time_ns()
        marked = await self.dispatching.mark(
            demand.queue, max(0, room), self.settings.hint_repeat_seconds, self.settings.priority_point_seconds
        )
        self._note_rate(demand.queue, len(marked.pairs))
        if not marked.pairs:
            return _FULL_WAIT_SECONDS if demand.ready and demand.workers else self.tick_seconds
        failpoint("dispatch.marked")
        per_message = max(
            1,
            min(
                self.settings.hints_per_message,
                demand.slots // demand.workers // 4,
                ceil(len(marked.pairs) / demand.workers),
            ),
        )
        try:
            self.hints += await self.sender.send({demand.queue: marked.pairs}, per_message)
        except QueueUnavailable:
            await self.dispatching.unhint(marked.pairs)
            raise
        self.hinted += len(marked.pairs)
        if self.counts is not None:
            for first in range(0, len(marked.pairs), per_message):
                self.counts(min(per_message, len(marked.pairs) - first))
        await self._tell(demand.queue, marked.pairs, began)
        failpoint("dispatch.sent")
        return _BUSY_WAIT_SECONDS if marked.more else self.tick_seconds

    async def _tell(self, queue: str, pairs: Sequence[Pair], began: int) -> None:
        for account_id, job_id in pairs:
            log.debug("hinted", job_id=str(job_id), account_id=account_id, queue=queue)
        if tracing.is_on():
            for job_id, traceparent in (await self.dispatching.traceparents(pairs)).items():
                with tracing.span("dispatch", traceparent, {"job_id": str(job_id), "queue": queue}, began):
                    pass

    def _ahead(self, demand: QueueDemand) -> int:
        if demand.running_max is not None:
            return 0
        ahead = int(self._rates.get(demand.queue, 0.0) * _AHEAD_SECONDS)
        return min(ahead, demand.slots * self.settings.admit_per_slot)

    def _note_rate(self, queue: str, jobs: int) -> None:
        """Jobs a second that find takers, smoothed over a few looks."""
        seconds = max(monotonic() - self._looked_at, 0.001)
        weight = min(1.0, seconds / 0.5)
        self._rates[queue] = self._rates.get(queue, 0.0) * (1 - weight) + (jobs / seconds) * weight
