"""What ops look at: every queue with its depth, age and workers, and every worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.reads_jobs import ALIVE_SECONDS
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class QueueShown:
    """One queue. Jobs of an ended state are in none of these numbers."""

    queue: str
    ready: int  # queued and could run: nothing keeps them but slots and the queue's own limit
    later: int  # queued for a time to come: a back-off after a failure, or a start time of their own
    blocked: int  # queued; their queue, kind or account is paused, or their account runs as many as it may
    parked: int  # waiting for credits
    running: int
    oldest_seconds: float  # for so long the oldest of the ready ones could have run; 0 if none is ready
    workers: int  # alive and taking jobs
    slots: int  # of these
    paused: bool
    pause_reason: str | None
    running_max: int | None


class WorkerState(StrEnum):
    ALIVE = "alive"
    DRAINING = "draining"  # takes no more jobs, finishes those it has
    STOPPED = "stopped"  # in good order
    LOST = "lost"  # not seen for too long


@dataclass(frozen=True, slots=True)
class WorkerShown:
    """One worker process."""

    worker: str
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    slots: int
    running: int
    state: WorkerState
    started_at: datetime
    seen_at: datetime


class QueueReads:
    """Reads about the machinery."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def queues(self) -> tuple[QueueShown, ...]:
        """Every queue that has unfinished jobs, a worker or a control, by name."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(QUEUES, {"alive": ALIVE_SECONDS})
            return tuple(QueueShown(*row) for row in rows)

    async def depths(self) -> Mapping[str, int]:
        """How many jobs of each queue could be dispatched now."""
        async with snapshot(self._engine) as connection:
            return {row.queue: row.ready for row in await connection.execute(_DEPTHS)}

    async def workers(self) -> tuple[WorkerShown, ...]:
        """Every process in the register, the latest seen first."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(WORKERS, {"alive": ALIVE_SECONDS})
            return tuple(worker_of(row) for row in rows)


def worker_of(row: Any) -> WorkerShown:
    """A worker of a row of `WORKERS`."""
    return WorkerShown(
        worker=row.worker,
        host=row.host,
        pid=row.pid,
        version=row.version,
        queues=tuple(row.queues),
        slots=row.slots,
        running=row.running,
        state=WorkerState(row.state),
        started_at=row.started_at,
        seen_at=row.seen_at,
    )


_DEPTHS = text("""
    SELECT queue, count(*) AS ready
    FROM due
    WHERE waits_for IS NULL
    GROUP BY queue
""")

#: Its columns are the fields of `QueueShown`, in their order.
QUEUES = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), pauses AS MATERIALIZED (
        SELECT ARRAY(SELECT name FROM controls WHERE scope = 'queue' AND paused) AS queues,
               ARRAY(SELECT name FROM controls WHERE scope = 'kind' AND paused) AS kinds
    ), queued AS (
        SELECT d.queue,
               count(*) FILTER (WHERE d.not_before <= clock.now AND NOT blocked.so) AS ready,
               count(*) FILTER (WHERE d.not_before > clock.now) AS later,
               count(*) FILTER (WHERE d.not_before <= clock.now AND blocked.so) AS blocked,
               min(d.not_before) FILTER (WHERE d.not_before <= clock.now AND NOT blocked.so) AS oldest
        FROM due AS d
        CROSS JOIN clock
        CROSS JOIN pauses
        CROSS JOIN LATERAL (
            SELECT COALESCE(d.waits_for IN ('paused', 'account_limit'), false)
                OR d.queue = ANY (pauses.queues)
                OR d.kind = ANY (pauses.kinds) AS so
        ) AS blocked
        GROUP BY d.queue
    ), running AS (
        SELECT queue, count(*) AS running
        FROM live
        GROUP BY queue
    ), waiting AS (
        SELECT queue, count(*) AS parked
        FROM parked
        GROUP BY queue
    ), served AS (
        SELECT q.queue, count(*) AS workers, sum(w.slots) AS slots
        FROM workers AS w
        CROSS JOIN clock
        CROSS JOIN LATERAL unnest(w.queues) AS q (queue)
        WHERE w.stopped_at IS NULL
          AND NOT w.draining
          AND w.seen_at > clock.now - make_interval(secs => :alive)
        GROUP BY q.queue
    ), controlled AS (
        SELECT name AS queue, paused, reason, running_max
        FROM controls
        WHERE scope = 'queue'
    ), names AS (
        SELECT queue FROM queued
        UNION SELECT queue FROM running
        UNION SELECT queue FROM waiting
        UNION SELECT queue FROM served
        UNION SELECT queue FROM controlled
    )
    SELECT names.queue, COALESCE(queued.ready, 0) AS ready, COALESCE(queued.later, 0) AS later,
           COALESCE(queued.blocked, 0) AS blocked, COALESCE(waiting.parked, 0) AS parked,
           COALESCE(running.running, 0) AS running,
           CAST(COALESCE(EXTRACT(EPOCH FROM clock.now - queued.oldest), 0) AS double precision) AS oldest_seconds,
           COALESCE(served.workers, 0) AS workers, COALESCE(served.slots, 0) AS slots,
           COALESCE(controlled.paused, false) AS paused,
           CASE WHEN controlled.paused THEN controlled.reason END AS pause_reason, controlled.running_max
    FROM names
    CROSS JOIN clock
    LEFT JOIN queued USING (queue)
    LEFT JOIN running USING (queue)
    LEFT JOIN waiting USING (queue)
    LEFT JOIN served USING (queue)
    LEFT JOIN controlled USING (queue)
    ORDER BY names.queue
""")

#: Its columns are the fields of `WorkerShown`.
WORKERS = text("""
    SELECT w.worker_id AS worker, w.host, w.pid, w.version, w.queues, w.slots, w.started_at, w.seen_at,
           COALESCE(mine.running, 0) AS running,
           CASE
               WHEN w.stopped_at IS NOT NULL THEN 'stopped'
               WHEN w.seen_at <= fermata_now() - make_interval(secs => :alive) THEN 'lost'
               WHEN w.draining THEN 'draining'
               ELSE 'alive'
           END AS state
    FROM workers AS w
    LEFT JOIN (
        SELECT worker_id, count(*) AS running
        FROM live
        GROUP BY worker_id
    ) AS mine USING (worker_id)
    ORDER BY w.seen_at DESC, w.worker_id
""")
