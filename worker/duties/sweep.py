"""Sweep: delete the folders of attempts that neither run nor were sold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import time

import structlog

from config.settings import Settings
from worker.artifacts import ArtifactStore, Leftover
from worker.store.artifacts import Artifacts

log = structlog.get_logger(__name__)

#: Folders younger than this are left alone: a claim's answer may still be under way.
_AGE_SECONDS_MIN = 120.0
#: Folders looked up in one statement.
_LIMIT = 1000


@dataclass(slots=True)
class Sweep:
    """The sweep duty."""

    artifacts: ArtifactStore
    stored: Artifacts
    settings: Settings

    name = "sweep"

    @property
    def tick_seconds(self) -> float:
        return self.settings.sweep_tick_seconds

    async def run(self) -> float:
        """Look at every attempt's folder once. Files decide nothing: the rows say what stays."""
        found = await asyncio.to_thread(lambda: list(self.artifacts.leftovers(time())))
        old = [one for one in found if one.age_seconds > max(_AGE_SECONDS_MIN, 4 * self.settings.lease_seconds)]
        for first in range(0, len(old), _LIMIT):
            await self._sweep(old[first : first + _LIMIT])
        return self.tick_seconds

    async def _sweep(self, leftovers: list[Leftover]) -> None:
        live = await self.stored.live_tokens([one.token for one in leftovers])
        outputs = [(one.job_id, one.token) for one in leftovers if one.job_id is not None]
        sold = await self.stored.sold_tokens(outputs) if outputs else frozenset()
        for one in leftovers:
            if one.token not in live and not (one.job_id is not None and one.token in sold):
                await self.artifacts.discard(one.path)
                log.info("swept", token=str(one.token))
