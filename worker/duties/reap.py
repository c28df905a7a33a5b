"""Reap: end what nobody runs any more, and what is past its `ends_by`, paused or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import random
from time import monotonic
from typing import Any

import structlog

from config.settings import Settings
from worker.credits.operations import EndOverdue, Settle
from worker.credits.outcomes import Ending
from worker.duties.under_way import UnderWay
from worker.store.group_commit import GroupCommit
from worker.store.leases import Leases

log = structlog.get_logger(__name__)

#: Jobs started in one look, of those past their `ends_by` and of those whose lease has lapsed.
_LIMIT = 1000
#: Jobs under way at a time: so many of a held account may wait for it before those of others do.
_UNDER_WAY_MAX = 5 * _LIMIT


@dataclass(slots=True)
class Reap:
    """The reap duty. The token guards each reaping: a job that was renewed or settled meanwhile is left alone.

    A tick waits for its two reads only, never for an account: what is held or broken holds up no other job.
    """

    leases: Leases
    operations: GroupCommit[Any]
    settings: Settings
    #: Leases that had lapsed, so far.
    reaped: int = 0
    _ticked_at: float = float("-inf")
    _waits_until: float = 0.0
    _under_way: UnderWay = field(init=False)

    name = "reap"

    def __post_init__(self) -> None:
        self._under_way = UnderWay(self.name, self.operations, _UNDER_WAY_MAX)

    @property
    def tick_seconds(self) -> float:
        return self.settings.reap_tick_seconds

    async def run(self) -> float:
        """One look at leases and deadlines."""
        now = monotonic()
        if now - self._ticked_at > self._gap_seconds():
            # We were away, or the books were: whoever lives gets one lease to renew.
            self._waits_until = now + self.settings.lease_seconds
        overdue = await self.leases.overdue(self._under_way.limit_for(_LIMIT))
        self._under_way.start(EndOverdue(account_id, job_id) for account_id, job_id in overdue)
        if now >= self._waits_until:
            await self._reap()
        # Only a tick that reached the books counts, and from its end: a slow one is no gap of ours.
        self._ticked_at = monotonic()
        return self.tick_seconds

    async def _reap(self) -> None:
        grace = self.settings.lease_seconds
        lapsed = await self.leases.lapsed(self._under_way.limit_for(_LIMIT), grace)
        started = self._under_way.start(
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
        )
        self.reaped += started
        if started:
            log.warning("leases lapsed", jobs=started)

    def _gap_seconds(self) -> float:
        return max(3 * self.settings.reap_tick_seconds, self.settings.lease_seconds / 3)
