"""Keeps the leases of a process: renews them together, watches for cancels and losses, writes progress.

One task for all jobs. A renewal that can't reach the books is no reason to stop: jobs go on until `outage_max`,
measured by a monotonic clock. A renewal that finds another's token stops that job at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any
from uuid import UUID

import structlog

from config.settings import Settings
from worker.store.errors import LedgerUnavailable, OutcomeUnknown, StoreError
from worker.store.leases import Held, Leases
from worker.store.workers import WorkerCard, Workers

log = structlog.get_logger(__name__)

#: Seconds between tries to have an engine's state kept while the books are away.
_REMEMBER_AGAIN_SECONDS = 0.25


class Loss(StrEnum):
    """Why a run must stop."""

    LEASE = "lease"  # the job is another's, or has ended
    CANCEL = "cancel"  # nobody wants it any more
    OUTAGE = "outage"  # the books were out of reach for too long


class Lost(Exception):
    """Raised to an engine that wants something kept for a job that is not ours any more."""


@dataclass(slots=True)
class _Kept:
    held: Held
    renewed_at: float
    loss: asyncio.Future[Loss]
    reported: tuple[float, str] | None = None
    news: tuple[float, str] | None = None


@dataclass(slots=True)
class Keeper:
    """The lease keeper of one process."""

    leases: Leases
    workers: Workers
    card: WorkerCard
    settings: Settings
    draining: Callable[[], bool] = lambda: False
    _kept: dict[UUID, _Kept] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _told_to_drain: bool = False

    def hold(self, held: Held) -> None:
        """Keep this job's lease from here on."""
        self._kept[held.token] = _Kept(held, monotonic(), asyncio.get_running_loop().create_future())

    def let_go(self, held: Held) -> None:
        """The job is settled, or not ours any more."""
        kept = self._kept.pop(held.token, None)
        if kept is not None and not kept.loss.done():
            kept.loss.cancel()

    def watch(self, held: Held) -> asyncio.Future[Loss]:
        """Done when the run must stop; cancelled when the lease is let go."""
        return self._kept[held.token].loss

    def report(self, held: Held, fraction: float, stage: str) -> None:
        """Note how far the job is; written at a bounded rate."""
        if kept := self._kept.get(held.token):
            kept.news = (fraction, stage[:100])

    async def remember(self, held: Held, state: Mapping[str, Any]) -> None:
        """Keep the engine's state in the books; waits for them if they are away. Raises `Lost`."""
        while True:
            try:
                kept = await self.leases.remember(held, state)
                break
            except (LedgerUnavailable, OutcomeUnknown):
                # No failure of the engine. Who waits too long is stopped like any other run.
                await asyncio.sleep(_REMEMBER_AGAIN_SECONDS)
        if not kept:
            raise Lost

    def look_now(self) -> None:
        """Somebody asked for a cancel somewhere: renew at once, the answer tells whose."""
        self._wake.set()

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            # Beside each other: when the books are slow, being seen must not cost a lease.
            await asyncio.gather(self._renew(), self._say_alive())
            await self._wait()

    async def report_progress(self) -> None:
        """Write what changed, at most once a `progress_seconds`, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.progress_seconds)
            news = [(kept, kept.news) for kept in self._kept.values() if kept.news not in (None, kept.reported)]
            if not news:
                continue
            try:
                await self.leases.report([(kept.held, told[0], told[1]) for kept, told in news if told])
            except StoreError:
                continue
            for kept, told in news:
                kept.reported = told

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self.settings.renew_seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _say_alive(self) -> None:
        try:
            asked = await self.workers.here(self.card, draining=self.draining())
            if asked and not self._told_to_drain:
                self._told_to_drain = True
                log.info("asked to drain")
                os.kill(os.getpid(), signal.SIGTERM)  # as whoever stops us does: one way to end in good order
        except StoreError as error:
            log.warning("the books are out of reach", error=str(error))

    async def _renew(self) -> None:
        kept = list(self._kept.values())
        if not kept:
            return
        asked = monotonic()
        try:
            renewal = await self.leases.renew([one.held for one in kept], self.settings.lease_seconds)
        except StoreError as error:
            log.warning("leases not renewed", jobs=len(kept), error=str(error))
            for one in kept:
                if monotonic() - one.renewed_at > self.settings.outage_max_seconds:
                    _lose(one, Loss.OUTAGE)
            return
        for one in kept:
            one.renewed_at = asked
            if one.held.token in renewal.lost:
                _lose(one, Loss.LEASE)
            elif one.held.token in renewal.cancel_asked:
                _lose(one, Loss.CANCEL)


def _lose(kept: _Kept, loss: Loss) -> None:
    if not kept.loss.done():
        kept.loss.set_result(loss)
