"""Which jobs get a hint next. Marks are rows: made before the hint is sent, cleared by whoever drops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import reading, transaction
from worker.store.turns import Turns


@dataclass(frozen=True, slots=True)
class QueueDemand:
    """One queue as the dispatcher sees it."""

    queue: str
    slots: int  # of the living workers that serve it
    workers: int
    running: int
    hinted: int  # jobs whose hint may be under way
    ready: bool  # whether there are due jobs without a hint
    running_max: int | None  # jobs at a time, by a person's word; soft: only dispatch keeps it
    ripe: bool = False  # whether the time of jobs has come that were for later, of whatever queue

    @property
    def free(self) -> int:
        """Slots that no running and no hinted job is going to fill."""
        slots = self.slots if self.running_max is None else min(self.slots, self.running_max)
        return slots - self.running - self.hinted


@dataclass(frozen=True, slots=True)
class Hinted:
    """Jobs to be hinted now, in their order."""

    queue: str
    pairs: Sequence[tuple[str, UUID]]
    more: bool  # whether others were left for want of room


class Dispatching:
    """The dispatcher's statements."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turns = Turns(engine)

    async def ripen(self) -> int:
        """Let jobs go whose time has come; before a look that is to find them. Returns how many."""
        return await self._turns.ripen()

    async def demand(self, alive_seconds: float, fresh_seconds: float) -> list[QueueDemand]:
        """Each queue that is served and not paused.

        A mark counts as hinted for `fresh_seconds`: an older one is not about to fill a slot, whatever became of
        it, and must not keep room from others. While no worker of the queue has a slot free, every mark counts: its
        hint waits in Redis, where nobody can put another before it.
        """
        async with reading(self._engine, by_key=True) as connection:
            rows = await connection.execute(_DEMAND, {"alive": alive_seconds, "fresh": fresh_seconds})
            return [QueueDemand(*row) for row in rows]

    async def mark(self, queue: str, room: int, repeat_seconds: float, point_seconds: float = 60.0) -> Hinted:
        """Mark up to `room` due jobs of a queue and those whose hint is to be repeated; commits before it returns.

        Repeated ones come first. Order of the others: by turn and age among those of one priority; between two
        priorities the one whose next job has the higher, where `point_seconds` of age are worth one point. Jobs of
        paused queues and kinds stay where they are.
        """
        values = {"queue": queue, "repeat": repeat_seconds}
        async with transaction(self._engine, "mark_hints", by_key=True) as connection:
            again = (await connection.execute(_MARK_AGAIN, values)).all()
            fresh: Sequence[Any] = ()
            if room > 0:
                values |= {"room": room, "point": point_seconds}
                fresh = (await connection.execute(_MARK, values)).all()
                await self._turns.note(connection, queue, ((row.priority, row.turn) for row in fresh))
        rows = [*again, *sorted(fresh, key=attrgetter("position"))]
        return Hinted(queue, [(row.account_id, row.job_id) for row in rows], more=len(fresh) >= room)

    async def forget_marks(self) -> int:
        """After a flush of Redis: every mark is a hint that was lost. Returns how many were cleared."""
        async with transaction(self._engine, "forget_marks") as connection:
            return int((await connection.execute(_FORGET_MARKS)).rowcount)

    async def unhint(self, pairs: Sequence[tuple[str, UUID]]) -> None:
        """Clear the marks of jobs that found no slot, so that they are hinted elsewhere at once."""
        keys = {"accounts": [pair[0] for pair in pairs], "jobs": [pair[1] for pair in pairs]}
        async with transaction(self._engine, "unhint", by_key=True) as connection:
            await connection.execute(_UNHINT, keys)
            await connection.execute(text("SELECT pg_notify('fermata_due', '')"))

    async def hold_off(self, pairs: Sequence[tuple[str, UUID]], seconds: float) -> None:
        """Clear the marks of jobs that can't be claimed just now, and let others go first for so long."""
        keys = {"accounts": [pair[0] for pair in pairs], "jobs": [pair[1] for pair in pairs]}
        async with transaction(self._engine, "hold_off", by_key=True) as connection:
            await connection.execute(_HOLD_OFF, {**keys, "seconds": seconds})

    async def traceparents(self, pairs: Sequence[tuple[str, UUID]]) -> dict[UUID, str]:
        """Which spans submitted these jobs, of those that were submitted under one."""
        keys = {"accounts": [pair[0] for pair in pairs], "jobs": [pair[1] for pair in pairs]}
        async with reading(self._engine, by_key=True) as connection:
            return {row.job_id: row.traceparent for row in await connection.execute(_TRACEPARENTS, keys)}

    async def deployment(self) -> str:
        """What marks the Redis whose hints these rows tell of: this database of this server.

        A dump that is restored elsewhere is another deployment; a server copied file by file can't be told apart.
        """
        async with reading(self._engine) as connection:
            return await deployment_of(connection)

    async def recheck_waiting(self) -> int:
        """The safety net under pause and limit: let blocked jobs that may not be blocked any more be claimed again."""
        async with transaction(self._engine, "recheck_waiting", by_key=True) as connection:
            return int((await connection.execute(_RECHECK)).rowcount)


