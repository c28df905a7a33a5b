"""What everybody in front of the dashboard looks at, read once for all of them: cheap whatever lies in the tables.

Three reads, each one snapshot: what moves every second, what moves slowly, and what ended in some minutes. The last
is asked for in small windows, so that a day's plot never costs one long statement.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.reads_accounts import check_limit
from worker.store.reads_jobs import ALIVE_SECONDS
from worker.store.reads_queues import QUEUES, WORKERS, QueueShown, WorkerShown, worker_of
from worker.store.snapshots import snapshot

#: Times are taken from so many of a queue's latest ends, none older than an hour.
_TIMED_JOBS = 100


@dataclass(frozen=True, slots=True)
class JobGlance:
    """A job that somebody watches."""

    id: UUID
    state: str
    attempts: int
    progress: float
    stage: str | None


@dataclass(frozen=True, slots=True)
class Now:
    """What moves every second. `dispatch_seconds`: since a scheduler last gave a sign; None: never."""

    now: datetime
    queues: tuple[QueueShown, ...]
    workers: tuple[WorkerShown, ...]
    dispatch_seconds: float | None
    paused_kinds: tuple[str, ...]
    watched: tuple[JobGlance, ...]


@dataclass(frozen=True, slots=True)
class RunningShown:
    """A job that a worker has in hand. A lease that is past is lost unless its worker comes back first."""

    id: UUID
    account: str
    kind: str
    queue: str
    worker: str
    attempt: int
    started_at: datetime
    lease_until: datetime
    ends_by: datetime
    progress: float
    stage: str | None
    cancel_asked: bool


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """How long jobs of a queue took that ended within the hour, in seconds. `wait`: from when they could run."""

    queue: str
    jobs: int
    wait_p50: float
    wait_p95: float
    run_p50: float
    run_p95: float


@dataclass(frozen=True, slots=True)
class Slow:
    """What moves slowly: times of queues, and the credits that reservations hold."""

    times: tuple[QueueTimes, ...]
    held: int
    available: int
    paused_accounts: int


@dataclass(frozen=True, slots=True)
class EndedMinute:
    """What ended within one minute, in one queue, in one way. Credits: `charged`, and `refunded` of what was held."""

    minute: datetime
    queue: str
    state: str
    jobs: int
    charged: int
    refunded: int


class OverviewReads:
    """Reads for everybody at once."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def now(self, watched: Collection[UUID] = ()) -> Now:
        """Queues, workers, the scheduler's sign, and the jobs that somebody watches."""
        values = {"alive": ALIVE_SECONDS}
        async with snapshot(self._engine) as connection:
            queues = tuple(QueueShown(*row) for row in await connection.execute(QUEUES, values))
            workers = tuple(worker_of(row) for row in await connection.execute(WORKERS, values))
            around = (await connection.execute(_AROUND)).one()
            jobs = await connection.execute(_WATCHED, {"jobs": list(watched)}) if watched else ()
            glances = tuple(JobGlance(*row) for row in jobs)
        return Now(around.now, queues, workers, around.dispatch_seconds, tuple(around.paused_kinds), glances)

    async def slow(self) -> Slow:
        """Times of the queues, and all credits that are held or available in open lots."""
        async with snapshot(self._engine) as connection:
            times = tuple(QueueTimes(*row) for row in await connection.execute(_TIMES, {"limit": _TIMED_JOBS}))
            sums = (await connection.execute(_CREDITS)).one()
        return Slow(times, *sums)

    async def ended(self, since: datetime, until: datetime) -> tuple[EndedMinute, ...]:
        """What ended from `since` until before `until`, by minute."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_ENDED, {"since": since, "until": until})
            return tuple(EndedMinute(*row) for row in rows)

    async def running(self, limit: int = 200) -> tuple[RunningShown, ...]:
        """What runs, by worker, the longest first."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_RUNNING, {"limit": limit})
            return tuple(RunningShown(*row) for row in rows)


_RUNNING = text("""
    SELECT job_id, account_id, kind, queue, worker_id, attempt, started_at, lease_until, ends_by, progress, stage,
           cancel_asked_at IS NOT NULL
    FROM live
    ORDER BY worker_id, started_at, job_id
    LIMIT :limit
""")

_AROUND = text("""
    SELECT fermata_now() AS now,
           (SELECT CAST(EXTRACT(EPOCH FROM fermata_now() - max(ran_at)) AS double precision)
            FROM duty_runs
            WHERE duty = 'scheduler') AS dispatch_seconds,
           ARRAY(SELECT name FROM controls WHERE scope = 'kind' AND paused ORDER BY name) AS paused_kinds
""")

_WATCHED = text("""
    SELECT j.job_id, j.state, j.attempt, CAST(COALESCE(l.progress, 0) AS double precision), l.stage
    FROM jobs AS j
    LEFT JOIN live AS l USING (account_id, job_id)
    WHERE j.job_id = ANY(CAST(:jobs AS uuid[]))
""")

#: Each queue's latest ends by the index over events; their jobs by key.
_TIMES = text("""
    WITH recent AS MATERIALIZED (
        SELECT e.account_id, e.job_id, e.queue
        FROM events AS e
        WHERE e.what = 'ended'
          AND e.state IN ('succeeded', 'failed')
          AND e.at > fermata_now() - interval '1 hour'
        ORDER BY e.at DESC
        LIMIT 5 * :limit
    ), numbered AS (
        SELECT account_id, job_id, queue, row_number() OVER (PARTITION BY queue) AS place
        FROM recent
    )
    SELECT n.queue, count(*),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY t.wait), percentile_cont(0.95) WITHIN GROUP (ORDER BY t.wait),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY t.run), percentile_cont(0.95) WITHIN GROUP (ORDER BY t.run)
    FROM numbered AS n
    JOIN jobs AS j USING (account_id, job_id)
    CROSS JOIN LATERAL (
        SELECT CAST(EXTRACT(EPOCH FROM j.started_at - COALESCE(j.run_at, j.created_at)) AS double precision) AS wait,
               CAST(EXTRACT(EPOCH FROM j.ended_at - j.started_at) AS double precision) AS run
    ) AS t
    WHERE n.place <= :limit
      AND j.started_at IS NOT NULL
    GROUP BY n.queue
    ORDER BY n.queue
""")

_CREDITS = text("""
    SELECT CAST(COALESCE(sum(held), 0) AS bigint),
           CAST(COALESCE(sum(available) FILTER (WHERE expires_at IS NULL OR expires_at > fermata_now()), 0) AS bigint),
           (SELECT count(*) FROM accounts WHERE paused)
    FROM lots
    WHERE NOT closed
""")

_ENDED = text("""
    SELECT date_trunc('minute', e.at), e.queue, e.state, count(*), CAST(sum(e.charged) AS bigint),
           CAST(COALESCE(sum(r.amount - r.charged), 0) AS bigint)
    FROM events AS e
    LEFT JOIN reservations AS r USING (account_id, job_id)
    WHERE e.what = 'ended'
      AND e.at >= :since
      AND e.at < :until
    GROUP BY 1, 2, 3
""")
