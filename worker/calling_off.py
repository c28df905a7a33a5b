"""Telling providers of jobs that ended between two attempts, or with a worker that was lost: nobody runs them then.

Every worker that has the engine does; told twice is told once. A word that is lost costs a provider's work, no credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from tasks.engines.contract import CallsOff
from tasks.kind import Kind
from tasks.tiers import Tiered
from worker.store.errors import StoreError
from worker.store.given_up import GivenUp, LeftBehind

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CallingOff:
    """One worker process's part in it."""

    kinds: Mapping[str, Kind]
    given_up: GivenUp
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def heard(self, payload: str) -> None:
        """These jobs ended, as the books say."""
        if payload:
            task = asyncio.create_task(self._tell([UUID(job) for job in payload.split()]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Tell no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _tell(self, jobs: list[UUID]) -> None:
        try:
            found = await self.given_up.left_behind(jobs)
        except StoreError as error:
            log.warning("providers are not told of ended jobs", jobs=len(jobs), error=str(error))
            return
        for one in found:
            for engine in self._engines_of(one):
                await engine.forget(one.engine_state)

    def _engines_of(self, left: LeftBehind) -> list[CallsOff]:
        kind = self.kinds.get(left.kind)
        if not isinstance(kind, Tiered):
            return []
        return [engine for engine in dict.fromkeys(kind.engines.values()) if isinstance(engine, CallsOff)]
