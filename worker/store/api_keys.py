"""Keys of the HTTP API: made, shown once, kept as a hash, looked up by it. An account's own token is one of them."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.creations import Asked, made_before, note_made
from worker.store.database import transaction
from worker.store.errors import Conflict, Refused, UnknownAccount, UnknownKey
from worker.store.instants import problem_of_instant
from worker.store.reads_accounts import check_limit
from worker.store.references import check_account_id, check_actor
from worker.store.snapshots import snapshot
from worker.store.texts import is_line

#: How every key begins, so that scanners for leaked secrets know one.
_BRAND = "fmt"
#: Characters of a key that may be shown: enough to tell it from its siblings, useless to guess the rest.
PREFIX_LENGTH = len(_BRAND) + 1 + 8
LABEL_LENGTH_MAX = 100
#: The longest that a customer's token lives, in seconds.
TOKEN_SECONDS_MAX = 86_400
#: For so long the old key still opens after a rotation, unless somebody says otherwise. Seconds.
ROTATION_SECONDS = 86_400
_ROTATION_SECONDS_MAX = 30 * 86_400


class Role(StrEnum):
    """What a key is for. `worker.web.access` says what each may do."""

    PIPELINE = "pipeline"  # submits, follows and cancels jobs
    BILLING = "billing"  # brings credits
    OPS = "ops"  # steers queues and jobs
    PRODUCT = "product"  # sets prices
    ADMIN = "admin"
    VIEWER = "viewer"  # looks, changes nothing
    CUSTOMER = "customer"  # a short-lived token: looks at one account


#: Roles whose keys may be bound to some accounts. What the others do touches every account.
BOUND = frozenset({Role.PIPELINE, Role.BILLING, Role.VIEWER})


@dataclass(frozen=True, slots=True)
class KeyShown:
    """A key without its secret."""

    id: UUID
    prefix: str
    role: Role
    label: str
    account_prefix: str | None
    account: str | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaces: UUID | None
    #: Of a customer's token: the key that minted it. Revoked, it takes its tokens along.
    minted_by: UUID | None


@dataclass(frozen=True, slots=True)
class KeyMade:
    """A key with its secret in `key`: nobody can be told again, but by the same request within minutes.

    `replayed`: the same request had made it before. An empty `key`: too long before.
    """

    key: str
    shown: KeyShown
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key shall be."""

    role: Role
    label: str
    account_prefix: str | None = None
    expires_at: datetime | None = None


