"""Reading without locks: every statement of a snapshot sees the same instant, and nobody waits for it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import reading


def snapshot(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncConnection]:
    """One read-only transaction in which a job's rows and its account's fit together."""
    return reading(engine, one_instant=True)
