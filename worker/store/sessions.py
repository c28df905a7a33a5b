"""Sessions of people in front of the dashboard. Each was opened with an API key, and ends with it."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.api_keys import KeyShown, hash_of, shown_key
from worker.store.database import reading, transaction

#: A working day, in seconds. Then the key is asked for again.
SESSION_SECONDS = 12 * 3600


class Sessions:
    """Opened, looked up and closed by a secret of which only the hash is kept."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open(self, key: KeyShown) -> str:
        """Begin a session with this key; returns its secret. Those that are over are swept away."""
        secret = secrets.token_urlsafe(32)
        values = {"hash": hash_of(secret), "key": key.id, "seconds": SESSION_SECONDS}
        async with transaction(self._engine, "open_session") as connection:
            await connection.execute(_SWEEP)
            await connection.execute(_OPEN, values)
        return secret

    async def opening(self, secret: str) -> KeyShown | None:
        """The key of this session, if both still open now by the database's clock."""
        async with reading(self._engine, at_once=True) as connection:
            row = (await connection.execute(_OPENING, {"hashes": [hash_of(secret)]})).one_or_none()
        return None if row is None else shown_key(row[:-1])

    async def still_open(self, hashes: Collection[bytes]) -> frozenset[bytes]:
        """Those of these sessions, named by the hashes of their secrets, that still open now: in one statement."""
        async with reading(self._engine, at_once=True) as connection:
            rows = await connection.execute(_OPENING, {"hashes": list(hashes)})
            return frozenset(row.hash for row in rows)

    async def close(self, secret: str) -> None:
        """End it. Harmless if it is over."""
        async with transaction(self._engine, "close_session") as connection:
            await connection.execute(_CLOSE, {"hash": hash_of(secret)})


_OPEN = text("""
    INSERT INTO sessions (hash, key_id, created_at, expires_at)
    SELECT :hash, :key, clock.now, clock.now + make_interval(secs => :seconds)
    FROM (SELECT fermata_now() AS now) AS clock
""")

_OPENING = text("""
    SELECT k.key_id, k.prefix, k.role, k.label, k.account_prefix, k.account_id, k.created_at, k.actor, k.expires_at,
           k.revoked_at, k.last_used_at, k.replaces, k.minted_by, s.hash
    FROM sessions AS s
    JOIN api_keys AS k USING (key_id)
    LEFT JOIN api_keys AS minter ON minter.key_id = k.minted_by
    WHERE s.hash = ANY(CAST(:hashes AS bytea[]))
      AND s.expires_at > fermata_now()
      AND k.revoked_at IS NULL
      AND minter.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > fermata_now())
""")

_CLOSE = text("DELETE FROM sessions WHERE hash = :hash")

_SWEEP = text("DELETE FROM sessions WHERE expires_at < fermata_now() - interval '1 day'")
