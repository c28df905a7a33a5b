"""What a request made, by the idempotency key that came with it: asked again, it is answered again, not done again.

For what has no natural reference of its own. Jobs, purchases and steps of subscriptions have theirs in their rows.
A secret that was made is not kept: it is derived anew from what the request's own key and this row know together, so
neither a copy of the database nor an old key alone brings it back.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.database import transaction
from worker.store.errors import Conflict

#: For so long a replay brings a secret again; whoever lost its answer asks at once. Seconds.
SHOWN_AGAIN_SECONDS = 600
#: Requests are known for so long, as jobs are at least. Seconds.
CREATIONS_KEPT_SECONDS = 30 * 86_400.0
#: Longer than any request is known.
EVER_SECONDS = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that makes something once. `opened_with`: the secret of the key that it came with."""

    key_id: UUID
    what: str
    reference: str
    body_hash: bytes
    opened_with: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Creation:
    """What the same request made before. `entropy`: of its secret; None once that is not shown any more."""

    made: str
    entropy: bytes | None


async def made_before(connection: AsyncConnection, asked: Asked | None) -> Creation | None:
    """What this request made before; None: it is this transaction's to make, nobody else does meanwhile.

    Raises `Conflict` where its key came with another body.
    """
    if asked is None:
        return None
    values = {"key": asked.key_id, "what": asked.what, "reference": asked.reference}
    await connection.execute(_ALONE, {"name": f"{asked.key_id} {asked.what} {asked.reference}"})
    row = (await connection.execute(_FIND, {**values, "seconds": SHOWN_AGAIN_SECONDS})).one_or_none()
    if row is None:
        return None
    if row.body_hash != asked.body_hash:
        raise Conflict("idempotency_key", asked.reference, "came with another body before")
    return Creation(row.made, _entropy(asked, row.salt) if row.shown_again else None)


async def note_made(connection: AsyncConnection, asked: Asked | None, made: str) -> bytes:
    """Write down what it makes, in the same transaction. Returns 32 bytes of entropy for its secret, if it has one."""
    salt = secrets.token_bytes(32)
    if asked is None:
        return salt
    values = {
        "key": asked.key_id,
        "what": asked.what,
        "reference": asked.reference,
        "body_hash": asked.body_hash,
        "made": made,
        "salt": salt,
    }
    await connection.execute(_NOTE, values)
    return _entropy(asked, salt)


class Creations:
    """The rows by themselves."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def check(self, asked: Asked | None, made: str) -> None:
        """Note that this request makes what is the same however often it is made. Raises `Conflict`."""
        if asked is None:
            return
        async with transaction(self._engine, "note_creation") as connection:
            if await made_before(connection, asked) is None:
                await note_made(connection, asked, made)

    async def forget(self, older_than_seconds: float, salts_within_seconds: float = EVER_SECONDS) -> int:
        """Forget requests of so long ago, and of the others how secrets come that are not shown again; returns how
        many requests are gone.

        `salts_within_seconds`: those of longer ago were seen to before.
        """
        values = {"seconds": SHOWN_AGAIN_SECONDS, "within": salts_within_seconds, "none": _NO_SALT}
        async with transaction(self._engine, "forget_creations") as connection:
            await connection.execute(_FORGET_SALTS, values)
            return int((await connection.execute(_FORGET, {"seconds": older_than_seconds})).rowcount)


def _entropy(asked: Asked, salt: bytes) -> bytes:
    return hmac.digest(asked.opened_with.encode(), salt, "sha256")


# A row that is not there yet can't be locked.
_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")

_FIND = text("""
    SELECT body_hash, made, salt, at > fermata_now() - make_interval(secs => :seconds) AS shown_again
    FROM creations
    WHERE key_id = :key
      AND what = :what
      AND reference = :reference
""")

_NOTE = text("""
    INSERT INTO creations (key_id, what, reference, body_hash, made, salt, at)
    VALUES (:key, :what, :reference, :body_hash, :made, :salt, fermata_now())
""")

#: In place of a salt that was forgotten.
_NO_SALT = bytes(32)

_FORGET_SALTS = text("""
    UPDATE creations
    SET salt = :none
    WHERE at < fermata_now() - make_interval(secs => :seconds)
      AND at > fermata_now() - make_interval(secs => :within)
      AND salt <> :none
""")

_FORGET = text("""
    DELETE FROM creations
    WHERE at < fermata_now() - make_interval(secs => :seconds)
""")
