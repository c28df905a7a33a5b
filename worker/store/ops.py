"""What ops may hold and let go: pauses of queues, kinds and accounts, and how many jobs of a queue run at a time.

Running jobs are never touched: a pause keeps queued ones from being claimed, and time still ends those that are
past their `ends_by`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.audit_log import acting
from worker.store.database import transaction
from worker.store.errors import Refused, UnknownAccount
from worker.store.snapshots import snapshot
from worker.store.texts import is_line

#: What a reason may be at most, in characters.
REASON_LENGTH_MAX = 500

#: The most jobs that a limit may let run at a time: a number that fits its column, not a policy.
RUNNING_MAX_MAX = 1_000_000


class Scope(StrEnum):
    """What can be paused."""

    QUEUE = "queue"
    KIND = "kind"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Switched:
    """What a pause or resume did. `freed`: jobs that its end lets be claimed again, beside those never tried."""

    scope: Scope
    name: str
    paused: bool
    changed: bool  # False: it was so before
    freed: int


@dataclass(frozen=True, slots=True)
class ControlShown:
    """A queue or kind that somebody has paused, limited, or let go again."""

    scope: Scope
    name: str
    paused: bool
    running_max: int | None
    reason: str | None
    at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause in force. Why and by whom are None once an account's event was pruned."""

    scope: Scope
    name: str
    reason: str | None
    at: datetime | None
    actor: str | None


