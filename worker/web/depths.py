"""How long the queues are, counted once a second for everybody who submits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
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

    async def positions(self, stored: Sequence[Submitted]) -> list[int | None]:
        """About where jobs that were just stored together stand; None where nobody knows, or one was there before."""
        fresh = Counter(one.kind for one in stored if not one.replayed)
        if fresh and monotonic() >= self._until and not self._lock.locked():
            async with self._lock:
                if await self._count():
                    self._since = {kind: -count for kind, count in fresh.items()}  # they are counted already
        return [None if one.replayed else self._next(one.kind) for one in stored]

    def _next(self, kind: str) -> int | None:
        self._since[kind] = self._since.get(kind, 0) + 1
        known = self._counted.get(kind)
        return None if known is None else known + self._since[kind]

    async def _count(self) -> bool:
        self._until = monotonic() + _SECONDS
        try:
            self._counted = await self.reads.depths()
        except StoreError:
            return False  # the jobs are stored: that is what their caller must hear
        return True
