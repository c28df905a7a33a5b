"""An account's balance and its journal, judged by the database's clock at the moment of asking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.allocation import spendable
from worker.credits.forecast import LOOK_BACK, Forecast, forecast_of
from worker.credits.lots import Lot, LotSource
from worker.credits.subscriptions import FROZEN_LIFE, frozen_until
from worker.store.errors import Refused, UnknownAccount
from worker.store.reads_spending import Spent, spent_since
from worker.store.snapshots import snapshot

#: The most rows of one page of a list.
PAGE_MAX = 1000


@dataclass(frozen=True, slots=True)
class SubscriptionBalance:
    """Credits of the running cycle. `expires_at`: the soonest end of those that have not expired."""

    available: int
    held: int
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class TopupBalance:
    """Bought credits. Without a subscription they are `frozen`, not spendable; the first expire at `frozen_until`."""

    available: int
    held: int
    frozen: int
    frozen_until: datetime | None


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """Credits that were given: promotions, make-goods, compensations."""

    available: int
    held: int
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has. `spendable` is the sum of what is available: a job of that price would start now."""

    account: str
    subscription: SubscriptionBalance
    topup: TopupBalance
    grants: GrantBalance
    spendable: int
    debt: int
    next_refill_at: datetime | None
    plan: str | None
    next_plan: str | None  # from the next cycle on
    status: str  # none | active | cancelled (runs to `active_until`) | lapsed
    active_until: datetime | None
    #: None without a cycle that runs.
    forecast: Forecast | None
    #: Of the last 30 days, by kind.
    spent: tuple[Spent, ...]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One movement of credits of one lot."""

    seq: int
    at: datetime
    lot: int
    source: str
    move: str
    amount: int
    job: UUID | None
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class JournalPage:
    """Entries in the order in which they happened. `next`: go on after this seq; None at the end."""

    entries: tuple[JournalEntry, ...]
    next: int | None


class AccountReads:
    """Reads about one account. `frozen_life`: how long its top-ups stay frozen once it has lapsed."""

    def __init__(self, engine: AsyncEngine, frozen_life: timedelta = FROZEN_LIFE) -> None:
        self._engine = engine
        self._frozen_life = frozen_life

    async def balance(self, account_id: str) -> Balance:
        """What the account has now. Expired credits count as gone even if nobody swept them yet.

        Raises `UnknownAccount`.
        """
        async with snapshot(self._engine) as connection:
            account = (await connection.execute(_ACCOUNT, {"account": account_id})).one_or_none()
            if account is None:
                raise UnknownAccount(account_id)
            rows = (await connection.execute(_OPEN_LOTS, {"account": account_id})).all()
            spent = await spent_since(connection, account_id, account.now - LOOK_BACK)
        return _balance_of(account, rows, spent, self._frozen_life)

    async def journal(self, account_id: str, after_seq: int = 0, limit: int = 100) -> JournalPage:
        """Up to `limit` entries after `after_seq`, oldest first. Raises `UnknownAccount`.

        Complete by seq: numbers are taken under the account's lock, so none appears later below one that was seen.
        """
        check_limit(limit)
        values = {"account": account_id, "after": after_seq, "limit": limit + 1}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_JOURNAL, values)).all()
            if not rows:
                await check_account(connection, account_id)
        entries = tuple(JournalEntry(*row) for row in rows[:limit])
        return JournalPage(entries, entries[-1].seq if len(rows) > limit else None)

    async def journal_end(self, account_id: str, limit: int = 100) -> JournalPage:
        """The account's latest `limit` entries, oldest first. Raises `UnknownAccount`."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_JOURNAL_END, {"account": account_id, "limit": limit})).all()
            if not rows:
                await check_account(connection, account_id)
        return JournalPage(tuple(JournalEntry(*row) for row in reversed(rows)), None)


def check_limit(limit: int) -> None:
    """Raises `Refused` for a page of nothing or of too much."""
    if not 1 <= limit <= PAGE_MAX:
        raise Refused("limit", f"must be from 1 to {PAGE_MAX}")


async def read_lots(connection: AsyncConnection, account_id: str) -> tuple[datetime, bool, list[Lot]]:
    """The database's clock, whether the account's top-ups are frozen, and its open lots. Raises `UnknownAccount`."""
    account = (await connection.execute(_ACCOUNT, {"account": account_id})).one_or_none()
    if account is None:
        raise UnknownAccount(account_id)
    rows = await connection.execute(_OPEN_LOTS, {"account": account_id})
    return account.now, _topups_frozen(account), [_lot_of(row) for row in rows]


async def check_account(connection: AsyncConnection, account_id: str) -> None:
    """Raises `UnknownAccount` unless it exists: an empty list of nobody's is a typing error."""
    if await connection.scalar(_ACCOUNT_EXISTS, {"account": account_id}) is None:
        raise UnknownAccount(account_id)