class Controls:
    """Pauses and limits. `kinds` are the names of the kinds we run: each has a queue of its name."""

    def __init__(self, engine: AsyncEngine, kinds: Collection[str] = ()) -> None:
        self._engine = engine
        self._kinds = frozenset(kinds)

    async def pause(self, scope: Scope, name: str, reason: str, actor: str) -> Switched:
        """Let nothing of it be claimed from here on.

        Raises `UnknownAccount`, and `Refused` for a queue or kind that nobody knows or an overlong reason.
        """
        _check_reason(reason)
        async with transaction(self._engine, "pause") as connection:
            changed = await self._switch(connection, scope, name, reason, actor, paused=True)
        return Switched(scope, name, True, changed, 0)

    async def resume(self, scope: Scope, name: str, actor: str, reason: str = "") -> Switched:
        """Let its jobs run again, those excepted that another pause still holds. Raises as `pause` does."""
        _check_reason(reason)
        async with transaction(self._engine, "resume") as connection:
            changed = await self._switch(connection, scope, name, reason, actor, paused=False)
            # A new statement, and so a new snapshot: for an account it sees what any claim has written, as they
            # wait for each other. A claim of a paused queue may still be under way; the dispatcher's recheck
            # finds what it leaves.
            values = {one.value: name if one is scope else None for one in Scope}
            freed = (await connection.execute(_FREE, values)).rowcount
            if scope is Scope.ACCOUNT and changed:
                await connection.execute(_PLACE, values)
            await connection.execute(_NOTIFY_DUE)
        return Switched(scope, name, False, changed, int(freed))

    async def limit(self, queue: str, running_max: int | None, actor: str) -> None:
        """Run at most so many jobs of a queue at a time; None takes the limit away. Raises `Refused`."""
        if running_max is not None and not 1 <= running_max <= RUNNING_MAX_MAX:
            raise Refused("running_max", f"must be from 1 to {RUNNING_MAX_MAX:,}; to run none, pause the queue")
        async with transaction(self._engine, "limit_queue") as connection:
            await self._check_known(connection, Scope.QUEUE, queue)
            await connection.execute(_LIMIT, {"name": queue, "running_max": running_max, "actor": actor})
            await connection.execute(_NOTIFY_DUE)

    async def controls(self) -> tuple[ControlShown, ...]:
        """Every queue and kind that was ever paused or limited, by name."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_CONTROLS)
            return tuple(ControlShown(Scope(row[0]), *row[1:]) for row in rows)

    async def pauses(self, limit: int = 100) -> tuple[Pause, ...]:
        """What is paused, queues and kinds first, of accounts those that were paused last: at most so many."""
        async with snapshot(self._engine) as connection:
            rows = [*await connection.execute(_PAUSED, {"queue": None, "kind": None})]
            rows += await connection.execute(_PAUSED_ACCOUNTS, {"limit": limit})
        return tuple(Pause(Scope(row[0]), *row[1:]) for row in rows)

    async def pauses_of(self, queue: str, kind: str, account_id: str | None = None) -> tuple[Pause, ...]:
        """The pauses that hold such a job."""
        async with snapshot(self._engine) as connection:
            rows = [*await connection.execute(_PAUSED, {"queue": queue, "kind": kind})]
            rows += await connection.execute(_PAUSED_ACCOUNT, {"account": account_id})
        return tuple(Pause(Scope(row[0]), *row[1:]) for row in rows)

    async def _switch(
        self, connection: AsyncConnection, scope: Scope, name: str, reason: str, actor: str, *, paused: bool
    ) -> bool:
        values: dict[str, Any] = {"name": name, "paused": paused, "reason": reason, "actor": actor}
        if scope is Scope.ACCOUNT:
            return await _switch_account(connection, values)
        await self._check_known(connection, scope, name)
        before = await connection.scalar(_IS_PAUSED, {"scope": scope, "name": name})
        await connection.execute(_SWITCH, {**values, "scope": scope, "reason": reason or None})
        return bool(before) != paused

    async def _check_known(self, connection: AsyncConnection, scope: Scope, name: str) -> None:
        """Whoever mistypes a name must not believe that something was paused."""
        if name in self._kinds:
            return
        known = {row.name for row in await connection.execute(_KNOWN, {"scope": scope})} | self._kinds
        if name not in known:
            raise Refused(scope, f"no {scope} {name!r}; there are {', '.join(sorted(known)) or 'none'}")


def _check_reason(reason: str) -> None:
    if len(reason) > REASON_LENGTH_MAX:
        raise Refused("reason", f"must have at most {REASON_LENGTH_MAX} characters")
    if reason and not is_line(reason, REASON_LENGTH_MAX):
        raise Refused("reason", "must be printable characters on one line")


async def _switch_account(connection: AsyncConnection, values: dict[str, Any]) -> bool:
    """Flip the flag, and tell of it by an event: the account's row has no room for a reason."""
    await acting(connection, values["actor"])
    switched = await connection.scalar(_SWITCH_ACCOUNT, values)
    if switched is None:
        if await connection.scalar(_ACCOUNT_EXISTS, values) is None:
            raise UnknownAccount(values["name"])
        return False
    body = msgspec.json.encode({"actor": values["actor"]}).decode()
    await connection.execute(_TELL, {**values, "what": "paused" if values["paused"] else "resumed", "body": body})
    return True


_ACCOUNT_EXISTS = text("SELECT 1 FROM accounts WHERE account_id = :name")

_SWITCH_ACCOUNT = text("""
    UPDATE accounts
    SET paused = :paused
    WHERE account_id = :name
      AND paused <> :paused
    RETURNING 1
""")

_TELL = text("""
    INSERT INTO events (account_id, at, what, reason, body)
    VALUES (:name, fermata_now(), :what, :reason, CAST(:body AS jsonb))
""")

_IS_PAUSED = text("""
    SELECT paused
    FROM controls
    WHERE scope = :scope
      AND name = :name
    FOR UPDATE
""")

_SWITCH = text("""
    INSERT INTO controls AS c (scope, name, paused, reason, at, actor)
    VALUES (:scope, :name, :paused, :reason, fermata_now(), :actor)
    ON CONFLICT (scope, name) DO UPDATE
    SET paused = :paused, reason = :reason, at = fermata_now(), actor = :actor
""")

_LIMIT = text("""
    INSERT INTO controls AS c (scope, name, running_max, at, actor)
    VALUES ('queue', :name, :running_max, fermata_now(), :actor)
    ON CONFLICT (scope, name) DO UPDATE
    SET running_max = :running_max, at = fermata_now(), actor = :actor
""")

