"""Credits that come in beside the plan: purchases and gifts. Each step is idempotent by its reference."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from worker.credits.account_ledger import NewLot
from worker.credits.lots import LotSource
from worker.store.audit_log import acting
from worker.store.books import Books
from worker.store.database import tried_again
from worker.store.errors import Conflict, Refused
from worker.store.instants import problem_of_instant
from worker.store.references import check_actor, check_amount, check_reference
from worker.store.texts import NOTE_LENGTH_MAX, is_line


@dataclass(frozen=True, slots=True)
class Credited:
    """Credits that came in. `replayed`: they had come before, under the same reference."""

    account_id: str
    credits: int
    expires_at: datetime | None
    reference: str
    replayed: bool


class Purchases:
    """Top-ups and grants."""

    def __init__(self, books: Books) -> None:
        self._books = books

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
                packs = (await self._books.plan_books.current(connection)).packs
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
            await acting(connection, actor)
            page.ledger.grant(amount, new, expires_at, actor)
        return Credited(account_id, amount, expires_at, reference, replayed=False)


def _replayed(account_id: str, amount: int, before: int, expires_at: datetime | None, reference: str) -> Credited:
    if before != amount:
        raise Conflict("reference", reference, f"was used before, for {before:,} credits")
    return Credited(account_id, amount, expires_at, reference, replayed=True)


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
