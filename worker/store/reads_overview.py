"""What everybody in front of the dashboard looks at, read once for all of them: cheap whatever lies in the tables.

A look is one statement: what moves every second and, as asked, what moves slowly or what ended in some minutes. The
last is asked for in small windows, so that a day's plot never costs one long statement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import Boolean, bindparam, case, func, literal_column, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.elements import ColumnElement, TextClause

from worker.store.database import reading
from worker.store.reads_accounts import check_limit
from worker.store.reads_figures import HINTS_SECONDS
from worker.store.reads_jobs import ALIVE_SECONDS
from worker.store.reads_queues import QUEUES, WORKERS, QueueShown, WorkerShown
from worker.store.snapshots import snapshot

T = TypeVar("T")

#: Times are taken from so many of a queue's latest ends, none older than an hour.
_TIMED_JOBS = 100
#: Running jobs that are shown.
IN_HAND_MAX = 200


@dataclass(frozen=True, slots=True)
class JobGlance:
    """A job that somebody watches."""

    id: UUID
    state: str
    attempts: int
    progress: float
    stage: str | None


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
class Now:
    """What moves every second. `dispatch_seconds`: since a scheduler last gave a sign; None: never.

    `in_hand`: what runs, as `OverviewReads.running` has it; None if it was not asked for. `hints_seconds`: as
    `BooksFigures` has it.
    """

    now: datetime
    queues: tuple[QueueShown, ...]
    workers: tuple[WorkerShown, ...]
    dispatch_seconds: float | None
    paused_kinds: tuple[str, ...]
    watched: tuple[JobGlance, ...]
    in_hand: tuple[RunningShown, ...] | None = None
    hints_seconds: float | None = None


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


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has read. `slow` only if it was asked for; `ended` within the windows that were."""

    now: Now
    slow: Slow | None
    ended: tuple[EndedMinute, ...]


class OverviewReads:
    """Reads for everybody at once."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def clock(self) -> datetime:
        """The database's clock."""
        async with reading(self._engine, at_once=True) as connection:
            now: datetime = (await connection.execute(_CLOCK)).scalar_one()
        return now

    async def look(
        self,
        watched: Collection[UUID] = (),
        windows: Sequence[tuple[datetime, datetime]] = (),
        *,
        slow: bool = False,
        in_hand: bool = False,
    ) -> Seen:
        """One look, in one statement.

        Always: queues, workers, the scheduler's sign, and the `watched` jobs. With `slow`: times of the queues and the
        sums over lots, with `in_hand` what runs. `windows`: what ended from a time until before another, by minute.
        """
        values = {
            "alive": ALIVE_SECONDS,
            "jobs": list(watched),
            "since": [since for since, _ in windows],
            "until": [until for _, until in windows],
            "slow": slow,
            "in_hand": in_hand,
            "limit": _TIMED_JOBS,
            "most": IN_HAND_MAX,
        }
        async with reading(self._engine, at_once=True) as connection:
            row = (await connection.execute(_LOOK, values)).one()
        around = _decoded(row.around, tuple[_Around])[0]
        now = Now(
            now=around.now,
            queues=_decoded(row.queues, tuple[QueueShown, ...]),
            workers=_decoded(row.workers, tuple[WorkerShown, ...]),
            dispatch_seconds=around.dispatch_seconds,
            paused_kinds=around.paused_kinds,
            watched=_decoded(row.watched, tuple[JobGlance, ...]),
            in_hand=_decoded(row.in_hand, tuple[RunningShown, ...]) if in_hand else None,
            hints_seconds=around.hints_seconds,
        )
        moved = None
        if slow:
            sums = _decoded(row.credits, tuple[_Credits])[0]
            moved = Slow(_decoded(row.times, tuple[QueueTimes, ...]), sums.held, sums.available, sums.paused_accounts)
        return Seen(now, moved, _decoded(row.ended, tuple[EndedMinute, ...]))

    async def running(self, limit: int = IN_HAND_MAX) -> tuple[RunningShown, ...]:
        """What runs, by worker, the longest first."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_RUNNING, {"most": limit})
            return tuple(RunningShown(*row) for row in rows)


_RUNNING = text("""
    SELECT job_id AS id, account_id AS account, kind, queue, worker_id AS worker, attempt, started_at, lease_until,
           ends_by, progress, stage, cancel_asked_at IS NOT NULL AS cancel_asked
    FROM live
    ORDER BY worker_id, started_at, job_id
    LIMIT :most
