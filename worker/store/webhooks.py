"""Webhooks: endpoints, and what of each event is still to be told to which of them.

A trigger writes an event's deliveries in the event's own transaction, so none is missed. Whoever sends one holds it
by a token until `next_at`: a sender that dies is given up then, and the event is told again. Told twice is normal,
never is not. Of one job, and of an account's own events, a later one waits until the earlier has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import uuid_utils.compat as uuids
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.creations import Asked, made_before, note_made
from worker.store.database import reading, transaction
from worker.store.errors import Refused, UnknownAccount, UnknownWebhook

#: Endpoints in all: every event is compared with each of them when it is written.
ENDPOINTS_MAX = 50


@dataclass(frozen=True, slots=True)
class WebhookShown:
    """An endpoint, for people. Its secret is shown once, when it is made."""

    webhook: UUID
    url: str
    account: str | None
    events: Sequence[str]
    created_at: datetime
    actor: str
    closed_at: datetime | None
    pending: int
    dead: int


@dataclass(frozen=True, slots=True)
class DeliveryShown:
    """How the telling of one event stands."""

    seq: int
    account: str
    event: str
    job: UUID | None
    at: datetime
    state: str
    attempts: int
    next_at: datetime | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Where to send, and the secret to sign with."""

    webhook_id: UUID
    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sending:
    """One event that is ours to tell, until the lease is over."""

    target: WebhookTarget
    account_id: str
    seq: int
    token: UUID
    attempts: int
    what: str
    at: datetime
    job_id: UUID | None
    #: What the event holds beside that. None: it is not kept any more.
    facts: Mapping[str, Any] | None


class Webhooks:
    """Endpoints and deliveries."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(
        self,
        url: str,
        secret_of: Callable[[bytes], str],
        account_id: str | None,
        events: Sequence[str],
        actor: str,
        asked: Asked | None = None,
    ) -> tuple[UUID, str | None, bool]:
        """A new endpoint and its secret: it is told of what happens from now on, and made once a request.

        Whether it was made before stands last; no secret: too long before. Raises `UnknownAccount`, `Refused` and
        `Conflict`.
        """
        webhook_id = uuids.uuid7()
        values = {"id": webhook_id, "url": url, "account": account_id, "events": list(events), "actor": actor}
        async with transaction(self._engine, "create_webhook") as connection:
            if (before := await made_before(connection, asked)) is not None:
                return UUID(before.made), None if before.entropy is None else secret_of(before.entropy), True
            if account_id is not None and not await connection.scalar(_ACCOUNT_EXISTS, {"account": account_id}):
                raise UnknownAccount(account_id)
            if (await connection.execute(_COUNT)).scalar_one() >= ENDPOINTS_MAX:
                raise Refused("url", f"there are {ENDPOINTS_MAX} endpoints already; delete one first")
            secret = secret_of(await note_made(connection, asked, str(webhook_id)))
            await connection.execute(_CREATE, values)
            await connection.execute(_KEEP_SECRET, {"id": webhook_id, "secret": secret})
        return webhook_id, secret, False

    async def all(self) -> tuple[WebhookShown, ...]:
        """All endpoints, the oldest first."""
        async with reading(self._engine) as connection:
            return tuple(WebhookShown(*row) for row in await connection.execute(_LIST, {"id": None}))

    async def show(self, webhook_id: UUID, limit: int) -> tuple[WebhookShown, tuple[DeliveryShown, ...]]:
        """One endpoint with its latest deliveries. Raises `UnknownWebhook`."""
        async with reading(self._engine) as connection:
            found = (await connection.execute(_LIST, {"id": webhook_id})).one_or_none()
            if found is None:
                raise UnknownWebhook(webhook_id)
            rows = await connection.execute(_LATEST, {"id": webhook_id, "limit": limit})
            return WebhookShown(*found), tuple(DeliveryShown(*row) for row in rows)

    async def delete(self, webhook_id: UUID, actor: str) -> None:
        """Forget an endpoint, with all that it was to be told. Raises `UnknownWebhook`."""
        async with transaction(self._engine, "delete_webhook") as connection:
            await connection.execute(_SAY_ACTOR, {"actor": actor})
            if (await connection.execute(_DELETE, {"id": webhook_id})).rowcount == 0:
                raise UnknownWebhook(webhook_id)
            await connection.execute(_DELETE_SECRET, {"id": webhook_id})
            await connection.execute(_DELETE_DELIVERIES, {"id": webhook_id})

    async def redeliver(self, webhook_id: UUID, seq: int | None) -> int:
        """Tell again what is dead, or this one event whatever became of it; returns how many. Opens a closed endpoint.

        Raises `UnknownWebhook`, or `Refused` for an event that it was never to be told.
        """
        async with transaction(self._engine, "redeliver") as connection:
            if (await connection.execute(_REOPEN, {"id": webhook_id})).rowcount == 0:
                raise UnknownWebhook(webhook_id)
            found = (await connection.execute(_REDELIVER, {"id": webhook_id, "seq": seq})).rowcount
        if seq is not None and found == 0:
            raise Refused("event", f"no ended delivery of event {seq} to this endpoint")
        return found

    async def target(self, webhook_id: UUID) -> WebhookTarget:
        """Where to send a test. Raises `UnknownWebhook`."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_TARGET, {"id": webhook_id})).one_or_none()
            if row is None:
                raise UnknownWebhook(webhook_id)
            return WebhookTarget(*row)

    async def claim(self, each: int, most: int, full: Sequence[UUID], lease_seconds: float) -> list[Sending]:
        """Take up to `most` events that are due, `each` an endpoint but those that are `full`. Counts the try."""
        token = uuids.uuid7()
        wanted = {"each": each, "most": most, "full": list(full), "token": token, "lease": lease_seconds}
        async with transaction(self._engine, "claim_deliveries") as connection:
            now = (await connection.execute(_NOW)).scalar_one()
            taken = (await connection.execute(_CLAIM, {**wanted, "now": now})).all()
            return await _with_facts(connection, token, taken) if taken else []

    async def delivered(self, sending: Sending, status: int) -> None:
        """It was taken. A sender that was given up meanwhile changes nothing."""
        await self._end(sending, "delivered", status, None)

    async def failed(self, sending: Sending, status: int | None, error: str, wait_seconds: float | None) -> None:
        """It was not taken: try again after so many seconds, or never with None."""
        if wait_seconds is None:
            await self._end(sending, "dead", status, error)
            return
        values = {**_key(sending), "status": status, "error": error, "wait": wait_seconds}
        async with transaction(self._engine, "deliver_again") as connection:
            await connection.execute(_AGAIN, values)

    async def close(self, webhook_id: UUID) -> None:
        """Tell it nothing any more: its owner said so."""
        async with transaction(self._engine, "close_webhook") as connection:
            await connection.execute(_CLOSE, {"id": webhook_id})

    async def forget_orphans(self) -> None:
        """Delete deliveries that wait for an endpoint that is gone."""
        async with transaction(self._engine, "forget_deliveries") as connection:
            await connection.execute(_FORGET_ORPHANS)

    async def _end(self, sending: Sending, state: str, status: int | None, error: str | None) -> None:
        values = {**_key(sending), "state": state, "status": status, "error": error}
        async with transaction(self._engine, "end_delivery") as connection:
            await connection.execute(_END, values)