async def deployment_of(connection: AsyncConnection) -> str:
    """Which deployment this database is: the server's own number and the database's."""
    return str((await connection.execute(_DEPLOYMENT)).scalar_one())


_DEMAND = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), at_work AS MATERIALIZED (
        SELECT worker_id, queue, count(*) AS jobs
        FROM live
        WHERE account_id >= ''  -- all, by the index: the table's pages are mostly of rows that have gone
        GROUP BY worker_id, queue
    ), taken AS (
        SELECT worker_id, sum(jobs) AS jobs
        FROM at_work
        GROUP BY worker_id
    ), served AS (
        SELECT q.queue, sum(w.slots) AS slots, count(*) AS workers,
               sum(GREATEST(w.slots - COALESCE(taken.jobs, 0), 0)) AS free
        FROM workers AS w
        CROSS JOIN LATERAL unnest(w.queues) AS q (queue)
        LEFT JOIN taken USING (worker_id)
        WHERE w.stopped_at IS NULL
          AND NOT w.draining
          AND w.seen_at > fermata_now() - make_interval(secs => :alive)
        GROUP BY q.queue
    ), hinted AS (
        SELECT queue, count(*) AS ever,
               count(*) FILTER (WHERE hinted_at > fermata_now() - make_interval(secs => :fresh)) AS freshly
        FROM due
        WHERE hinted_at IS NOT NULL
        GROUP BY queue
    ), running AS (
        SELECT queue, sum(jobs)::bigint AS running
        FROM at_work
        GROUP BY queue
    )
    SELECT served.queue, served.slots, served.workers, COALESCE(running.running, 0) AS running,
           COALESCE(CASE WHEN served.free > 0 THEN hinted.freshly ELSE hinted.ever END, 0) AS hinted,
           COALESCE((
               SELECT true
               FROM due AS d
               WHERE d.queue = served.queue
                 AND d.hinted_at IS NULL
                 AND d.waits_for IS NULL
                 AND d.not_before <= clock.now
               ORDER BY d.priority DESC, d.turn, d.job_id  -- by the index: see `at_work`
               LIMIT 1
           ), false) AS ready,
           c.running_max,
           EXISTS (
               SELECT FROM due AS d
               WHERE d.waits_for IN ('run_at', 'backoff')
                 AND d.not_before <= clock.now
           ) AS ripe
    FROM served
    CROSS JOIN clock
    LEFT JOIN hinted USING (queue)
    LEFT JOIN running USING (queue)
    LEFT JOIN controls AS c ON c.scope = 'queue' AND c.name = served.queue
    WHERE c.paused IS NOT TRUE
    ORDER BY served.queue
""")

#: Of each priority the next `room`, so few rows are read however many are queued. `rank_at` of a job is when it could
#: run, moved ahead by its priority; within a priority nobody overtakes, so a job's rank is no better than those before.
_MARK = text("""
    WITH RECURSIVE clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), priorities AS (
        SELECT (
            SELECT d.priority
            FROM due AS d
            WHERE d.queue = :queue AND d.hinted_at IS NULL AND d.waits_for IS NULL
            ORDER BY d.priority DESC
            LIMIT 1
        ) AS priority
        UNION ALL
        SELECT (
            SELECT d.priority
            FROM due AS d
            WHERE d.queue = :queue AND d.hinted_at IS NULL AND d.waits_for IS NULL
              AND d.priority < priorities.priority
            ORDER BY d.priority DESC
            LIMIT 1
        )
        FROM priorities
        WHERE priorities.priority IS NOT NULL
    ), found AS MATERIALIZED (
        SELECT d.place, d.job_id, priorities.priority, d.turn, d.since
        FROM priorities
        CROSS JOIN clock
        CROSS JOIN LATERAL (
            SELECT ctid AS place, job_id, turn, since
            FROM due
            WHERE queue = :queue
              AND priority = priorities.priority
              AND hinted_at IS NULL
              AND waits_for IS NULL
              AND not_before <= clock.now
              AND kind <> ALL (ARRAY(SELECT c.name FROM controls AS c WHERE c.scope = 'kind' AND c.paused))
            ORDER BY turn, job_id
            LIMIT :room
            FOR UPDATE SKIP LOCKED
        ) AS d
    ), ranked AS (
        SELECT place, job_id, priority, turn,
               max(since - make_interval(secs => :point * priority)) OVER (
                   PARTITION BY priority ORDER BY turn, job_id
               ) AS rank_at
        FROM found
    ), next AS (
        SELECT place, row_number() OVER (ORDER BY rank_at, priority DESC, turn, job_id) AS position
        FROM ranked
        ORDER BY position
        LIMIT :room
    )
    UPDATE due AS d
    SET hinted_at = clock.now, hint_again_at = clock.now + make_interval(secs => :repeat), hints = 1
    FROM next
    CROSS JOIN clock
    WHERE d.ctid = next.place  -- it is locked, so it can't move; by its key it would be looked up once more
    RETURNING d.account_id, d.job_id, d.priority, d.turn, next.position
