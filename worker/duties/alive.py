"""Alive: leave a sign that a scheduler runs, with what its dispatch has done so far."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from worker.duties.dispatch import Dispatch
from worker.sign_of_life import SignOfLife
from worker.store.upkeep import Upkeep


@dataclass(slots=True)
class Alive:
    """The alive duty. `doctor` looks for its sign."""

    upkeep: Upkeep
    dispatch: Dispatch
    sign: SignOfLife
    settings: Settings

    name = "alive"

    async def run(self) -> float:
        """Write the sign."""
        await self.sign.give()
        figures = {"scheduler": self.sign.process_id, "hints": self.dispatch.hints, "hinted": self.dispatch.hinted}
        await self.upkeep.note("scheduler", figures)
        return self.settings.renew_seconds
