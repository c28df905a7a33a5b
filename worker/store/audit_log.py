"""The log of what people and keys changed. Triggers write most of it; here stands how it is read, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import transaction
from worker.store.reads_accounts import check_limit
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. `before` None: made by it; `after` None: ended by it."""

    id: int
    at: datetime
    actor: str
    what: str
    subject: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some changes, the latest first. `next`: give it as `before` to go on; None at the end."""

    entries: tuple[AuditEntry, ...]
    next: int | None


class AuditLog:
    """What people and keys did."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def entries(
        self, *, subject: str | None = None, actor: str | None = None, limit: int = 50, before: int | None = None
    ) -> AuditPage:
        """A page of changes, of one subject or by one actor where that is given. Raises `Refused`."""
        check_limit(limit)
        values = {"subject": subject, "actor": actor, "limit": limit + 1, "before": before}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_ENTRIES, values)).all()
        entries = tuple(AuditEntry(*row) for row in rows[:limit])
        return AuditPage(entries, entries[-1].id if len(rows) > limit else None)

    async def tell(
        self, actor: str, what: str, subject: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> None:
        """Note a change that travelled in a batch with others': what it did was committed before."""
        values = {"actor": actor, "what": what, "subject": subject, "before": _json(before), "after": _json(after)}
        async with transaction(self._engine, "tell_audit_log") as connection:
            await connection.execute(_TELL, values)


async def acting(connection: AsyncConnection, actor: str) -> None:
    """Tell the triggers who does what this transaction does, where no column of the row says so."""
    await connection.execute(_ACTING, {"actor": actor})


def _json(document: Mapping[str, Any] | None) -> str | None:
    return None if document is None else msgspec.json.encode(document).decode()


_ENTRIES = text("""
    SELECT entry_id, at, actor, what, subject, before, after
    FROM audit_log
    WHERE (CAST(:subject AS text) IS NULL OR subject = :subject)
      AND (CAST(:actor AS text) IS NULL OR actor = :actor)
      AND (CAST(:before AS bigint) IS NULL OR entry_id < :before)
    ORDER BY entry_id DESC
    LIMIT :limit
""")

_TELL = text("""
    INSERT INTO audit_log (at, actor, what, subject, before, after)
    VALUES (fermata_now(), :actor, :what, :subject, CAST(:before AS jsonb), CAST(:after AS jsonb))
""")

_ACTING = text("SELECT set_config('fermata.actor', :actor, true)")
