"""Credits that come in beside the plan: purchases and gifts. Each step is idempotent by its reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import text

from worker.credits.account_ledger import DebtLine, NewLot
from worker.credits.lots import LotSource
from worker.credits.page import Page
from worker.credits.subscriptions import frozen_until
from worker.store.audit_log import acting
from worker.store.books import Books
from worker.store.database import tried_again
from worker.store.errors import Conflict, Refused
from worker.store.instants import problem_of_instant
from worker.store.references import check_actor, check_amount, check_reference
from worker.store.texts import NOTE_LENGTH_MAX, is_line

#: What the lot and the journal entry of a gift say.
GRANT = "grant"


@dataclass(frozen=True, slots=True)
class Credited:
    """Credits that came in. `replayed`: they had come before, under the same reference."""

    account_id: str
    credits: int
    expires_at: datetime | None
    reference: str
    replayed: bool
    #: So many of them paid what the account owed.
    paid_debt: int = 0
    #: Of a top-up: whether it can't be spent, having no active subscription.
    frozen: bool = False
    #: Since when, or from when if the subscription does not go on; None: not before somebody subscribes, or not at all.
    frozen_from: datetime | None = None
    #: When it expires if no subscription has gone on by then; None: never.
    frozen_until: datetime | None = None
    #: Of a pack, the first time: the plan book that it was credited by, and whether the one in force still sells it.
    book: int | None = None
    still_sold: bool | None = None


@dataclass(frozen=True, slots=True)
class ChargedBack:
    """What a chargeback took: `revoked` at once, `held` by jobs that still run, `owed` because it was spent before."""

    account_id: str
    reference: str
    revoked: int
    held: int
    owed: int
    replayed: bool


class Purchases:
    """Top-ups, what becomes of them if they are charged back, and grants."""

    def __init__(self, books: Books) -> None:
        self._books = books

    @tried_again
    async def topup(
        self, account_id: str, reference: str, actor: str, *, amount: int | None = None, pack: str | None = None
    ) -> Credited:
        """Credit a purchase: either a pack or a number of credits. Never refused on a lapsed account.

        Nor is a pack that is no longer sold: it was paid, and is credited as it was sold last.
        What the account owes is paid first. Without an active subscription the rest is born frozen.
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
                return _topped_up(page, before.credits, before.paid, before.at, reference, replayed=True)
            sold = None
            if pack is not None:
                sold = await self._books.plan_books.pack(connection, pack)
                amount = sold.pack.credits
            assert amount is not None
            owed = (await connection.execute(_OWED, {"account": account_id})).scalar_one()
            paid = _credit(page, amount, owed, reference, actor)
            price_shown = sold.pack.price_shown if sold is not None else None
            bought = {"credits": amount, "pack": pack, "price_shown": price_shown, "now": page.now, "actor": actor}
            await connection.execute(_PURCHASE, keys | bought)
            done = _topped_up(page, amount, paid, page.now, reference, replayed=False)
            return done if sold is None else replace(done, book=sold.book, still_sold=sold.in_force)

    @tried_again
    async def chargeback(self, account_id: str, reference: str, actor: str) -> ChargedBack:
        """A purchase was taken back by the bank: so are its credits, once.

        What is available is revoked. What was spent is owed, and what is held will be if it is spent; the next
        top-ups pay it. Nothing falls below zero. Raises `Refused` for a purchase that nobody knows.
        """
        check_reference(reference)
        check_actor(actor)
        async with self._books.page(account_id) as (connection, page):
            keys = {"account": account_id, "reference": reference}
            bought = (await connection.execute(_BOUGHT, keys)).one_or_none()
            if bought is None:
                raise Refused("reference", f"{account_id} has no purchase {reference!r}")
            if bought.charged_back_at is None:
                await acting(connection, actor)
                owed = _charge_back(page, bought, reference, actor)
                await connection.execute(_CHARGE_BACK, keys | {"lot": bought.lot_id, "now": page.now})
                return ChargedBack(account_id, reference, bought.available, bought.held, owed, replayed=False)
            told = (await connection.execute(_CHARGED_BACK, keys | {"lot": bought.lot_id})).one()
        # Whatever has become of what was held since, it is what was neither taken nor gone by then.
        held = told.granted - told.expired - told.owed - told.revoked
        return ChargedBack(account_id, reference, told.revoked, held, told.owed, replayed=True)

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
        """Give credits away, once per reference. Raises `Refused` for an `expires_at` that is past or has no zone.

        Raises `Conflict` where the reference was used for another amount, end or note.
        """
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
                if before.reason != GRANT:
                    raise Conflict("reference", reference, "was used before, to compensate a job")
                _must_be_the_same_gift(before, amount, expires_at, note, reference)
                return Credited(account_id, amount, before.expires_at, reference, replayed=True)
            if expires_at is not None and expires_at <= page.now:
                raise Refused("expires_at", "must be in the future")
            new = NewLot(LotSource.GRANT, GRANT, reference=reference, note=note)
            await acting(connection, actor)
            page.ledger.grant(amount, new, expires_at, actor)
        return Credited(account_id, amount, expires_at, reference, replayed=False)


def _credit(page: Page, amount: int, owed: int, reference: str, actor: str) -> int:
    """A new lot, less what it pays of the debt; returns that."""
    lot_id = page.ledger.grant(amount, NewLot(LotSource.TOPUP, "purchase", reference=reference), None, actor)
    paid = min(amount, owed)
    if paid:
        page.ledger.pay_debt(lot_id, paid, actor)
    subscription = page.subscription
    if page.ledger.topups_frozen and subscription is not None and subscription.active_until is not None:
        page.writes.look_by = frozen_until(subscription.active_until, page.now, page.frozen_life)
    return paid


