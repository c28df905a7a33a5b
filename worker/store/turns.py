"""Turns: an account's next job goes a round after its last one, so a long queue of one delays no other's single job.

A job's turn is given at submit: `max(its queue's turn, its account's last + 1)`. Dispatch takes the lower turn first
within one priority, so each account with jobs gets one a round, and costs no more however many are queued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import transaction

#: Whose turns: account, queue, priority.
Line = tuple[str, str, int]


async def take_turns(connection: AsyncConnection, jobs: Sequence[Line]) -> list[int]:
    """The turns of these jobs, in their order: one statement, however many jobs and submitting processes.

    In a transaction `at_once`: what others wait for must never wait for us. What is taken and not used is a gap.
    """
    asked = sorted(Counter(jobs).items())
    rows = await connection.execute(
        _TAKE,
        {
            "accounts": [line[0] for line, _ in asked],
            "queues": [line[1] for line, _ in asked],
            "priorities": [line[2] for line, _ in asked],
            "jobs": [count for _, count in asked],
        },
    )
    next_turns = {(row.account_id, row.queue, row.priority): row.turn - row.taken + 1 for row in rows}
    return [_next_of(next_turns, line) for line in jobs]


def _next_of(next_turns: dict[Line, int], line: Line) -> int:
    turn = next_turns[line]
    next_turns[line] = turn + 1
    return turn


class Turns:
    """How far each queue has come."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._noted: dict[tuple[str, int], int] = {}

    async def ripen(self) -> int:
        """Let jobs go whose time has come, at most 500; returns how many. New ones get their turns only now."""
        async with transaction(self._engine, "ripen", at_once=True) as connection:
            return int((await connection.execute(_RIPEN)).rowcount)

    async def note(self, connection: AsyncConnection, queue: str, marked: Iterable[tuple[int, int]]) -> None:
        """Tell submits how far the queue has come: the (priority, turn) of what is dispatched in this transaction."""
        highest: dict[int, int] = {}
        for priority, turn in marked:
            highest[priority] = max(turn, highest.get(priority, 0))
        ahead = {priority: turn for priority, turn in highest.items() if turn > self._noted.get((queue, priority), 0)}
        if ahead:
            values = {"queue": queue, "priorities": list(ahead), "turns": list(ahead.values())}
            await connection.execute(_NOTE, values)
            self._noted.update({(queue, priority): turn for priority, turn in ahead.items()})

    async def forget(self) -> int:
        """Forget turns that are no higher than their queue's: they decide nothing any more."""
        async with transaction(self._engine, "forget_turns") as connection:
            return int((await connection.execute(_FORGET)).rowcount)


#: An account without a row has queued nothing here, or PostgreSQL crashed since: then `due` tells its last turn.
_TAKE = text("""
    WITH asked AS (
        SELECT a.account_id, a.queue, a.priority, a.jobs, t.turn AS last_turn,
               COALESCE((
                   SELECT q.turn FROM queue_turns AS q WHERE q.queue = a.queue AND q.priority = a.priority
               ), 0) AS queue_turn
        FROM unnest(CAST(:accounts AS text[]), CAST(:queues AS text[]), CAST(:priorities AS smallint[]),
                    CAST(:jobs AS integer[]))
             AS a (account_id, queue, priority, jobs)
        LEFT JOIN LATERAL (
            SELECT turn
            FROM turns
            WHERE account_id = a.account_id
              AND queue = a.queue
              AND priority = a.priority
            OFFSET 0
        ) AS t ON true
    )
    INSERT INTO turns AS t (account_id, queue, priority, turn, taken)
    SELECT account_id, queue, priority,
           GREATEST(
               queue_turn,
               CASE WHEN last_turn IS NULL THEN (
                   SELECT max(d.turn) + 1
                   FROM due AS d
                   WHERE d.account_id = asked.account_id
                     AND d.queue = asked.queue
                     AND d.priority = asked.priority
               ) END
           ) + jobs - 1,
           jobs
    FROM asked
    ORDER BY account_id, queue, priority
    ON CONFLICT (account_id, queue, priority) DO UPDATE
    SET turn = GREATEST(excluded.turn, t.turn + excluded.taken), taken = excluded.taken
    RETURNING account_id, queue, priority, turn, taken
""")

