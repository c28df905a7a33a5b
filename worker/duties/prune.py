"""Prune: make partitions ahead of time, forget workers that ended long ago and turns that decide nothing."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from worker.store.turns import Turns
from worker.store.upkeep import Upkeep
from worker.store.webhooks import Webhooks
from worker.store.workers import Workers

#: Months of partitions that are ready at any time.
MONTHS_AHEAD = 3
#: Seconds for which an ended worker is still shown.
_WORKER_KEPT_SECONDS = 86_400.0
#: Seconds for which an ended delivery is still shown, and can be told again.
_DELIVERY_KEPT_SECONDS = 30 * 86_400.0


@dataclass(slots=True)
class Prune:
    """The prune duty."""

    upkeep: Upkeep
    workers: Workers
    turns: Turns
    webhooks: Webhooks
    settings: Settings

    name = "prune"

    @property
    def tick_seconds(self) -> float:
        return self.settings.prune_tick_seconds

    async def run(self) -> float:
        """Partitions, workers, turns and deliveries."""
        await self.upkeep.make_partitions(MONTHS_AHEAD)
        await self.workers.forget(_WORKER_KEPT_SECONDS)
        await self.turns.forget()
        await self.webhooks.forget(_DELIVERY_KEPT_SECONDS)
        return self.tick_seconds
