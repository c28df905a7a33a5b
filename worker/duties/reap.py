"""Reap: end what nobody runs any more, and what is past its `ends_by`, paused or not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import random
from time import monotonic
from typing import Any

import structlog

from config.settings import Settings
from worker.credits.operations import EndOverdue, Settle
from worker.credits.outcomes import Ending
from worker.store.errors import StoreError
from worker.store.group_commit import GroupCommit
from worker.store.leases import Leases

log = structlog.get_logger(__name__)

#: Jobs looked at in one tick.
_LIMIT = 1000


@dataclass(slots=True)
class Reap:
    """The reap duty. The token guards each reaping: a job that was renewed or settled meanwhile is left alone."""

    leases: Leases
    operations: GroupCommit[Any]
    settings: Settings
    _ticked_at: float = float("-inf")
    _waits_until: float = 0.0

    name = "reap"

    @property
    def tick_seconds(self) -> float:
        return self.settings.reap_tick_seconds

    async def run(self) -> float:
        """One look at leases and deadlines."""
        now = monotonic()
        if now - self._ticked_at > self._gap_seconds():
            # We were away, or the books were: whoever lives gets one lease to renew.
            self._waits_until = now + self.settings.lease_seconds
        ended = [EndOverdue(account_id, job_id) for account_id, job_id in await self.leases.overdue(_LIMIT)]
        reaped = [] if now < self._waits_until else await self._lapsed()
        for answer in await asyncio.gather(*map(self.operations.do, [*ended, *reaped]), return_exceptions=True):
            if isinstance(answer, StoreError):
                log.warning("not reaped, trying again", error=str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        # Only a tick that reached the books counts, and from its end: a slow one is no gap of ours.
        self._ticked_at = monotonic()
        return self.tick_seconds

    async def _lapsed(self) -> list[Settle]:
        grace = self.settings.lease_seconds
        lapsed = await self.leases.lapsed(_LIMIT, grace)
        if lapsed:
            log.warning("leases lapsed", jobs=len(lapsed))
        return [
            Settle(
                one.account_id,
                one.job_id,
                one.token,
                Ending.LOST_WORKER,
                message="the worker's lease lapsed",
                reap_grace_seconds=grace,
                backoff_first_seconds=self.settings.backoff_first_seconds,
                backoff_max_seconds=self.settings.backoff_max_seconds,
                jitter=random(),  # noqa: S311  spreads retries, guards nothing
            )
            for one in lapsed
        ]

    def _gap_seconds(self) -> float:
        return max(3 * self.settings.reap_tick_seconds, self.settings.lease_seconds / 3)
