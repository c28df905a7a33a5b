"""Alive: leave a sign that a scheduler runs, with what its dispatch has done so far."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from worker.duties.dispatch import Dispatch
from worker.sign_of_life import SignOfLife
from worker.store.upkeep import Upkeep


@dataclass(slots=True)
class Alive:
    """The alive duty. `doctor` looks for its sign.

    That dispatch reaches Redis is a sign of its own: without it no job starts, however alive the scheduler is.
    """

    upkeep: Upkeep
    dispatch: Dispatch
    sign: SignOfLife
    settings: Settings

    _reached: int = 0

    name = "alive"

    async def run(self) -> float:
        """Write the sign."""
        await self.sign.give()
        figures = {"scheduler": self.sign.process_id, "hints": self.dispatch.hints, "hinted": self.dispatch.hinted}
        await self.upkeep.note("scheduler", figures)
        if self.dispatch.reached != self._reached:
            self._reached = self.dispatch.reached
            await self.upkeep.note("dispatch", figures)
        return self.settings.renew_seconds
