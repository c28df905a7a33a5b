"""Sweep: delete what attempts left that neither run nor were sold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from config.settings import Settings
from worker.artifacts.store import ArtifactStore, Leftover, StoreUnavailable
from worker.store.artifacts import Artifacts

log = structlog.get_logger(__name__)

#: Folders younger than this are left alone: a claim's answer may still be under way.
_AGE_SECONDS_MIN = 120.0
#: Folders looked up in one statement.
_LIMIT = 1000


@dataclass(slots=True)
class Sweep:
    """The sweep duty, over `found`: a store's leftovers, or those on this machine only."""

    artifacts: ArtifactStore
    stored: Artifacts
    settings: Settings
    found: Callable[[], AsyncIterator[Leftover]]

    name = "sweep"

    @property
    def tick_seconds(self) -> float:
        return self.settings.sweep_tick_seconds

    async def run(self) -> float:
        """Look once at what attempts left. Files decide nothing: the rows say what stays."""
        age_seconds_min = max(_AGE_SECONDS_MIN, 4 * self.settings.lease_seconds)
        old: list[Leftover] = []
        try:
            async for one in self.found():
                if one.age_seconds > age_seconds_min:
                    old.append(one)
                if len(old) >= _LIMIT:
                    await self._sweep(old)
                    old = []
            await self._sweep(old)
        except StoreUnavailable as error:
            log.warning("sweep waits for the artifact store", error=str(error))
        return self.tick_seconds

    async def _sweep(self, leftovers: list[Leftover]) -> None:
        if not leftovers:
            return
        live = await self.stored.live_tokens([one.token for one in leftovers])
        outputs = [(one.job_id, one.token) for one in leftovers if one.job_id is not None]
        sold = await self.stored.sold_tokens(outputs) if outputs else frozenset()
        for one in leftovers:
            if one.token not in live and not (one.job_id is not None and one.token in sold):
                await self.artifacts.discard(one)
                log.info("swept", token=str(one.token))
