"""Accounts and where their credits come from: subscriptions, top-ups, grants. Each step is idempotent by reference."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.account_ledger import NewLot
from worker.credits.cycles import cycle_bounds
from worker.credits.lots import CREDITS_MAX, LotSource
from worker.credits.plans import Plan, PlanBook, parse_plan_book
from worker.store.books import Books
from worker.store.database import transaction, tried_again
from worker.store.errors import Conflict, Refused
from worker.store.instants import problem_of_instant
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX, is_line

REFERENCE_LENGTH_MAX = 255
_ACCOUNT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")


@dataclass(frozen=True, slots=True)
class Credited:
    """Credits that came in. `replayed`: they had come before, under the same reference."""

    account_id: str
    credits: int
    expires_at: datetime | None
    reference: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription that began. `replayed` as above."""

    account_id: str
    plan: str
    credits: int
    cycle_ends_at: datetime
    reference: str
    replayed: bool


class Accounts:
    """What billing and the product do with accounts."""

    def __init__(self, engine: AsyncEngine, books: Books) -> None:
        self._engine = engine
        self._books = books

    async def create(self, account_id: str, actor: str) -> bool:
        """Make the account; False if it is there already. Raises `Refused` for an id out of bounds."""
        check_account_id(account_id)
        check_actor(actor)
        async with transaction(self._engine) as connection:
            made = await connection.scalar(_CREATE, {"account": account_id, "actor": actor})
        return made is not None

    async def plans(self) -> PlanBook:
        """The plans in force now."""
        async with transaction(self._engine) as connection:
            return await _plans(connection)

    @tried_again
    async def subscribe(self, account_id: str, plan: str, reference: str, actor: str) -> Subscribed:
        """Begin a subscription now: its first cycle starts and its credits are there.

        Raises `Refused` for an unknown plan or an account that is subscribed, `Conflict` for a reference that
        was used for another step.
        """
        check_reference(reference)
        check_actor(actor)
        async with self._books.page(account_id) as (connection, page):
            replay = await _change_before(connection, account_id, reference)
            if replay is not None:
                if replay["plan"] != plan:
                    raise Conflict("reference", reference, f"was used before, for the plan {replay['plan']}")
                return Subscribed(**{**replay, "cycle_ends_at": _time(replay["cycle_ends_at"])}, replayed=True)
            chosen = _chosen(await _plans(connection), plan)
            if await connection.scalar(_IS_SUBSCRIBED, {"account": account_id}):
                raise Refused("account", f"{account_id} has a subscription already")
            starts_at, ends_at, _ = cycle_bounds(page.now, page.now)
            values = {"account": account_id, "plan": plan, "now": page.now, "actor": actor}
            cycle = {"starts_at": starts_at, "ends_at": ends_at, "credits": chosen.monthly_credits}
            await connection.execute(_SUBSCRIBE, values | cycle)
            await connection.execute(
                _SET_PLAN, {"account": account_id, "plan": plan, "ends_at": ends_at, "running": chosen.jobs_at_a_time}
            )
            if chosen.monthly_credits:
                lot = NewLot(LotSource.SUBSCRIPTION, "cycle", cycle_starts_at=starts_at)
                page.ledger.grant(chosen.monthly_credits, lot, ends_at, actor)
            # Top-ups that were frozen for want of a subscription are spendable from here on.
            page.ledger.topups_frozen = False
            page.ledger.raised = True
            answer = Subscribed(account_id, plan, chosen.monthly_credits, ends_at, reference, replayed=False)
            body = {key: value for key, value in asdict(answer).items() if key != "replayed"}
            await connection.execute(
                _REMEMBER_CHANGE,
                values | {"reference": reference, "body": msgspec.json.encode(body).decode()},
            )
        return answer

    @tried_again
    async def topup(
        self, account_id: str, reference: str, actor: str, *, amount: int | None = None, pack: str | None = None
    ) -> Credited:
        """Credit a purchase: either a pack or a number of credits. Never refused on a lapsed account.

        Raises `Conflict` where the reference was used for another amount.
        """
        check_reference(reference)
        check_actor(actor)
        if (amount is None) == (pack is None):
            raise Refused("credits", "give either a number of credits or a pack")
        if amount is not None:
            check_amount("credits", amount)
        async with self._books.page(account_id) as (connection, page):
            keys = {"account": account_id, "reference": reference}
            before = (await connection.execute(_PURCHASED, keys)).one_or_none()
            if before is not None:
                # A pack is known by its name: what it holds and whether it is sold may have changed since.
                if pack != before.pack if pack is not None else amount != before.credits:
                    raise Conflict("reference", reference, f"was used before, for {before.credits:,} credits")
                return Credited(account_id, before.credits, None, reference, replayed=True)
            price_shown = None
            if pack is not None:
                packs = (await _plans(connection)).packs
                if pack not in packs:
                    raise Refused("pack", f"no pack {pack!r}; there are {', '.join(sorted(packs))}")
                amount, price_shown = packs[pack].credits, packs[pack].price_shown
            assert amount is not None
            page.ledger.grant(amount, NewLot(LotSource.TOPUP, "purchase", reference=reference), None, actor)
            await connection.execute(
                _PURCHASE,
                {
                    "account": account_id,
                    "reference": reference,
                    "credits": amount,
                    "pack": pack,
                    "price_shown": price_shown,
                    "now": page.now,
                    "actor": actor,
                },
            )
        return Credited(account_id, amount, None, reference, replayed=False)

    @tried_again
    async def grant(
        self,
        account_id: str,
        amount: int,
        reference: str,
        actor: str,
        *,
        expires_at: datetime | None = None,
        note: str | None = None,
    ) -> Credited:
        """Give credits away, once per reference. Raises `Refused` for an `expires_at` that is past or has no zone."""
        check_reference(reference)
        check_actor(actor)
        check_amount("credits", amount)
        if expires_at is not None and (problem := problem_of_instant(expires_at)) is not None:
            raise Refused("expires_at", problem)
        if note is not None and not is_line(note, NOTE_LENGTH_MAX):
            raise Refused("note", f"must be 1 to {NOTE_LENGTH_MAX} printable characters on one line")
        async with self._books.page(account_id) as (connection, page):
            before = (await connection.execute(_GRANTED, {"account": account_id, "reference": reference})).one_or_none()
            if before is not None:
                return _replayed(account_id, amount, before.granted, before.expires_at, reference)
            if expires_at is not None and expires_at <= page.now:
                raise Refused("expires_at", "must be in the future")
            new = NewLot(LotSource.GRANT, "grant", reference=reference, note=note)
            page.ledger.grant(amount, new, expires_at, actor)
        return Credited(account_id, amount, expires_at, reference, replayed=False)


