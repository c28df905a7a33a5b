"""What an account has spent, by kind of job. From the events of ended jobs: they say what each was charged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Spent:
    """Jobs of one kind that were charged, and for how much in all."""

    kind: str
    jobs: int
    credits: int


async def spent_since(connection: AsyncConnection, account_id: str, since: datetime) -> tuple[Spent, ...]:
    """By kind, the dearest first. `since` bounds the months that are looked at."""
    rows = await connection.execute(_SPENT, {"account": account_id, "since": since})
    return tuple(Spent(*row) for row in rows)


_SPENT = text("""
    SELECT kind, count(*) AS jobs, CAST(sum(charged) AS bigint) AS credits
    FROM events
    WHERE account_id = :account
      AND at >= :since
      AND what = 'ended'
      AND charged > 0
    GROUP BY kind
    ORDER BY credits DESC, kind
""")
