"""Prune: make partitions ahead of time, and forget what is kept no longer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import structlog

from config.settings import Settings
from worker.artifacts.store import ArtifactError
from worker.pruning import Pruner
from worker.store.turns import Turns
from worker.store.upkeep import Upkeep
from worker.store.webhooks import Webhooks
from worker.store.workers import Workers

log = structlog.get_logger(__name__)

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
    webhooks: Webhooks
    pruner: Pruner
    settings: Settings

    name = "prune"

    @property
    def tick_seconds(self) -> float:
        return self.settings.prune_tick_seconds

    async def run(self) -> float:
        """Partitions, workers, turns, deliveries of endpoints that are gone; then all that `fermata prune` forgets."""
        await self.upkeep.make_partitions(MONTHS_AHEAD)
        await self.workers.forget(_WORKER_KEPT_SECONDS)
        await self.turns.forget()
        await self.webhooks.forget_orphans()
        try:
            done = await self.pruner.run()
        except ArtifactError as error:
            log.warning("prune waits for the artifact store", error=str(error))
        else:
            log.info("pruned", **asdict(done))
        return self.tick_seconds
