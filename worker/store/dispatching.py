"""Which jobs get a hint next. Marks are rows: made before the hint is sent, cleared by whoever drops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import transaction


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

    async def demand(self, alive_seconds: float, fresh_seconds: float) -> list[QueueDemand]:
        """Each queue that is served and not paused.

        A mark counts as hinted for `fresh_seconds`: an older one is not about to fill a slot, whatever became of
        it, and must not keep room from others.
        """
        async with transaction(self._engine) as connection:
            rows = await connection.execute(_DEMAND, {"alive": alive_seconds, "fresh": fresh_seconds})
            return [QueueDemand(*row) for row in rows]

    async def mark(self, queue: str, room: int, repeat_seconds: float) -> Hinted:
        """Mark up to `room` due jobs of a queue and those whose hint is to be repeated; commits before it returns.

        Order: priority, turn, age. Jobs of paused queues and kinds stay where they are.
        """
        values = {"queue": queue, "room": room, "repeat": repeat_seconds}
        async with transaction(self._engine) as connection:
            again = (await connection.execute(_MARK_AGAIN, values)).all()
            fresh = (await connection.execute(_MARK, values)).all() if room > 0 else []
        rows = sorted([*again, *fresh], key=lambda row: (row.priority, row.turn, row.job_id))
        return Hinted(queue, [(row.account_id, row.job_id) for row in rows], more=len(fresh) >= room)

    async def forget_marks(self) -> int:
        """After a flush of Redis: every mark is a hint that was lost. Returns how many were cleared."""
        async with transaction(self._engine) as connection:
            return int((await connection.execute(_FORGET_MARKS)).rowcount)

    async def unhint(self, pairs: Sequence[tuple[str, UUID]]) -> None:
        """Clear the marks of jobs that found no slot, so that they are hinted elsewhere at once."""
        keys = {"accounts": [pair[0] for pair in pairs], "jobs": [pair[1] for pair in pairs]}
        async with transaction(self._engine) as connection:
            await connection.execute(_UNHINT, keys)
            await connection.execute(text("SELECT pg_notify('fermata_due', '')"))

    async def hold_off(self, pairs: Sequence[tuple[str, UUID]], seconds: float) -> None:
        """Clear the marks of jobs that can't be claimed just now, and let others go first for so long."""
        keys = {"accounts": [pair[0] for pair in pairs], "jobs": [pair[1] for pair in pairs]}
        async with transaction(self._engine) as connection:
            await connection.execute(_HOLD_OFF, {**keys, "seconds": seconds})

    async def epoch(self) -> str:
        """What marks the Redis whose hints these rows tell of. Made once, kept for ever."""
        async with transaction(self._engine) as connection:
            return str((await connection.execute(_EPOCH, {"fresh": str(uuid4())})).scalar_one())

    async def recheck_waiting(self) -> int:
        """The safety net under pause and limit: let blocked jobs that may not be blocked any more be claimed again."""
        async with transaction(self._engine) as connection:
            return int((await connection.execute(_RECHECK)).rowcount)


_DEMAND = text("""
    WITH served AS (
        SELECT q.queue, sum(w.slots) AS slots, count(*) AS workers
        FROM workers AS w
        CROSS JOIN LATERAL unnest(w.queues) AS q (queue)
        WHERE w.stopped_at IS NULL
          AND NOT w.draining
          AND w.seen_at > fermata_now() - make_interval(secs => :alive)
        GROUP BY q.queue
    ), hinted AS (
        SELECT queue, count(*) AS hinted
        FROM due
        WHERE hinted_at > fermata_now() - make_interval(secs => :fresh)
        GROUP BY queue
    ), running AS (
        SELECT queue, count(*) AS running
        FROM live
        GROUP BY queue
    )
    SELECT served.queue, served.slots, served.workers, COALESCE(running.running, 0) AS running,
           COALESCE(hinted.hinted, 0) AS hinted,
           EXISTS (
               SELECT FROM due AS d
               WHERE d.queue = served.queue
                 AND d.hinted_at IS NULL
                 AND d.waits_for IS NULL
                 AND d.not_before <= fermata_now()
           ) AS ready,
           c.running_max
    FROM served
    LEFT JOIN hinted USING (queue)
    LEFT JOIN running USING (queue)
    LEFT JOIN controls AS c ON c.scope = 'queue' AND c.name = served.queue
    WHERE c.paused IS NOT TRUE
    ORDER BY served.queue
""")

_MARK = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), next AS (
        SELECT d.account_id, d.job_id
        FROM due AS d
        CROSS JOIN clock
        WHERE d.queue = :queue
          AND d.hinted_at IS NULL
          AND d.waits_for IS NULL
          AND d.not_before <= clock.now
          AND NOT EXISTS (
              SELECT FROM controls AS c
              WHERE c.scope = 'kind' AND c.name = d.kind AND c.paused
          )
        ORDER BY d.priority, d.turn, d.job_id
        LIMIT :room
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE due AS d
    SET hinted_at = clock.now, hint_again_at = clock.now + make_interval(secs => :repeat), hints = d.hints + 1
    FROM next
    CROSS JOIN clock
    WHERE d.account_id = next.account_id
      AND d.job_id = next.job_id
    RETURNING d.account_id, d.job_id, d.priority, d.turn
""")

#: Back-off 15 s, 30 s, 60 s … up to 16 times the first: a hint that keeps being lost must not fill Redis.
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
    WHERE d.account_id = next.account_id
      AND d.job_id = next.job_id
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
    WHERE d.account_id = mine.account_id
      AND d.job_id = mine.job_id
""")

_UNHINT = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL, hints = 0
    FROM (
        SELECT m.account_id, m.job_id
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
        JOIN due AS m USING (account_id, job_id)
        ORDER BY m.account_id, m.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE d.account_id = mine.account_id
      AND d.job_id = mine.job_id
""")

_HOLD_OFF = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL, hints = 0,
        not_before = GREATEST(d.not_before, fermata_now() + make_interval(secs => :seconds))
    FROM (
        SELECT m.account_id, m.job_id
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
        JOIN due AS m USING (account_id, job_id)
        ORDER BY m.account_id, m.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE d.account_id = mine.account_id
      AND d.job_id = mine.job_id
""")

_EPOCH = text("""
    INSERT INTO duty_runs AS d (duty, ran_at, body)
    VALUES ('redis_epoch', fermata_now(), to_jsonb(CAST(:fresh AS text)))
    ON CONFLICT (duty) DO UPDATE
    SET ran_at = fermata_now()
    RETURNING d.body #>> '{}'
""")

_RECHECK = text("""
    UPDATE due AS d
    SET waits_for = NULL
    FROM (
        SELECT w.account_id, w.job_id
        FROM due AS w
        JOIN accounts AS a USING (account_id)
        WHERE w.waits_for IS NOT NULL
          AND NOT a.paused
          AND (
              a.running_max IS NULL
              OR a.running_max > (SELECT count(*) FROM live AS l WHERE l.account_id = a.account_id)
          )
        FOR UPDATE OF w SKIP LOCKED
    ) AS mine
    WHERE d.account_id = mine.account_id
      AND d.job_id = mine.job_id
""")