_PAUSED = text("""
    SELECT scope, name, reason, at, actor
    FROM controls
    WHERE paused
      AND (
          CAST(:queue AS text) IS NULL
          OR (scope = 'queue' AND name = :queue)
          OR (scope = 'kind' AND name = :kind)
      )
    ORDER BY scope DESC, name
""")

#: The account's row has no room for a reason: its last event of a pause has it.
_OF_PAUSED = """
    SELECT 'account', a.account_id, e.reason, e.at, e.body ->> 'actor'
    FROM accounts AS a
    LEFT JOIN LATERAL (
        SELECT reason, at, body
        FROM events
        WHERE events.account_id = a.account_id
          AND what = 'paused'
        ORDER BY seq DESC
        LIMIT 1
    ) AS e ON true
    WHERE a.paused
"""

_PAUSED_ACCOUNT = text(f"{_OF_PAUSED} AND a.account_id = :account")

_PAUSED_ACCOUNTS = text(f"{_OF_PAUSED} ORDER BY e.at DESC NULLS LAST, a.account_id LIMIT :limit")

_CONTROLS = text("""
    SELECT scope, name, paused, running_max, reason, at, actor
    FROM controls
    ORDER BY scope, name
""")

_KNOWN = text("""
    SELECT name
    FROM controls
    WHERE scope = :scope
    UNION
    SELECT CASE :scope WHEN 'queue' THEN queue ELSE kind END
    FROM due
    UNION
    SELECT CASE :scope WHEN 'queue' THEN queue ELSE kind END
    FROM live
    UNION
    SELECT CASE :scope WHEN 'queue' THEN queue ELSE kind END
    FROM parked
    UNION
    SELECT q.queue
    FROM workers AS w
    CROSS JOIN LATERAL unnest(w.queues) AS q (queue)
    WHERE :scope = 'queue'
""")

#: In the order in which everybody locks rows of several accounts. What another pause holds stays.
_FREE = text("""
    WITH freed AS (
        SELECT d.account_id, d.job_id
        FROM due AS d
        JOIN accounts AS a USING (account_id)
        WHERE d.waits_for = 'paused'
          AND (CAST(:account AS text) IS NULL OR d.account_id = :account)
          AND (CAST(:queue AS text) IS NULL OR d.queue = :queue)
          AND (CAST(:kind AS text) IS NULL OR d.kind = :kind)
          AND NOT a.paused
          AND NOT EXISTS (
              SELECT FROM controls AS c
              WHERE c.paused
                AND ((c.scope = 'queue' AND c.name = d.queue) OR (c.scope = 'kind' AND c.name = d.kind))
          )
        ORDER BY d.account_id, d.job_id
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE due AS d
    SET waits_for = NULL
    FROM freed
    WHERE d.account_id = freed.account_id
      AND d.job_id = freed.job_id
""")

#: What waited through the pause has saved up no turns: it goes one a round from where its queue has come to.
_PLACE = text("""
    WITH forgotten AS (
        DELETE FROM turns
        WHERE account_id = :account
    ), mine AS MATERIALIZED (
        SELECT d.account_id, d.job_id, d.queue, d.priority, d.turn
        FROM due AS d
        WHERE d.account_id = :account
        ORDER BY d.job_id
        FOR UPDATE SKIP LOCKED
    ), placed AS (
        SELECT mine.account_id, mine.job_id,
               COALESCE(q.turn, 0) - 1 + row_number() OVER (
                   PARTITION BY mine.queue, mine.priority ORDER BY mine.turn, mine.job_id
               ) AS turn
        FROM mine
        LEFT JOIN queue_turns AS q USING (queue, priority)
    )
    UPDATE due AS d
    SET turn = placed.turn
    FROM placed
    WHERE d.account_id = placed.account_id
      AND d.job_id = placed.job_id
      AND d.turn < placed.turn
""")

_NOTIFY_DUE = text("SELECT pg_notify('fermata_due', '')")
