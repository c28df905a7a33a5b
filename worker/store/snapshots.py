"""Reading without locks: every statement of a snapshot sees the same instant, and nobody waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import reading


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One read-only transaction in which a job's rows and its account's fit together."""
    # The driver sends this with its BEGIN: no round trip of their own.
    async with reading(engine.execution_options(isolation_level="REPEATABLE READ")) as connection:
        yield connection


@asynccontextmanager
async def one_statement(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """For a single statement that reads: a snapshot by itself, so it goes without a BEGIN and a COMMIT around it."""
    async with reading(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
        yield connection
