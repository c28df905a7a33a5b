"""Jobs that ended while nobody ran them: what their last attempts left behind at providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading

#: The channel on which the books tell of such jobs, by their ids with blanks between.
CHANNEL = "fermata_given_up"


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What an engine remembered of a job that has ended."""

    job: UUID
    kind: str
    engine_state: Mapping[str, Any]


class GivenUp:
    """Reads of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def left_behind(self, job_ids: Sequence[UUID]) -> list[LeftBehind]:
        """Of these jobs those that have ended, and whose last attempt remembered something."""
        async with reading(self._engine, at_once=True) as connection:
            rows = await connection.execute(_LEFT_BEHIND, {"jobs": list(job_ids)})
            return [LeftBehind(*row) for row in rows]


_LEFT_BEHIND = text("""
    SELECT j.job_id, j.kind, last.engine_state
    FROM jobs AS j
    CROSS JOIN LATERAL (
        SELECT a.engine_state
        FROM attempts AS a
        WHERE a.account_id = j.account_id
          AND a.job_id = j.job_id
        ORDER BY a.attempt DESC
        LIMIT 1
    ) AS last
    WHERE j.job_id = ANY(CAST(:jobs AS uuid[]))
      AND j.ended_at IS NOT NULL
      AND last.engine_state IS NOT NULL
""")
