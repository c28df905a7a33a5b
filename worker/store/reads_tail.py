"""What just happened to jobs of all accounts: those that started and those that ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.snapshots import snapshot

#: Transactions commit out of order: a step may be seen so many seconds after one that has a later time.
LATE_SECONDS = 10.0
_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """A job that started (`state` is running) or ended."""

    at: datetime
    job: UUID
    account: str
    kind: str
    state: str
    reason: str | None
    charged: int | None
    worker: str | None


class Tail:
    """Follows what happens. Each step is told once, in the order of its time as far as that is known."""

    def __init__(self, engine: AsyncEngine, account: str | None = None, kind: str | None = None) -> None:
        self._engine = engine
        self._filter = {"account": account, "kind": kind, "limit": _LIMIT, "late": LATE_SECONDS}
        self._since: datetime | None = None
        self._told: dict[tuple[UUID, str, datetime], datetime] = {}

    async def steps(self) -> list[Step]:
        """What happened since the last call; at the first one nothing, but from there on everything."""
        async with snapshot(self._engine) as connection:
            now: datetime = (await connection.execute(_NOW)).scalar_one()
            if self._since is None:
                self._since = now
            rows = (await connection.execute(_STEPS, {**self._filter, "since": self._since})).all()
        steps = [step for row in rows if self._is_new(step := Step(*row))]
        self._told = {key: at for key, at in self._told.items() if (now - at).total_seconds() < 2 * LATE_SECONDS}
        return steps

    def _is_new(self, step: Step) -> bool:
        key = (step.job, step.state, step.at)
        new = key not in self._told
        self._told[key] = step.at
        return new


_NOW = text("SELECT fermata_now()")

_STEPS = text("""
    WITH edge AS MATERIALIZED (
        SELECT GREATEST(CAST(:since AS timestamptz), fermata_now() - make_interval(secs => :late)) AS since
    )
    SELECT s.at, s.job_id, s.account_id, s.kind, s.state, s.reason, s.charged, s.worker_id
    FROM (
        SELECT l.started_at AS at, l.job_id, l.account_id, l.kind, 'running' AS state, NULL AS reason,
               CAST(NULL AS bigint) AS charged, l.worker_id
        FROM edge
        JOIN live AS l ON l.started_at >= edge.since
        UNION ALL
        SELECT e.at, e.job_id, e.account_id, e.kind, e.state, e.reason, e.charged, NULL
        FROM edge
        JOIN events AS e ON e.what = 'ended' AND e.at >= edge.since
    ) AS s
    WHERE (CAST(:account AS text) IS NULL OR s.account_id = :account)
      AND (CAST(:kind AS text) IS NULL OR s.kind = :kind)
    ORDER BY s.at, s.job_id
    LIMIT :limit
""")