def _key(sending: Sending) -> dict[str, Any]:
    return {
        "account": sending.account_id,
        "seq": sending.seq,
        "id": sending.target.webhook_id,
        "token": sending.token,
    }


async def _with_facts(connection: AsyncConnection, token: UUID, taken: Sequence[Any]) -> list[Sending]:
    keys = {"accounts": [row.account_id for row in taken], "seqs": [row.seq for row in taken]}
    rows = await connection.execute(_FACTS, {**keys, "times": [row.at for row in taken]})
    facts = {row.seq: _facts_of(row) for row in rows}
    return [
        Sending(
            WebhookTarget(row.webhook_id, row.url, row.secret),
            row.account_id,
            row.seq,
            token,
            row.attempts,
            row.what,
            row.at,
            row.job_id,
            facts.get(row.seq),
        )
        for row in sorted(taken, key=lambda row: row.seq)
    ]


def _facts_of(row: Any) -> dict[str, Any]:
    """What is of a job, and what only an ended one has, stands there for these events only."""
    facts = dict(row._mapping)
    of_job = {name: facts.pop(name) for name in ("key", "metadata", "partial", "message", "outputs")}
    return facts | {**of_job, "outputs": of_job["outputs"] or []} if row.what == "ended" else facts


_NOW = text("SELECT fermata_now()")

_ACCOUNT_EXISTS = text("SELECT 1 FROM accounts WHERE account_id = :account")

_COUNT = text("SELECT count(*) FROM webhooks")

_CREATE = text("""
    INSERT INTO webhooks (webhook_id, url, account_id, events, created_at, actor)
    VALUES (:id, :url, :account, CAST(:events AS text[]), fermata_now(), :actor)
""")

_KEEP_SECRET = text("INSERT INTO webhook_secrets (webhook_id, secret) VALUES (:id, :secret)")

_LIST = text("""
    SELECT w.webhook_id, w.url, w.account_id, w.events, w.created_at, w.actor, w.closed_at,
           (SELECT count(*) FROM deliveries AS d WHERE d.webhook_id = w.webhook_id AND d.state = 'pending'),
           (SELECT count(*) FROM deliveries AS d WHERE d.webhook_id = w.webhook_id AND d.state = 'dead')
    FROM webhooks AS w
    WHERE CAST(:id AS uuid) IS NULL
       OR w.webhook_id = :id
    ORDER BY w.webhook_id
""")

