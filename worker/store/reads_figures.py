"""What metrics and health tell of the books: depth and age of the queues, who is alive, whether held is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import transaction
from worker.store.reads_jobs import ALIVE_SECONDS
from worker.store.reads_queues import QUEUES, QueueShown
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class BooksFigures:
    """One look. `dispatch_seconds`: since a scheduler gave a sign; None: never. `processes`: those alive, by sort.

    `hints_seconds`: since a scheduler's dispatch reached Redis, or else since the oldest living one was started; None:
    there was none.

    `dead_deliveries`: events that an endpoint never took. `audit_seconds`: since the last audit by anybody, which found
    `audit_violations`; None: never.
    """

    queues: tuple[QueueShown, ...]
    held: int
    unwritten: int
    deliveries: int
    dispatch_seconds: float | None
    processes: Mapping[str, int]
    dead_deliveries: int = 0
    audit_seconds: float | None = None
    audit_violations: int | None = None
    hints_seconds: float | None = None


class FigureReads:
    """Looks at the books, and signs of life in them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def figures(self) -> BooksFigures:
        """One snapshot of a few indexed statements."""
        async with snapshot(self._engine) as connection:
            queues = tuple(QueueShown(*row) for row in await connection.execute(QUEUES, {"alive": ALIVE_SECONDS}))
            sums = (await connection.execute(_SUMS, {"alive": ALIVE_SECONDS})).one()
            alive = await connection.execute(_ALIVE, {"alive": ALIVE_SECONDS})
            processes = {row.process: int(row.alive) for row in alive}
        every = {name: processes.get(name, 0) for name in ("worker", "scheduler", "api")}
        return BooksFigures(
            queues,
            sums.held,
            sums.unwritten,
            sums.deliveries,
            sums.dispatch_seconds,
            every,
            sums.dead_deliveries,
            sums.audit_seconds,
            sums.audit_violations,
            sums.hints_seconds,
        )

    async def imbalance(self) -> int:
        """Credits that lots have as held, less those that reservations hold. Reads all reservations: once a minute."""
        async with snapshot(self._engine) as connection:
            return int((await connection.execute(_IMBALANCE)).scalar_one())

    async def here(self, process_id: str, process: str, host: str, pid: int, version: str) -> None:
        """Leave a sign that a process is alive. (Workers do so in their register.)"""
        values = {"id": process_id, "process": process, "host": host, "pid": pid, "version": version}
        async with transaction(self._engine, "process_here") as connection:
            await connection.execute(_HERE, values)


#: A scheduler that was only just started has not failed to reach anything.
HINTS_SECONDS = """
    CAST(EXTRACT(EPOCH FROM fermata_now() - GREATEST(
        (SELECT ran_at FROM duty_runs WHERE duty = 'dispatch'),
        (
            SELECT min(started_at)
            FROM processes
            WHERE process = 'scheduler'
              AND seen_at > fermata_now() - make_interval(secs => :alive)
        )
    )) AS double precision)
"""

_SUMS = text(f"""
    SELECT CAST(COALESCE(sum(held), 0) AS bigint) AS held,
           CAST(COALESCE(sum(available) FILTER (WHERE expires_at <= fermata_now()), 0) AS bigint) AS unwritten,
           (SELECT count(*) FROM deliveries WHERE state = 'pending') AS deliveries,
           (SELECT count(*) FROM deliveries WHERE state = 'dead') AS dead_deliveries,
           (
               SELECT CAST(EXTRACT(EPOCH FROM fermata_now() - ran_at) AS double precision)
               FROM duty_runs
               WHERE duty = 'audit'
           ) AS audit_seconds,
           (SELECT CAST(body ->> 'count' AS bigint) FROM duty_runs WHERE duty = 'audit') AS audit_violations,
           (
               SELECT CAST(EXTRACT(EPOCH FROM fermata_now() - max(ran_at)) AS double precision)
               FROM duty_runs
               WHERE duty = 'scheduler'
           ) AS dispatch_seconds,
           {HINTS_SECONDS} AS hints_seconds
    FROM lots
    WHERE NOT closed
""")  # noqa: S608  all of it stands in this file

_ALIVE = text("""
    SELECT 'worker' AS process, count(*) AS alive
    FROM workers
    WHERE stopped_at IS NULL
      AND seen_at > fermata_now() - make_interval(secs => :alive)
    UNION ALL
    SELECT process, count(*)
    FROM processes
    WHERE seen_at > fermata_now() - make_interval(secs => :alive)
    GROUP BY process
""")

_IMBALANCE = text("""
    SELECT (SELECT CAST(COALESCE(sum(held), 0) AS bigint) FROM lots WHERE NOT closed)
         - (SELECT CAST(COALESCE(sum(amount), 0) AS bigint) FROM reservations WHERE state = 'held')
""")

#: Those that have not been seen for a day are forgotten by whoever comes next.
_HERE = text("""
    WITH forgotten AS (
        DELETE FROM processes
        WHERE seen_at < fermata_now() - interval '1 day'
          AND process_id <> :id
    )
    INSERT INTO processes (process_id, process, host, pid, version, started_at, seen_at)
    VALUES (:id, :process, :host, :pid, :version, fermata_now(), fermata_now())
    ON CONFLICT (process_id) DO UPDATE
    SET seen_at = fermata_now()
""")
