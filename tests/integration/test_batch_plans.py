"""Batches find their rows by key, whatever the statistics say of tables that fill and empty within seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import asyncpg
import pytest

from tests.servers import Database
from worker.store import apply, dispatching, gather, leases
from worker.store import database as opening
from worker.store.driver import Statement

#: Every statement that meets rows of these tables one key at a time.
BY_KEY = {
    name: statement
    for module in (apply, gather)
    for name, statement in vars(module).items()
    if isinstance(statement, Statement) and re.search(r"UPDATE \w+ AS|DELETE FROM|AS wanted|FROM parked", statement.sql)
} | {
    f"{module.__name__.rpartition('.')[2]}{name}": Statement(str(vars(module)[name]))
    for module, names in ((leases, ("_RENEW", "_STANDING", "_REPORT")), (dispatching, ("_UNHINT", "_HOLD_OFF")))
    for name in names
}

#: What schedulers ask every moment: about few rows, in tables whose pages are mostly of rows that have gone.
LOOKS = {
    f"{module.__name__.rpartition('.')[2]}{name}": Statement(str(vars(module)[name]))
    for module, names in (
        (leases, ("_LAPSED", "_OVERDUE")),
        (dispatching, ("_DEMAND", "_MARK", "_MARK_AGAIN", "_RECHECK")),
    )
    for name in names
}

#: A few thousand accounts with one row each in the tables that batches look into.
ONE_OF_EACH = """
    WITH asked AS (
        SELECT 'one-' || n AS account_id, gen_random_uuid() AS job_id, now() AS at, now() + interval '1 day' AS ends_by
        FROM generate_series(1, 3000) AS n
    ), owners AS (
        INSERT INTO accounts (account_id, created_at, actor) SELECT account_id, at, 'test' FROM asked
    ), stock AS (
        INSERT INTO lots (account_id, source, granted, available, created_at, cycle_starts_at, reason)
        SELECT account_id, 'subscription', 10, 10, at, at, 'cycle' FROM asked
    ), wanted AS (
        INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, metadata,
                          quoted, book_id, on_insufficient, ends_by, actor, created_at, failures_max)
        SELECT account_id, job_id, 'only', '', 'generation', 'generation', 'queued', '{}', '{}', '{}', 1, 1, 'refuse',
               ends_by, 'test', at, 3
        FROM asked
    ), holds AS (
        INSERT INTO reservations (account_id, job_id, amount, state, draw_lots, draw_amounts, reserved_at)
        SELECT account_id, job_id, 1, 'held', '{1}', '{1}', at FROM asked
    ), past AS (
        INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending)
        SELECT account_id, job_id, 1, job_id, 'test', at, at, 'crashed' FROM asked
    ), running AS (
        INSERT INTO live (account_id, job_id, token, queue, kind, worker_id, started_at, lease_until, ends_by, attempt)
        SELECT account_id, job_id, job_id, 'generation', 'generation', 'test', at, at, ends_by, 1 FROM asked
    ), waiting AS (
        INSERT INTO parked (account_id, job_id, queue, kind, parked_at, needed, ends_by)
        SELECT account_id, job_id, 'generation', 'generation', at, 1, ends_by FROM asked
    )
    INSERT INTO due (account_id, job_id, queue, kind, priority, since, not_before, ends_by)
    SELECT account_id, job_id, 'generation', 'generation', 0, at, at, ends_by FROM asked
"""

#: What is no array.
VALUES = {
    "now": datetime.now(UTC),
    "seconds": 30.0,
    "portion": 16,
    "queue": "generation",
    "room": 20,
    "repeat": 15.0,
    "point": 60.0,
    "alive": 30.0,
    "fresh": 15.0,
    "grace": 30.0,
    "limit": 1000,
}


@pytest.mark.parametrize("name", BY_KEY)
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_every_row_is_looked_up_by_its_key(database: Database, name: str, plan: str) -> None:
    """Tables analyzed when they were empty are neither read whole nor multiplied with the keys of a batch."""
    async with database.connection(as_owner=True) as connection:
        await connection.execute("ANALYZE lots, reservations, jobs, due, live, parked, attempts, accounts")
        rows = await _plan(connection, BY_KEY[name], plan)
        whole = [row for row in rows if "Seq Scan" in row or "Join Filter" in row or "Hash" in row or "Merge" in row]
        assert [] == whole, "\n".join(rows)
        unbounded = [row for row, after in zip(rows, [*rows[1:], ""], strict=True) if _scans(row) and not _bound(after)]
        assert [] == unbounded, "\n".join(rows)


async def test_no_row_is_looked_up_by_its_account_alone(database: Database) -> None:
    """Where most accounts have one lot and one job, one with ten thousand is not read whole for each of its own."""
    async with database.connection(as_owner=True) as connection:
        if connection.get_server_version().major < 17:
            pytest.skip("before PostgreSQL 17 the planner leaves half of a key out where statistics say so")
        await connection.execute(ONE_OF_EACH)
        await connection.execute("ANALYZE lots, reservations, jobs, due, live, parked, attempts, accounts")
        for name in BY_KEY:
            for plan in ("force_generic_plan", "force_custom_plan"):
                rows = await _plan(connection, BY_KEY[name], plan)
                by_account = [row for row in rows if "Filter:" in row and re.search(r"\b(lot_id|job_id) =", row)]
                assert [] == by_account, "\n".join([name, *rows])


@pytest.mark.parametrize("name", LOOKS)
async def test_no_look_reads_the_pages_of_what_has_gone(database: Database, name: str) -> None:
    """By index alone, entry by entry, whatever the tables held when they were analyzed: no entry leads there twice.

    60,000 jobs after the last vacuum a look of the dispatcher read 4,000 pages for nothing: 3.1 ms, now 0.4.
    """
    async with database.connection(as_owner=True) as connection:
        for fill in ("SELECT", ONE_OF_EACH):
            await connection.execute(fill)
            await connection.execute("ANALYZE jobs, due, live, parked, accounts")
            rows = await _plan(connection, LOOKS[name], "force_generic_plan")
            whole = [row for row in rows if re.search(r"(Seq|Bitmap Heap) Scan on (due|live|parked|accounts)", row)]
            assert [] == whole, "\n".join(rows)


async def _plan(connection: asyncpg.Connection[asyncpg.Record], statement: Statement, plan: str) -> list[str]:
    await connection.execute(opening._BY_KEY.replace("LOCAL ", "").lstrip("; "))
    await connection.execute(f"SET plan_cache_mode = {plan}")
    values = [VALUES.get(one, []) for one in statement.names]
    return [row[0] for row in await connection.fetch(f"EXPLAIN {statement.sql}", *values)]


def _scans(row: str) -> bool:
    return "Index Scan" in row or "Index Only Scan" in row


def _bound(row: str) -> bool:
    return "Index Cond" in row