""")

#: Back-off 15 s, 30 s, 60 s … up to 16 times the first, anew with each mark: a hint that keeps being lost must not
#: fill Redis.
_MARK_AGAIN = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), next AS (
        SELECT d.account_id, d.job_id
        FROM due AS d
        CROSS JOIN clock
        WHERE d.queue = :queue
          AND d.hinted_at IS NOT NULL
          AND d.hint_again_at <= clock.now
        ORDER BY d.hint_again_at
        LIMIT 1000
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE due AS d
    SET hint_again_at = clock.now + make_interval(secs => :repeat * power(2, LEAST(d.hints, 4))),
        hints = d.hints + 1
    FROM next
    CROSS JOIN clock
    WHERE d.account_id = ANY(ARRAY[next.account_id])
      AND d.job_id = ANY(ARRAY[next.job_id])
    RETURNING d.account_id, d.job_id, d.priority, d.turn
""")

#: A row that is locked is being claimed, or marked anew: waiting for it while holding others would deadlock.
_FORGET_MARKS = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL
    FROM (
        SELECT account_id, job_id
        FROM due
        WHERE hinted_at IS NOT NULL
        FOR UPDATE SKIP LOCKED
    ) AS mine
    WHERE d.account_id = ANY(ARRAY[mine.account_id])
      AND d.job_id = ANY(ARRAY[mine.job_id])
""")

_UNHINT = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL
    FROM (
        SELECT m.account_id, m.job_id
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
        JOIN due AS m ON m.account_id = ANY(ARRAY[u.account_id]) AND m.job_id = ANY(ARRAY[u.job_id])
        ORDER BY u.account_id, u.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE d.account_id = ANY(ARRAY[mine.account_id])
      AND d.job_id = ANY(ARRAY[mine.job_id])
""")

_HOLD_OFF = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL,
        not_before = GREATEST(d.not_before, fermata_now() + make_interval(secs => :seconds))
    FROM (
        SELECT m.account_id, m.job_id
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
        JOIN due AS m ON m.account_id = ANY(ARRAY[u.account_id]) AND m.job_id = ANY(ARRAY[u.job_id])
        ORDER BY u.account_id, u.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE d.account_id = ANY(ARRAY[mine.account_id])
      AND d.job_id = ANY(ARRAY[mine.job_id])
""")

_TRACEPARENTS = text("""
    SELECT j.job_id, j.traceparent
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    JOIN jobs AS j ON j.account_id = ANY(ARRAY[u.account_id]) AND j.job_id = ANY(ARRAY[u.job_id])
    WHERE j.traceparent IS NOT NULL
""")

_DEPLOYMENT = text("""
    SELECT s.system_identifier || '.' || d.oid
    FROM pg_control_system() AS s
    JOIN pg_database AS d ON d.datname = current_database()
""")

_RECHECK = text("""
    UPDATE due AS d
    SET waits_for = NULL
    FROM (
        SELECT w.account_id, w.job_id
        FROM due AS w
        CROSS JOIN LATERAL (
            SELECT paused, running_max
            FROM accounts
            WHERE account_id = w.account_id
            OFFSET 0  -- or it begins with the accounts, and looks for jobs of each
        ) AS a
        WHERE w.waits_for IN ('paused', 'account_limit')
          AND NOT a.paused
          AND (
              a.running_max IS NULL
              OR a.running_max > (SELECT count(*) FROM live AS l WHERE l.account_id = w.account_id)
          )
        FOR UPDATE OF w SKIP LOCKED
    ) AS mine
    WHERE d.account_id = ANY(ARRAY[mine.account_id])
      AND d.job_id = ANY(ARRAY[mine.job_id])
""")