def _topped_up(page: Page, amount: int, paid: int, bought_at: datetime, reference: str, *, replayed: bool) -> Credited:
    """With how it stands with a top-up now: its subscription may have begun or ended since it was bought."""
    done = Credited(page.account_id, amount, None, reference, replayed, paid)
    if paid == amount:
        return done  # nothing is left that could be spent
    ends, frozen = page.active_until, page.ledger.topups_frozen
    until = None if ends is None else frozen_until(ends, bought_at, page.frozen_life)
    return replace(done, frozen=frozen, frozen_from=ends, frozen_until=until)


def _charge_back(page: Page, bought: Any, reference: str, actor: str) -> int:
    """Revoke what is left of the lot; returns what is owed: what was spent of it, also for an older debt."""
    if bought.lot_id in page.ledger.lots:  # else it is closed: nothing is left of it
        page.ledger.charge_back(bought.lot_id, actor)
    owed: int = bought.spent + bought.paid
    if owed:
        page.ledger.debts.append(DebtLine(owed, "chargeback", bought.lot_id, reference, actor))
    return owed


def _must_be_the_same_gift(
    before: Any, amount: int, expires_at: datetime | None, note: str | None, reference: str
) -> None:
    problem = None
    if before.granted != amount:
        problem = f"for {before.granted:,} credits"
    elif before.expires_at != expires_at:
        problem = f"for credits that end: {before.expires_at or 'never'}"
    elif before.note != note and not before.erased:
        problem = "with another note"
    if problem is not None:
        raise Conflict("reference", reference, f"was used before, {problem}")


_PURCHASED = text("""
    SELECT p.credits, p.pack, p.at,
           (
               SELECT CAST(COALESCE(-sum(d.amount), 0) AS bigint)
               FROM debts AS d
               JOIN lots AS l USING (account_id, lot_id)
               WHERE d.account_id = p.account_id
                 AND d.amount < 0
                 AND l.source = 'topup'
                 AND l.reference = p.reference
           ) AS paid
    FROM purchases AS p
    WHERE p.account_id = :account
      AND p.reference = :reference
""")

_OWED = text("""
    SELECT CAST(COALESCE(sum(amount), 0) AS bigint)
    FROM debts
    WHERE account_id = :account
""")

_BOUGHT = text("""
    SELECT p.charged_back_at, l.lot_id, l.available, l.held, l.spent,
           (
               SELECT CAST(COALESCE(-sum(d.amount), 0) AS bigint)
               FROM debts AS d
               WHERE d.account_id = p.account_id
                 AND d.lot_id = l.lot_id
                 AND d.amount < 0
           ) AS paid
    FROM purchases AS p
    JOIN lots AS l USING (account_id, reference)
    WHERE p.account_id = :account
      AND p.reference = :reference
      AND l.source = 'topup'
""")

_CHARGE_BACK = text("""
    WITH taken AS (
        UPDATE lots
        SET charged_back = true
        WHERE account_id = :account
          AND lot_id = :lot
    )
    UPDATE purchases
    SET charged_back_at = :now
    WHERE account_id = :account
      AND reference = :reference
""")

#: What was told the first time. Once the entries of its month are detached, the month's checkpoint tells what was
#: revoked; it adds to that what a job gave back later in that very month, which is told as held before.
_CHARGED_BACK = text("""
    SELECT l.granted, l.expired,
           (
               SELECT CAST(COALESCE(sum(amount), 0) AS bigint)
               FROM journal
               WHERE account_id = :account
                 AND lot_id = :lot
                 AND move = 'revoke'
                 AND reason = 'chargeback'
           ) + (
               SELECT CAST(COALESCE(sum(c.revoked - c.debt_paid), 0) AS bigint)
               FROM journal_months AS m
               JOIN checkpoints AS c ON c.month = m.starts_at
               WHERE m.detached_at IS NOT NULL
                 AND p.charged_back_at >= m.starts_at
                 AND p.charged_back_at < m.ends_at
                 AND c.account_id = :account
                 AND c.lot_id = :lot
           ) AS revoked,
           (
               SELECT CAST(COALESCE(sum(amount), 0) AS bigint)
               FROM debts
               WHERE account_id = :account
                 AND lot_id = :lot
                 AND cause = 'chargeback'
                 AND reference = :reference
           ) AS owed
    FROM purchases AS p
    CROSS JOIN lots AS l
    WHERE p.account_id = :account
      AND p.reference = :reference
      AND l.account_id = :account
      AND l.lot_id = :lot
""")

#: The lot is written when the page is: its number is in `lots`, under the same reference.
_PURCHASE = text("""
    INSERT INTO purchases (account_id, reference, credits, pack, price_shown, at, actor)
    VALUES (:account, :reference, :credits, :pack, :price_shown, :now, :actor)
""")

#: An erasure takes the notes of its account.
_GRANTED = text("""
    SELECT l.granted, l.expires_at, l.reason, l.note,
           EXISTS (SELECT FROM erasures AS e WHERE e.account_id = l.account_id AND e.at >= l.created_at) AS erased
    FROM lots AS l
    WHERE l.account_id = :account
      AND l.source = 'grant'
      AND l.reference = :reference
""")
