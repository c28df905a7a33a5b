"""Which tier a queued job is of, and whether anybody alive makes it. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading
from worker.store.reads_jobs import ALIVE_SECONDS


@dataclass(frozen=True, slots=True)
class Lacked:
    """A hinted job that the process which asks can't make."""

    account_id: str
    job_id: UUID
    tier: str  # "kind/tier", "kind/" for the kind's default one
    elsewhere: bool  # whether a living worker makes it


class Tiers:
    """For worker processes that lack some."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def lacked(self, pairs: Sequence[tuple[str, UUID]], lacks: Collection[str]) -> list[Lacked]:
        """Those of the jobs that are of one of these tiers."""
        values = {
            "accounts": [pair[0] for pair in pairs],
            "jobs": [pair[1] for pair in pairs],
            "lacks": list(lacks),
            "alive": ALIVE_SECONDS,
        }
        async with reading(self._engine, by_key=True) as connection:
            return [Lacked(*row) for row in await connection.execute(_LACKED, values)]


#: A request is stored without what it leaves to its kind: no model is the kind's default tier.
_LACKED = text("""
    WITH asked AS (
        SELECT j.account_id, j.job_id, j.queue, j.kind || '/' || COALESCE(j.request ->> 'model', '') AS tier
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
        JOIN jobs AS j ON j.account_id = ANY(ARRAY[u.account_id]) AND j.job_id = ANY(ARRAY[u.job_id])
    )
    SELECT a.account_id, a.job_id, a.tier,
           EXISTS (
               SELECT FROM workers AS w
               WHERE w.stopped_at IS NULL
                 AND NOT w.draining
                 AND w.seen_at > fermata_now() - make_interval(secs => :alive)
                 AND a.queue = ANY(w.queues)
                 AND a.tier <> ALL(w.lacks)
           )
    FROM asked AS a
    WHERE a.tier = ANY(CAST(:lacks AS text[]))
""")