def _balance_of(account: Any, rows: Sequence[Any], spent: tuple[Spent, ...], frozen_life: timedelta) -> Balance:
    now: datetime = account.now
    topups_frozen = _topups_frozen(account)
    lots = [_lot_of(row) for row in rows]
    available = dict.fromkeys(LotSource, 0)
    held = dict.fromkeys(LotSource, 0)
    for lot in lots:
        available[lot.source] += spendable(lot, now, topups_frozen=topups_frozen)
        held[lot.source] += lot.held
    subscription, topup, grant = LotSource.SUBSCRIPTION, LotSource.TOPUP, LotSource.GRANT
    cycle = [lot for lot in lots if lot.source is subscription]  # its end is worth knowing even when it is all spent
    given = [lot for lot in lots if lot.source is grant and lot.available]
    frozen, frozen_until = _frozen(rows, now, account.active_until, frozen_life) if topups_frozen else (0, None)
    return Balance(
        account=account.account_id,
        subscription=SubscriptionBalance(available[subscription], held[subscription], _soonest_end(cycle, now)),
        topup=TopupBalance(available[topup], held[topup], frozen, frozen_until),
        grants=GrantBalance(available[grant], held[grant], _soonest_end(given, now)),
        spendable=sum(available.values()),
        debt=account.debt,
        next_refill_at=_next_refill(account),
        plan=account.plan,
        next_plan=account.next_plan,
        status=_status(account),
        active_until=account.active_until,
        forecast=_forecast(account, lots, spent),
        spent=spent,
    )


def _status(account: Any) -> str:
    if account.plan is None:
        return "none"
    if _topups_frozen(account):
        return "lapsed"
    return "cancelled" if account.cancelled_at is not None else "active"


def _forecast(account: Any, lots: Sequence[Lot], spent: tuple[Spent, ...]) -> Forecast | None:
    ends: datetime | None = account.cycle_ends_at
    if ends is None or ends <= account.now:
        return None
    since = max(account.created_at, account.now - LOOK_BACK)
    return forecast_of(lots, sum(one.credits for one in spent), since, account.now, ends)


def _topups_frozen(account: Any) -> bool:
    return account.plan is None or (account.active_until is not None and account.active_until <= account.now)


def _lot_of(row: Any) -> Lot:
    buckets = (row.held, row.spent, row.expired, row.revoked)
    return Lot(
        row.lot_id, LotSource(row.source), row.granted, row.available, row.expires_at, *buckets, row.charged_back
    )


def _soonest_end(lots: Iterable[Lot], now: datetime) -> datetime | None:
    return min((lot.expires_at for lot in lots if lot.expires_at and not lot.expired_by(now)), default=None)


def _frozen(
    rows: Iterable[Any], now: datetime, lapsed_at: datetime | None, frozen_life: timedelta
) -> tuple[int, datetime | None]:
    """The frozen credits, and when the first of them expire: the grace counts from the later of lapse and purchase.

    Who never subscribed has frozen credits without an end.
    """
    total, ends = 0, []
    for row in rows:
        until = frozen_until(lapsed_at, row.created_at, frozen_life) if lapsed_at else None
        amount = spendable(_lot_of(row), now, topups_frozen=False) if row.source == LotSource.TOPUP else 0
        if amount and (until is None or until > now):
            total += amount
            ends += [until] if until else []
    return total, min(ends, default=None)


def _next_refill(account: Any) -> datetime | None:
    """The end of the cycle, if another one follows it that is paid for."""
    ends: datetime | None = account.cycle_ends_at
    return ends if account.look_at == ends else None


_ACCOUNT = text("""
    SELECT a.account_id, a.created_at, a.plan, a.active_until, a.cycle_ends_at, a.look_at, fermata_now() AS now,
           s.next_plan, s.cancelled_at,
           (SELECT CAST(COALESCE(sum(d.amount), 0) AS bigint) FROM debts AS d WHERE d.account_id = a.account_id) AS debt
    FROM accounts AS a
    LEFT JOIN subscriptions AS s USING (account_id)
    WHERE a.account_id = :account
""")

_OPEN_LOTS = text("""
    SELECT lot_id, source, granted, available, held, spent, expired, revoked, expires_at, created_at, charged_back
    FROM lots
    WHERE account_id = :account
      AND NOT closed
""")

_JOURNAL = text("""
    SELECT e.seq, e.at, e.lot_id, l.source, e.move, e.amount, e.job_id, e.reason, e.actor
    FROM journal AS e
    JOIN lots AS l USING (account_id, lot_id)
    WHERE e.account_id = :account
      AND e.seq > :after
    ORDER BY e.seq
    LIMIT :limit
""")

_JOURNAL_END = text("""
    SELECT e.seq, e.at, e.lot_id, l.source, e.move, e.amount, e.job_id, e.reason, e.actor
    FROM journal AS e
    JOIN lots AS l USING (account_id, lot_id)
    WHERE e.account_id = :account
    ORDER BY e.seq DESC
    LIMIT :limit
""")

_ACCOUNT_EXISTS = text("SELECT 1 FROM accounts WHERE account_id = :account")
