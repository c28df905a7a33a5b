"""A row for every process: whoever is missing is seen by the others."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass

import structlog

from worker.store.errors import StoreError
from worker.store.reads_figures import FigureReads

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """One process's. `process`: scheduler or api; workers leave theirs in their register."""

    figures: FigureReads
    process_id: str
    process: str
    version: str
    seconds: float

    async def give(self) -> None:
        """Say that the process is alive."""
        await self.figures.here(self.process_id, self.process, socket.gethostname(), os.getpid(), self.version)

    async def run(self) -> None:
        """Say so again and again, until cancelled."""
        while True:
            try:
                await self.give()
            except StoreError as error:
                log.warning("the books are out of reach", error=str(error))
            await asyncio.sleep(self.seconds)
