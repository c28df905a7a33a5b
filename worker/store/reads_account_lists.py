"""Accounts as ops look them up: a page by the beginning of their id, one with its terms, and its lots by expiry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.errors import UnknownAccount
from worker.store.reads_accounts import check_limit
from worker.store.snapshots import snapshot

#: Open lots shown of one account: who has more is shown those that are spent first.
LOTS_MAX = 200


@dataclass(frozen=True, slots=True)
class AccountLine:
    """An account in a list. `available` may hold frozen credits; the account's balance tells them apart."""

    account: str
    plan: str | None
    paused: bool
    available: int
    held: int
    running: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AccountsPage:
    """Some accounts by id. `next`: give it as `after` to go on; None at the end."""

    accounts: tuple[AccountLine, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class AccountShown:
    """An account's own terms. `active_until` None: its subscription, if it has a plan, is open-ended."""

    account: str
    plan: str | None
    active_until: datetime | None
    cycle_ends_at: datetime | None
    running_max: int | None
    paused: bool
    running: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LotShown:
    """A lot that still holds credits."""

    lot: int
    source: str
    granted: int
    available: int
    held: int
    spent: int
    expired: int
    revoked: int
    expires_at: datetime | None
    created_at: datetime
    reference: str | None
    reason: str
    note: str | None


@dataclass(frozen=True, slots=True)
class Noted:
    """What something that runs now and then found the last time."""

    at: datetime
    body: Mapping[str, Any]


class AccountListReads:
    """Reads about many accounts, and about one as ops see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def accounts(self, starts_with: str = "", limit: int = 50, after: str | None = None) -> AccountsPage:
        """A page of the accounts whose id begins so, by id. Raises `Refused` for a limit out of bounds."""
        check_limit(limit)
        values = {"begin": starts_with, "after": after, "limit": limit + 1}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_ACCOUNTS, values)).all()
        lines = tuple(AccountLine(*row) for row in rows[:limit])
        return AccountsPage(lines, lines[-1].account if len(rows) > limit else None)

    async def account(self, account_id: str) -> AccountShown:
        """One account. Raises `UnknownAccount`."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_ACCOUNT, {"account": account_id})).one_or_none()
        if row is None:
            raise UnknownAccount(account_id)
        return AccountShown(*row)

    async def lots(self, account_id: str) -> tuple[LotShown, ...]:
        """The account's open lots that hold anything, in the order in which they are drawn, at most `LOTS_MAX`."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_LOTS, {"account": account_id, "limit": LOTS_MAX})
            return tuple(LotShown(*row) for row in rows)

    async def noted(self, what: str) -> Noted | None:
        """The last note of a duty or an audit; None where there is none."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_NOTED, {"what": what})).one_or_none()
        return None if row is None else Noted(row.ran_at, row.body or {})


_NOTED = text("SELECT ran_at, body FROM duty_runs WHERE duty = :what")

_ACCOUNTS = text("""
    SELECT a.account_id, a.plan, a.paused,
           CAST(COALESCE(l.available, 0) AS bigint), CAST(COALESCE(l.held, 0) AS bigint),
           (SELECT count(*) FROM live WHERE live.account_id = a.account_id), a.created_at
    FROM accounts AS a
    LEFT JOIN LATERAL (
        SELECT sum(available) FILTER (WHERE expires_at IS NULL OR expires_at > fermata_now()) AS available,
               sum(held) AS held
        FROM lots
        WHERE lots.account_id = a.account_id
          AND NOT closed
    ) AS l ON true
    WHERE a.account_id >= :begin
      AND starts_with(a.account_id, :begin)
      AND (CAST(:after AS text) IS NULL OR a.account_id > :after)
    ORDER BY a.account_id
    LIMIT :limit
""")

_ACCOUNT = text("""
    SELECT a.account_id, a.plan, a.active_until, a.cycle_ends_at, a.running_max, a.paused,
           (SELECT count(*) FROM live WHERE live.account_id = a.account_id), a.created_at
    FROM accounts AS a
    WHERE a.account_id = :account
""")

_LOTS = text("""
    SELECT lot_id, source, granted, available, held, spent, expired, revoked, expires_at, created_at, reference,
           reason, note
    FROM lots
    WHERE account_id = :account
      AND NOT closed
      AND (available > 0 OR held > 0)
    ORDER BY expires_at NULLS LAST, lot_id
    LIMIT :limit
""")