def check_account_id(account_id: str) -> None:
    """Raises `Refused` unless it is what an account may be called. The schema repeats it."""
    if not isinstance(account_id, str) or not _ACCOUNT_ID.fullmatch(account_id):
        raise Refused("account", "an id has 1 to 128 letters, digits or . _ : @ / -, and starts with a letter or digit")


def check_amount(field: str, amount: int) -> None:
    """Raises `Refused` unless it is a whole number of 1 to 10^12 credits."""
    if isinstance(amount, bool) or not isinstance(amount, int) or not 1 <= amount <= CREDITS_MAX:
        raise Refused(field, f"must be a whole number from 1 to {CREDITS_MAX:,}")


def check_reference(reference: str) -> None:
    """Raises `Refused` unless it can name a purchase, a grant or a job."""
    if not is_line(reference, REFERENCE_LENGTH_MAX):
        raise Refused("reference", f"must be 1 to {REFERENCE_LENGTH_MAX} printable characters")


def check_actor(actor: str) -> None:
    """Raises `Refused` unless it can say who did something."""
    if not is_line(actor, ACTOR_LENGTH_MAX):
        raise Refused("actor", f"must be 1 to {ACTOR_LENGTH_MAX} printable characters on one line")


def _replayed(account_id: str, amount: int, before: int, expires_at: datetime | None, reference: str) -> Credited:
    if before != amount:
        raise Conflict("reference", reference, f"was used before, for {before:,} credits")
    return Credited(account_id, amount, expires_at, reference, replayed=True)


def _chosen(plans: PlanBook, name: str) -> Plan:
    if name not in plans.plans:
        raise Refused("plan", f"no plan {name!r}; there are {', '.join(sorted(plans.plans))}")
    return plans.plans[name]


def _time(value: str) -> datetime:
    return datetime.fromisoformat(value)


async def _plans(connection: AsyncConnection) -> PlanBook:
    return parse_plan_book((await connection.execute(_CURRENT_PLANS)).scalar_one())


async def _change_before(connection: AsyncConnection, account_id: str, reference: str) -> dict[str, Any] | None:
    body: Any = await connection.scalar(_CHANGE_BEFORE, {"account": account_id, "reference": reference})
    return None if body is None else dict(body)


_CREATE = text("""
    INSERT INTO accounts (account_id, created_at, actor)
    VALUES (:account, fermata_now(), :actor)
    ON CONFLICT DO NOTHING
    RETURNING account_id
""")

_CURRENT_PLANS = text("""
    SELECT document
    FROM plan_books
    WHERE effective_at <= fermata_now()
      AND withdrawn_at IS NULL
    ORDER BY effective_at DESC
    LIMIT 1
""")

_IS_SUBSCRIBED = text("SELECT 1 FROM subscriptions WHERE account_id = :account")

_CHANGE_BEFORE = text("""
    SELECT body
    FROM subscription_changes
    WHERE account_id = :account
      AND reference = :reference
""")

_SUBSCRIBE = text("""
    WITH subscribed AS (
        INSERT INTO subscriptions (account_id, anchor, updated_at)
        VALUES (:account, :now, :now)
    )
    INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, at)
    VALUES (:account, :starts_at, :ends_at, :plan, :credits, :now)
""")

_SET_PLAN = text("""
    UPDATE accounts
    SET plan = :plan, active_until = NULL, cycle_ends_at = :ends_at, running_max = :running
    WHERE account_id = :account
""")

_REMEMBER_CHANGE = text("""
    INSERT INTO subscription_changes (account_id, reference, what, body, at, actor)
    VALUES (:account, :reference, 'subscribe', CAST(:body AS jsonb), :now, :actor)
""")

_PURCHASED = text("""
    SELECT credits, pack
    FROM purchases
    WHERE account_id = :account
      AND reference = :reference
""")

#: The lot is written when the page is: its number is in `lots`, under the same reference.
_PURCHASE = text("""
    INSERT INTO purchases (account_id, reference, credits, pack, price_shown, at, actor)
    VALUES (:account, :reference, :credits, :pack, :price_shown, :now, :actor)
""")

_GRANTED = text("""
    SELECT granted, expires_at
    FROM lots
    WHERE account_id = :account
      AND source = 'grant'
      AND reference = :reference
""")
