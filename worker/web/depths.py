"""How long the queues are, counted once a second for everybody who submits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic

from worker.store.errors import StoreError
from worker.store.reads import Reads
from worker.store.submits import Submitted

_SECONDS = 1.0


@dataclass(slots=True)
class Depths:
    """Depths by queue, and what this process stored since they were counted."""

    reads: Reads
    _counted: Mapping[str, int] = field(default_factory=dict)
    _since: dict[str, int] = field(default_factory=dict)
    _until: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def position(self, done: Submitted) -> int | None:
        """About where a job that was just stored stands; None where nobody knows, or for one that was there before."""
        if done.replayed:
            return None
        if monotonic() >= self._until and not self._lock.locked():
            async with self._lock:
                await self._count()
                return self._counted.get(done.kind)
        self._since[done.kind] = self._since.get(done.kind, 0) + 1
        known = self._counted.get(done.kind)
        return None if known is None else known + self._since[done.kind]

    async def _count(self) -> None:
        self._until = monotonic() + _SECONDS
        try:
            self._counted = await self.reads.depths()
        except StoreError:
            return  # the job is stored: that is what its caller must hear
        self._since = {}
