"""Prune: make partitions ahead of time, forget workers that ended long ago and turns that decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from worker.store.turns import Turns
from worker.store.upkeep import Upkeep
from worker.store.workers import Workers

#: Months of partitions that are ready at any time.
MONTHS_AHEAD = 3
#: Seconds for which an ended worker is still shown.
_WORKER_KEPT_SECONDS = 86_400.0


@dataclass(slots=True)
class Prune:
    """The prune duty."""

    upkeep: Upkeep
    workers: Workers
    turns: Turns
    settings: Settings

    name = "prune"

    @property
    def tick_seconds(self) -> float:
        return self.settings.prune_tick_seconds

    async def run(self) -> float:
        """Partitions, workers and turns."""
        await self.upkeep.make_partitions(MONTHS_AHEAD)
        await self.workers.forget(_WORKER_KEPT_SECONDS)
        await self.turns.forget()
        return self.tick_seconds