""")

_AROUND = text(f"""
    SELECT fermata_now() AS now,
           (SELECT CAST(EXTRACT(EPOCH FROM fermata_now() - max(ran_at)) AS double precision)
            FROM duty_runs
            WHERE duty = 'scheduler') AS dispatch_seconds,
           {HINTS_SECONDS} AS hints_seconds,
           ARRAY(SELECT name FROM controls WHERE scope = 'kind' AND paused ORDER BY name) AS paused_kinds
""")  # noqa: S608  what is put in stands in a file of ours

_WATCHED = text("""
    SELECT j.job_id AS id, j.state, j.attempt AS attempts, COALESCE(l.progress, 0) AS progress, l.stage
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
    SELECT n.queue, count(*) AS jobs,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY t.wait) AS wait_p50,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY t.wait) AS wait_p95,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY t.run) AS run_p50,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY t.run) AS run_p95
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
    SELECT COALESCE(sum(held), 0) AS held,
           COALESCE(sum(available) FILTER (WHERE expires_at IS NULL OR expires_at > fermata_now()), 0) AS available,
           (SELECT count(*) FROM accounts WHERE paused) AS paused_accounts
    FROM lots
    WHERE NOT closed
""")

#: Each window by the index over events, whatever the planner thinks of all of them together.
_ENDED = text("""
    SELECT ended.minute, ended.queue, ended.state, ended.jobs, ended.charged, ended.refunded
    FROM unnest(CAST(:since AS timestamptz[]), CAST(:until AS timestamptz[])) AS w (since, until)
    CROSS JOIN LATERAL (
        SELECT date_trunc('minute', e.at) AS minute, e.queue, e.state, count(*) AS jobs, sum(e.charged) AS charged,
               COALESCE(sum(r.amount - r.charged), 0) AS refunded
        FROM events AS e
        LEFT JOIN reservations AS r USING (account_id, job_id)
        WHERE e.what = 'ended'
          AND e.at >= w.since
          AND e.at < w.until
        GROUP BY 1, 2, 3
    ) AS ended
""")


@dataclass(frozen=True, slots=True)
class _Around:
    now: datetime
    dispatch_seconds: float | None
    hints_seconds: float | None
    paused_kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Credits:
    held: int
    available: int
    paused_accounts: int


def _all_of(read: TextClause) -> ColumnElement[Any]:
    """All rows of a read as one value: objects whose names are its columns."""
    rows = read.columns().subquery("one")
    objects = func.coalesce(func.json_agg(literal_column("one")), literal_column("'[]'"))
    return select(objects).select_from(rows).scalar_subquery()


def _decoded(objects: Any, rows: type[T]) -> T:
    return msgspec.convert(objects, rows)


_CLOCK = text("SELECT fermata_now()")

#: PostgreSQL runs those parts that a CASE leaves out not at all.
_SLOW = bindparam("slow", type_=Boolean)
_IN_HAND = bindparam("in_hand", type_=Boolean)
_LOOK = select(
    _all_of(_AROUND).label("around"),
    _all_of(QUEUES).label("queues"),
    _all_of(WORKERS).label("workers"),
    _all_of(_WATCHED).label("watched"),
    case((_IN_HAND, _all_of(_RUNNING))).label("in_hand"),
    case((_SLOW, _all_of(_TIMES))).label("times"),
    case((_SLOW, _all_of(_CREDITS))).label("credits"),
    _all_of(_ENDED).label("ended"),
)
