"""What an account was told, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.reads_accounts import check_account, check_limit
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an account. `state`, `kind`, `queue` and `charged` are of a job that ended."""

    seq: int
    at: datetime
    what: str
    job: UUID | None
    state: str | None
    kind: str | None
    queue: str | None
    reason: str | None
    charged: int | None
    body: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class EventsPage:
    """Events, oldest first. `last`: go on after it, also later, when there are more; the `after` given if none came.

    `more`: whether there are some already.
    """

    events: tuple[Event, ...]
    last: int
    more: bool


class EventReads:
    """Reads of what accounts were told."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def events(self, account_id: str, after_seq: int = 0, limit: int = 100) -> EventsPage:
        """Up to `limit` events of an account after `after_seq`. Raises `UnknownAccount`.

        None is ever skipped: whoever writes an event holds its account's lock while it takes the number, so no
        number appears later below one that was seen. (Across accounts that does not hold.)
        """
        check_limit(limit)
        values = {"account": account_id, "after": after_seq, "limit": limit + 1}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_EVENTS, values)).all()
            if not rows:
                await check_account(connection, account_id)
        events = tuple(Event(*row) for row in rows[:limit])
        return EventsPage(events, events[-1].seq if events else after_seq, len(rows) > limit)

    async def events_end(self, account_id: str, limit: int = 100) -> EventsPage:
        """The account's latest `limit` events, oldest first. Raises `UnknownAccount`."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_EVENTS_END, {"account": account_id, "limit": limit})).all()
            if not rows:
                await check_account(connection, account_id)
        events = tuple(Event(*row) for row in reversed(rows))
        return EventsPage(events, events[-1].seq if events else 0, more=False)


_EVENTS_END = text("""
    SELECT seq, at, what, job_id, state, kind, queue, reason, charged, body
    FROM events
    WHERE account_id = :account
    ORDER BY seq DESC
    LIMIT :limit
""")

_EVENTS = text("""
    SELECT seq, at, what, job_id, state, kind, queue, reason, charged, body
    FROM events
    WHERE account_id = :account
      AND seq > :after
    ORDER BY seq
    LIMIT :limit
""")
