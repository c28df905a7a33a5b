"""Telling every worker process that a job's provider may be done: a hint, as good lost as found."""

from __future__ import annotations

import asyncio
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading

#: The channel. Its payload: ids of jobs, with blanks between.
CHANNEL = "fermata_nudged"
#: Ids in one payload: PostgreSQL takes 8,000 bytes.
_IDS_MAX = 200


class Nudges:
    """Says so for one process. A NOTIFY holds up every COMMIT for a moment, so what comes meanwhile goes together."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: set[UUID] = set()
        self._turn = asyncio.Lock()

    async def say(self, job_id: UUID) -> None:
        """Returns once it was said. Raises `LedgerUnavailable` where it could not be."""
        self._waiting.add(job_id)
        async with self._turn:
            if job_id not in self._waiting:
                return  # it went along with the one before
            going, self._waiting = self._waiting, set()
            ids = [str(one) for one in going]
            async with reading(self._engine) as connection:  # a NOTIFY writes nothing
                for first in range(0, len(ids), _IDS_MAX):
                    said = {"channel": CHANNEL, "ids": " ".join(ids[first : first + _IDS_MAX])}
                    await connection.execute(_SAY, said)


_SAY = text("SELECT pg_notify(:channel, :ids)")
