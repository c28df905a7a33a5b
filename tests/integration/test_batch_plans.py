"""Batches find their rows by key, whatever the statistics say of tables that fill and empty within seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

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

#: What is no array.
VALUES = {"now": datetime.now(UTC), "seconds": 30.0, "portion": 16}


@pytest.mark.parametrize("name", BY_KEY)
@pytest.mark.parametrize("plan", ["force_generic_plan", "force_custom_plan"])
async def test_every_row_is_looked_up_by_its_key(database: Database, name: str, plan: str) -> None:
    """Tables analyzed when they were empty are neither read whole nor multiplied with the keys of a batch."""
    async with database.connection(as_owner=True) as connection:
        await connection.execute("ANALYZE lots, reservations, jobs, due, live, parked, attempts, accounts")
        await connection.execute(str(opening._LOOK_UP_BY_KEY).replace("true)", "false)"))
        await connection.execute(f"SET plan_cache_mode = {plan}")
        statement = BY_KEY[name]
        values = [VALUES.get(one, []) for one in statement.names]
        rows = [row[0] for row in await connection.fetch(f"EXPLAIN {statement.sql}", *values)]
        whole = [row for row in rows if "Seq Scan" in row or "Join Filter" in row or "Hash" in row or "Merge" in row]
        assert [] == whole, "\n".join(rows)
        unbounded = [row for row, after in zip(rows, [*rows[1:], ""], strict=True) if _scans(row) and not _bound(after)]
        assert [] == unbounded, "\n".join(rows)


def _scans(row: str) -> bool:
    return "Index Scan" in row or "Index Only Scan" in row


def _bound(row: str) -> bool:
    return "Index Cond" in row