#: What is woken for the first time takes its turns as a submit does. A retry keeps the turn it came back with.
_RIPEN = text("""
    WITH ripe AS MATERIALIZED (
        SELECT d.account_id, d.job_id, d.queue, d.priority, d.waits_for,
               row_number() OVER (
                   PARTITION BY d.account_id, d.queue, d.priority, d.waits_for ORDER BY d.not_before, d.job_id
               ) AS position
        FROM (SELECT fermata_now() AS now) AS clock
        CROSS JOIN LATERAL (
            SELECT account_id, job_id, queue, priority, waits_for, not_before
            FROM due
            WHERE waits_for IN ('run_at', 'backoff')
              AND not_before <= clock.now
            ORDER BY not_before
            LIMIT 500
            FOR UPDATE SKIP LOCKED
        ) AS d
    ), asked AS (
        SELECT r.account_id, r.queue, r.priority, count(*) AS jobs,
               COALESCE((
                   SELECT q.turn FROM queue_turns AS q WHERE q.queue = r.queue AND q.priority = r.priority
               ), 0) AS queue_turn
        FROM ripe AS r
        WHERE r.waits_for = 'run_at'
        GROUP BY r.account_id, r.queue, r.priority
    ), taken AS (
        INSERT INTO turns AS t (account_id, queue, priority, turn, taken)
        SELECT account_id, queue, priority, queue_turn + jobs - 1, jobs
        FROM asked
        ORDER BY account_id, queue, priority
        ON CONFLICT (account_id, queue, priority) DO UPDATE
        SET turn = GREATEST(excluded.turn, t.turn + excluded.taken), taken = excluded.taken
        RETURNING account_id, queue, priority, turn - taken AS before
    )
    UPDATE due AS d
    SET waits_for = NULL, turn = COALESCE(taken.before + ripe.position, d.turn)
    FROM ripe
    LEFT JOIN taken ON ripe.waits_for = 'run_at' AND taken.account_id = ripe.account_id
        AND taken.queue = ripe.queue AND taken.priority = ripe.priority
    WHERE d.account_id = ripe.account_id
      AND d.job_id = ripe.job_id
""")

#: A row that another scheduler is writing is left to it: the turn only tells submits where to begin.
_NOTE = text("""
    WITH marked AS (
        SELECT m.priority, m.turn
        FROM unnest(CAST(:priorities AS smallint[]), CAST(:turns AS bigint[])) AS m (priority, turn)
    ), first AS (
        INSERT INTO queue_turns (queue, priority, turn)
        SELECT :queue, priority, turn
        FROM marked
        WHERE NOT EXISTS (SELECT FROM queue_turns AS q WHERE q.queue = :queue AND q.priority = marked.priority)
        ON CONFLICT DO NOTHING
    )
    UPDATE queue_turns AS q
    SET turn = mine.turn
    FROM (
        SELECT n.priority, marked.turn
        FROM queue_turns AS n
        JOIN marked USING (priority)
        WHERE n.queue = :queue
          AND n.turn < marked.turn
        ORDER BY n.priority
        FOR UPDATE OF n SKIP LOCKED
    ) AS mine
    WHERE q.queue = :queue
      AND q.priority = mine.priority
""")

_FORGET = text("""
    DELETE FROM turns AS t
    USING (
        SELECT old.account_id, old.queue, old.priority
        FROM turns AS old
        JOIN queue_turns AS q USING (queue, priority)
        WHERE old.turn < q.turn
        LIMIT 10000
        FOR UPDATE OF old SKIP LOCKED
    ) AS mine
    WHERE t.account_id = mine.account_id
      AND t.queue = mine.queue
      AND t.priority = mine.priority
""")
