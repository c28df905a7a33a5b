"""What the slow duties look for: lots that time has emptied, waiting jobs, partitions to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading, transaction


class Upkeep:
    """Reads for the cycles, expire, wake and prune duties."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def accounts_to_turn(self, limit: int) -> list[str]:
        """Accounts with a cycle that has ended and another one that is paid for, the longest due first."""
        async with reading(self._engine) as connection:
            return list((await connection.execute(_TO_TURN, {"limit": limit})).scalars())

    async def accounts_to_expire(self, limit: int) -> list[str]:
        """Accounts with an open lot that has expired or is empty for good, or whose frozen top-ups have expired."""
        async with reading(self._engine) as connection:
            return list((await connection.execute(_TO_EXPIRE, {"limit": limit})).scalars())

    async def accounts_waiting(self, after: str, limit: int) -> list[str]:
        """Accounts with jobs that wait for credits, by id, from the first one after this."""
        async with reading(self._engine) as connection:
            return list((await connection.execute(_WAITING, {"after": after, "limit": limit})).scalars())

    async def note(self, duty: str, body: Mapping[str, Any]) -> None:
        """Leave a sign of a duty, with the time."""
        values = {"duty": duty, "body": msgspec.json.encode(body).decode()}
        async with transaction(self._engine, "note_duty") as connection:
            await connection.execute(_NOTE, values)

    async def make_partitions(self, months_ahead: int) -> int:
        """Make the month partitions that are missing; returns how many."""
        async with transaction(self._engine, "make_partitions") as connection:
            return int((await connection.execute(_MAKE_PARTITIONS, {"months": months_ahead})).scalar_one())


#: A scheduler may have been away for so long that the subscription has lapsed meanwhile: then the expire duty looks.
_TO_TURN = text("""
    SELECT account_id
    FROM accounts
    WHERE look_at <= fermata_now()
      AND (active_until IS NULL OR active_until > fermata_now())
    ORDER BY look_at
    LIMIT :limit
""")

_TO_EXPIRE = text("""
    SELECT DISTINCT account_id
    FROM (
        (
            SELECT account_id
            FROM lots
            WHERE NOT closed
              AND expires_at <= fermata_now()
              AND (available > 0 OR held = 0)
            LIMIT :limit
        )
        UNION ALL
        (
            SELECT account_id
            FROM lots
            WHERE NOT closed
              AND available = 0
              AND held = 0
            LIMIT :limit
        )
        UNION ALL
        (
            SELECT account_id
            FROM accounts
            WHERE look_at <= fermata_now()
              AND active_until <= fermata_now()
            LIMIT :limit
        )
    ) AS found
""")

_WAITING = text("""
    SELECT DISTINCT account_id
    FROM parked
    WHERE account_id > :after
    ORDER BY account_id
    LIMIT :limit
""")

_MAKE_PARTITIONS = text("SELECT fermata_make_partitions(:months)")

_NOTE = text("""
    INSERT INTO duty_runs (duty, ran_at, body)
    VALUES (:duty, fermata_now(), CAST(:body AS jsonb))
    ON CONFLICT (duty) DO UPDATE
    SET ran_at = excluded.ran_at, body = excluded.body
""")
