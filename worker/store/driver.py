"""The driver itself, for the statements that every job pays for: what SQLAlchemy adds to each is left out.

They run on the connection of a `database.transaction`, or of a `reading`: inside what it has begun.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

#: One connection of the driver.
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: How the driver says that PostgreSQL does not answer, or no more: it was refused, cut, silent for too long, or has
#: said its farewell and not ended yet.
GONE: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_NAME: Final = re.compile(r"(?<!:):(\w+)")


class Statement:
    """One statement; its `:names` are numbered once, so that values travel by place."""

    __slots__ = ("names", "sql")

    def __init__(self, sql: str) -> None:
        self.names: Final = tuple(dict.fromkeys(_NAME.findall(sql)))
        places = {name: f"${place}" for place, name in enumerate(self.names, start=1)}
        self.sql: Final = _NAME.sub(lambda found: places[found[1]], sql)


class _Column(list[Any]):
    """An array of single values.

    asyncpg walks an array twice: first it asks each element whether it is an array itself, by two abstract classes,
    which took an eighth of a batch's Python (claim and settle 124 µs a pair with it, 109 without); then it sends
    them. Ours have nothing within them, so the first walk meets nothing. Should asyncpg walk otherwise one day,
    PostgreSQL refuses the message.
    """

    __slots__ = ("_asked",)

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__(values)
        self._asked = False

    def __iter__(self) -> Iterator[Any]:
        self._asked = not self._asked
        return iter(()) if self._asked else super().__iter__()


def driver_of(connection: AsyncConnection) -> Driver:
    """The driver's own connection under one of SQLAlchemy's."""
    # AsyncConnection.get_raw_connection gives the same, by a greenlet of its own each time.
    assert connection.sync_connection is not None
    assert not connection.invalidated  # else SQLAlchemy would take another one
    raw = connection.sync_connection.connection.driver_connection
    assert isinstance(raw, asyncpg.Connection)
    return raw


async def rows_of(driver: Driver, statement: Statement, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
    """What the statement returns, each row a tuple by place. The driver's errors: see `database.translated`."""
    rows: list[Any] = await driver.fetch(statement.sql, *_in_place(statement, values))
    return rows


async def run(driver: Driver, statement: Statement, values: Mapping[str, Any] | None = None) -> int:
    """Run a statement that writes; returns how many rows its outermost part wrote."""
    told = await driver.execute(statement.sql, *_in_place(statement, values))
    count = told.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


def _in_place(statement: Statement, values: Mapping[str, Any] | None) -> list[Any]:
    given = [(values or {})[name] for name in statement.names]
    return [_Column(value) if isinstance(value, list | tuple) else value for value in given]