class ApiKeys:
    """Every key there is."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, new: NewKey, actor: str, asked: Asked | None = None) -> KeyMade:
        """Make a key, once a request. Raises `Refused` for a label, prefix or time that can't be, and `Conflict`."""
        check_actor(actor)
        _check(new)
        async with transaction(self._engine, "create_key") as connection:
            if (before := await _made_before(connection, asked)) is not None:
                return before
            values = {"role": new.role, "label": new.label, "account_prefix": new.account_prefix, "account": None}
            return await _insert(connection, {**values, "expires_at": new.expires_at, "actor": actor}, asked)

    async def token(
        self,
        account_id: str,
        seconds: int,
        actor: str,
        *,
        minted_by: UUID | None = None,
        asked: Asked | None = None,
    ) -> KeyMade:
        """A token with which one customer looks at one account for so long, once a request.

        It closes with the key that minted it, and is never made to outlive it. Raises `UnknownAccount`, `Refused`,
        `Conflict`.
        """
        check_account_id(account_id)
        check_actor(actor)
        if not 60 <= seconds <= TOKEN_SECONDS_MAX:
            raise Refused("seconds", f"must be a whole number from 60 to {TOKEN_SECONDS_MAX:,}")
        async with transaction(self._engine, "make_token") as connection:
            if (before := await _made_before(connection, asked)) is not None:
                return before
            if await connection.scalar(_ACCOUNT_EXISTS, {"account": account_id}) is None:
                raise UnknownAccount(account_id)
            values = {"role": Role.CUSTOMER, "label": "token", "account_prefix": None, "account": account_id}
            return await _insert(
                connection, {**values, "seconds": seconds, "actor": actor, "minted_by": minted_by}, asked
            )

    async def listed(self, limit: int = 100, after: UUID | None = None) -> tuple[KeyShown, ...]:
        """The newest keys first, customers' tokens left out."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_LISTED, {"limit": limit, "after": after})
            return tuple(shown_key(row) for row in rows)

    async def find(self, given: str) -> KeyShown:
        """A key by its id or its visible prefix. Raises `UnknownKey`, and `Refused` where two begin alike."""
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_FIND, {"given": given})).all()
        if len(rows) > 1:
            raise Refused("key", f"{len(rows)} keys begin so; name it by its id")
        if not rows:
            raise UnknownKey(given)
        return shown_key(rows[0])

    async def revoke(self, key_id: UUID, actor: str) -> KeyShown:
        """Close it for good, and with it every token that it minted; a process that has just looked one up may still
        open to it for some seconds.

        Harmless if it is closed already. Raises `UnknownKey`.
        """
        check_actor(actor)
        async with transaction(self._engine, "revoke_key") as connection:
            row = (await connection.execute(_REVOKE, {"key": key_id, "actor": actor})).one_or_none()
            if row is None:
                row = (await connection.execute(_SHOW, {"key": key_id})).one_or_none()
        if row is None:
            raise UnknownKey(key_id)
        return shown_key(row)

    async def rotate(
        self, key_id: UUID, actor: str, overlap_seconds: int = ROTATION_SECONDS, asked: Asked | None = None
    ) -> KeyMade:
        """A new key like this one, which itself still opens for `overlap_seconds`; once a request.

        What it minted goes on. Without an overlap it is revoked, and with it every token that it minted. Raises
        `UnknownKey`, `Conflict`, and `Refused` for a key that opens nothing any more.
        """
        check_actor(actor)
        if not 0 <= overlap_seconds <= _ROTATION_SECONDS_MAX:
            raise Refused("overlap_seconds", f"must be a whole number from 0 to {_ROTATION_SECONDS_MAX:,}")
        async with transaction(self._engine, "rotate_key") as connection:
            if (before := await _made_before(connection, asked)) is not None:
                return before
            values = {"key": key_id, "actor": actor, "seconds": overlap_seconds}
            old = (await connection.execute(_OUTLIVE, values)).one_or_none()
            if old is None:
                if await connection.scalar(_SHOW, {"key": key_id}) is None:
                    raise UnknownKey(key_id)
                raise Refused("key", "is revoked, expired or a customer's token: create a new one")
            return await _insert(
                connection,
                {
                    "role": old.role,
                    "label": old.label,
                    "account_prefix": old.account_prefix,
                    "account": None,
                    "expires_at": old.expired_at,
                    "replaces": key_id,
                    "actor": actor,
                },
                asked,
            )

    async def opening(self, secret: str) -> KeyShown | None:
        """The key of this secret, if it opens now by the database's clock."""
        return await self.opening_by(hash_of(secret))

    async def opening_by(self, digest: bytes) -> KeyShown | None:
        """The same by the hash of the secret."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_OPENING, {"hash": digest})).one_or_none()
        return None if row is None else shown_key(row)

    async def forget_tokens(self, older_than_seconds: float) -> int:
        """Delete customers' tokens that closed so long ago; returns how many."""
        async with transaction(self._engine, "forget_tokens") as connection:
            return int((await connection.execute(_FORGET_TOKENS, {"seconds": older_than_seconds})).rowcount)

    async def used(self, key_ids: Sequence[UUID]) -> None:
        """Note that these were used just now."""
        async with transaction(self._engine, "use_keys") as connection:
            await connection.execute(_USED, {"keys": sorted(key_ids)})


def hash_of(secret: str) -> bytes:
    """What is kept of a key: 32 random bytes need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def within(prefix: str, account_id: str) -> bool:
    """Whether an account lies under a prefix, by whole segments: `acme` is over `acme` and `acme/eu`, not `acme2`."""
    return account_id == prefix or account_id.startswith((f"{prefix}/", f"{prefix}:"))


def _check(new: NewKey) -> None:
    if new.role not in set(Role) - {Role.CUSTOMER}:
        roles = ", ".join(role for role in Role if role is not Role.CUSTOMER)
        raise Refused("role", f"must be one of {roles}; a customer's token is minted for one account")
    if not is_line(new.label, LABEL_LENGTH_MAX):
        raise Refused("label", f"must be 1 to {LABEL_LENGTH_MAX} printable characters on one line")
    if new.account_prefix is not None:
        if new.role not in BOUND:
            raise Refused(
                "account_prefix", f"is for {', '.join(sorted(BOUND))}: a key of {new.role} touches all accounts"
            )
        try:
            check_account_id(new.account_prefix)
        except Refused as error:
            raise Refused("account_prefix", error.problem) from None
        if new.account_prefix.endswith(("/", ":")):
            raise Refused("account_prefix", "must be whole segments, without a / or : at its end")
    if new.expires_at is not None and (problem := problem_of_instant(new.expires_at)) is not None:
        raise Refused("expires_at", problem)


async def _made_before(connection: AsyncConnection, asked: Asked | None) -> KeyMade | None:
    """The key that the same request made before, with its secret for as long as that is shown again."""
    before = await made_before(connection, asked)
    if asked is None or before is None:
        return None
    row = (await connection.execute(_SHOW, {"key": UUID(before.made)})).one_or_none()
    if row is None:
        raise Conflict("idempotency_key", asked.reference, "made a token that is over: take a new one")
    return KeyMade("" if before.entropy is None else _secret_of(before.entropy), shown_key(row), replayed=True)


def _secret_of(entropy: bytes) -> str:
    return f"{_BRAND}_{urlsafe_b64encode(entropy).rstrip(b'=').decode()}"


async def _insert(connection: AsyncConnection, values: dict[str, Any], asked: Asked | None) -> KeyMade:
    key_id = uuids.uuid7()
    secret = _secret_of(await note_made(connection, asked, str(key_id)))
    defaults = {"expires_at": None, "seconds": None, "replaces": None, "minted_by": None}
    row = (
        await connection.execute(
            _INSERT,
            {
                **defaults,
                **values,
                "key": key_id,
                "prefix": secret[:PREFIX_LENGTH],
                "hash": hash_of(secret),
            },
        )
    ).one_or_none()
    if row is None:
        raise Refused("expires_at", "must be in the future")
    return KeyMade(secret, shown_key(row))


def shown_key(row: Any) -> KeyShown:
    """A key of a row with its columns in the order of `KeyShown`."""
    return KeyShown(row[0], row[1], Role(row[2]), *row[3:])


_ACCOUNT_EXISTS = text("SELECT 1 FROM accounts WHERE account_id = :account")

_INSERT = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    )
    INSERT INTO api_keys (key_id, prefix, hash, role, label, account_prefix, account_id, created_at, actor,
                          expires_at, replaces, minted_by)
    SELECT :key, :prefix, :hash, :role, :label, :account_prefix, :account, clock.now, :actor,
           COALESCE(CAST(:expires_at AS timestamptz),
                    LEAST(clock.now + make_interval(secs => CAST(:seconds AS double precision)),
                          minter.expires_at)), :replaces,
           :minted_by
    FROM clock
    LEFT JOIN api_keys AS minter ON minter.key_id = :minted_by
    WHERE CAST(:expires_at AS timestamptz) IS NULL
       OR :expires_at > clock.now
    RETURNING key_id, prefix, role, label, account_prefix, account_id, created_at, actor, expires_at, revoked_at,
              last_used_at, replaces, minted_by
""")