_LATEST = text("""
    SELECT seq, account_id, what, job_id, at, state, attempts,
           CASE WHEN state = 'pending' THEN next_at END, last_status, last_error
    FROM deliveries
    WHERE webhook_id = :id
    ORDER BY seq DESC
    LIMIT :limit
""")

_SAY_ACTOR = text("SELECT set_config('fermata.actor', :actor, true)")

_DELETE = text("DELETE FROM webhooks WHERE webhook_id = :id")

_DELETE_SECRET = text("DELETE FROM webhook_secrets WHERE webhook_id = :id")

_DELETE_DELIVERIES = text("DELETE FROM deliveries WHERE webhook_id = :id")

_REOPEN = text("UPDATE webhooks SET closed_at = NULL WHERE webhook_id = :id")

_REDELIVER = text("""
    UPDATE deliveries
    SET state = 'pending', attempts = 0, next_at = fermata_now(), ended_at = NULL, token = NULL
    WHERE webhook_id = :id
      AND CASE WHEN CAST(:seq AS bigint) IS NULL THEN state = 'dead' ELSE seq = :seq AND state <> 'pending' END
""")

_TARGET = text("""
    SELECT w.webhook_id, w.url, s.secret
    FROM webhooks AS w
    JOIN webhook_secrets AS s ON s.webhook_id = w.webhook_id
    WHERE w.webhook_id = :id
""")

# A later event waits for an earlier one of the same job; without a job, of the same account.
_CLAIM = text("""
    WITH picked AS (
        SELECT due.*
        FROM webhooks AS w
        CROSS JOIN LATERAL (
            SELECT d.account_id, d.seq, d.webhook_id
            FROM deliveries AS d
            WHERE d.webhook_id = w.webhook_id
              AND d.state = 'pending'
              AND d.next_at <= :now
              AND NOT EXISTS (
                  SELECT 1
                  FROM deliveries AS earlier
                  WHERE earlier.webhook_id = d.webhook_id
                    AND earlier.account_id = d.account_id
                    AND earlier.job_id IS NOT DISTINCT FROM d.job_id
                    AND earlier.seq < d.seq
                    AND earlier.state = 'pending'
              )
            ORDER BY d.next_at
            LIMIT :each
            FOR UPDATE SKIP LOCKED
        ) AS due
        WHERE w.closed_at IS NULL
          AND w.webhook_id <> ALL (CAST(:full AS uuid[]))
        LIMIT :most
    )
    UPDATE deliveries AS d
    SET attempts = d.attempts + 1, token = :token, next_at = :now + make_interval(secs => :lease)
    FROM picked AS p
    JOIN webhooks AS w ON w.webhook_id = p.webhook_id
    JOIN webhook_secrets AS s ON s.webhook_id = p.webhook_id
    WHERE d.account_id = p.account_id
      AND d.seq = p.seq
      AND d.webhook_id = p.webhook_id
    RETURNING d.account_id, d.seq, d.webhook_id, d.at, d.what, d.job_id, d.attempts, w.url, s.secret
""")

_FACTS = text("""
    SELECT e.seq, e.what, e.state, e.kind, e.queue, e.reason, e.charged, e.body,
           j.idempotency_key AS key, j.metadata, j.partial, j.message, j.outputs
    FROM unnest(CAST(:accounts AS text[]), CAST(:seqs AS bigint[]), CAST(:times AS timestamptz[]))
         AS u (account_id, seq, at)
    JOIN events AS e ON e.account_id = u.account_id AND e.seq = u.seq AND e.at = u.at
    LEFT JOIN jobs AS j ON j.account_id = e.account_id AND j.job_id = e.job_id AND e.what = 'ended'
""")

_END = text("""
    UPDATE deliveries
    SET state = :state, ended_at = fermata_now(), last_status = :status, last_error = :error, token = NULL
    WHERE account_id = :account
      AND seq = :seq
      AND webhook_id = :id
      AND token = :token
      AND state = 'pending'
""")

_AGAIN = text("""
    UPDATE deliveries
    SET next_at = fermata_now() + make_interval(secs => :wait), last_status = :status, last_error = :error,
        token = NULL
    WHERE account_id = :account
      AND seq = :seq
      AND webhook_id = :id
      AND token = :token
      AND state = 'pending'
""")

_CLOSE = text("UPDATE webhooks SET closed_at = fermata_now() WHERE webhook_id = :id AND closed_at IS NULL")

_FORGET_ORPHANS = text("""
    DELETE FROM deliveries AS d
    WHERE d.state = 'pending'
      AND NOT EXISTS (SELECT 1 FROM webhooks AS w WHERE w.webhook_id = d.webhook_id)
""")