_SHOW = text("""
    SELECT key_id, prefix, role, label, account_prefix, account_id, created_at, actor, expires_at, revoked_at,
           last_used_at, replaces, minted_by
    FROM api_keys
    WHERE key_id = :key
""")

_LISTED = text("""
    SELECT key_id, prefix, role, label, account_prefix, account_id, created_at, actor, expires_at, revoked_at,
           last_used_at, replaces, minted_by
    FROM api_keys
    WHERE role <> 'customer'
      AND (CAST(:after AS uuid) IS NULL OR key_id < :after)
    ORDER BY key_id DESC
    LIMIT :limit
""")

_FIND = text("""
    SELECT key_id, prefix, role, label, account_prefix, account_id, created_at, actor, expires_at, revoked_at,
           last_used_at, replaces, minted_by
    FROM api_keys
    WHERE prefix = :given
       OR CAST(key_id AS text) = :given
    LIMIT 3
""")

_REVOKE = text("""
    UPDATE api_keys
    SET revoked_at = fermata_now(), changed_by = :actor
    WHERE key_id = :key
      AND revoked_at IS NULL
    RETURNING key_id, prefix, role, label, account_prefix, account_id, created_at, actor, expires_at, revoked_at,
              last_used_at, replaces, minted_by
""")

#: `expired_at` is what it was: the new key lives as long as the old one would have.
_OUTLIVE = text("""
    WITH old AS MATERIALIZED (
        SELECT key_id, role, label, account_prefix, expires_at, fermata_now() AS now
        FROM api_keys
        WHERE key_id = :key
          AND role <> 'customer'
        FOR UPDATE
    )
    UPDATE api_keys AS k
    SET expires_at = LEAST(old.expires_at, old.now + make_interval(secs => :seconds)),
        revoked_at = CASE WHEN CAST(:seconds AS double precision) = 0 THEN old.now END,
        changed_by = :actor
    FROM old
    WHERE k.key_id = old.key_id
      AND k.revoked_at IS NULL
      AND (old.expires_at IS NULL OR old.expires_at > old.now)
    RETURNING old.role, old.label, old.account_prefix, old.expires_at AS expired_at
""")

_OPENING = text("""
    SELECT k.key_id, k.prefix, k.role, k.label, k.account_prefix, k.account_id, k.created_at, k.actor, k.expires_at,
           k.revoked_at, k.last_used_at, k.replaces, k.minted_by
    FROM api_keys AS k
    LEFT JOIN api_keys AS minter ON minter.key_id = k.minted_by
    WHERE k.hash = :hash
      AND k.revoked_at IS NULL
      AND minter.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > fermata_now())
""")

_FORGET_TOKENS = text("""
    DELETE FROM api_keys
    WHERE role = 'customer'
      AND expires_at < fermata_now() - make_interval(secs => :seconds)
""")

_USED = text("""
    WITH used AS (
        SELECT key_id
        FROM api_keys
        WHERE key_id = ANY(CAST(:keys AS uuid[]))
        ORDER BY key_id
        FOR UPDATE SKIP LOCKED
    )
    UPDATE api_keys AS k
    SET last_used_at = fermata_now()
    FROM used
    WHERE k.key_id = used.key_id
""")
