"""Plan books in the database: numbered and immutable like price books. What is sold, and on what terms it was sold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.plan_changes import large_plan_changes
from worker.credits.plans import Pack, Plan, PlanBook, parse_plan_book
from worker.credits.subscriptions import FROZEN_LIFE
from worker.store.book_shelf import Approval, Follower
from worker.store.errors import Refused


@dataclass(frozen=True, slots=True)
class PackSold:
    """A pack as that book has it. Not `in_force`: the book that counts now sells it no more."""

    pack: Pack
    book: int
    in_force: bool


class PlanBooks:
    """Parsed books by number. A book never changes, so a process reads each one once.

    `frozen_life`: what no book has, but holds for all that was bought under any of them.
    """

    def __init__(self, frozen_life: timedelta = FROZEN_LIFE) -> None:
        self.frozen_life = frozen_life
        self._parsed: dict[int, PlanBook] = {}

    async def current(self, connection: AsyncConnection) -> PlanBook:
        """The book in force now, by the database's clock."""
        return await self.numbered(connection, (await connection.execute(_CURRENT)).scalar_one())

    async def numbered(self, connection: AsyncConnection, book_id: int) -> PlanBook:
        """The book of this number."""
        if book_id not in self._parsed:
            document = (await connection.execute(_DOCUMENT, {"book": book_id})).scalar_one()
            self._parsed[book_id] = parse_plan_book(document)
        return self._parsed[book_id]

    async def terms(self, connection: AsyncConnection, names: Iterable[str], book: PlanBook) -> Mapping[str, Plan]:
        """The plans of these names: as `book` has them, or as they were sold last.

        A plan that a book leaves out is no longer sold; whoever has it keeps it on its last terms.
        """
        found: dict[str, Plan] = {}
        for name in sorted(set(names)):
            found[name] = book.plans[name] if name in book.plans else await self._as_sold_last(connection, name)
        return found

    async def pack(self, connection: AsyncConnection, name: str) -> PackSold:
        """The pack of this name: as the book in force has it, or as it was sold last. Who paid for it gets it.

        Raises `Refused` for a name that no book ever had.
        """
        book_id = (await connection.execute(_CURRENT)).scalar_one()
        book = await self.numbered(connection, book_id)
        if name in book.packs:
            return PackSold(book.packs[name], book_id, in_force=True)
        for older_id in (await connection.execute(_IN_FORCE_ONCE)).scalars().all():
            older = await self.numbered(connection, older_id)
            if name in older.packs:
                return PackSold(older.packs[name], older_id, in_force=False)
        raise Refused("pack", f"no pack {name!r}; there are {', '.join(sorted(book.packs))}")

    async def _as_sold_last(self, connection: AsyncConnection, name: str) -> Plan:
        for book_id in (await connection.execute(_NEWEST_FIRST)).scalars().all():
            plan = (await self.numbered(connection, book_id)).plans.get(name)
            if plan is not None:
                return plan
        raise Refused("plan", f"no plan book ever had {name!r}")


def moderate_or_forced(percent_max: int) -> Approval:
    """Lets a book follow another whose plans and packs bring about as much, or that is forced with a reason.

    Raises `Refused` for others, with each plan and pack that brings more than `percent_max` percent more or fewer.
    """

    async def approve(connection: AsyncConnection, before: str, follower: Follower) -> None:
        large = large_plan_changes(parse_plan_book(before), parse_plan_book(follower.document), percent_max)
        if not large or follower.forced is not None:
            return
        said = f"{'; '.join(large)}: more than {percent_max} % (FERMATA_PRICE_CHANGE_PERCENT_MAX)"
        if follower.book is None:
            raise Refused("force", f"{said}. Look at `fermata plans diff`; if it is meant, say why with --force")
        planned = f"the planned book {follower.book} would then bring a large change: {said}"
        raise Refused("force", f"{planned}. Withdraw it first (`fermata plans withdraw {follower.book}`)")

    return approve


_CURRENT = text("""
    SELECT book_id
    FROM plan_books
    WHERE effective_at <= fermata_now()
      AND withdrawn_at IS NULL
    ORDER BY effective_at DESC
    LIMIT 1
""")

_DOCUMENT = text("SELECT document FROM plan_books WHERE book_id = :book")

_NEWEST_FIRST = text("""
    SELECT book_id
    FROM plan_books
    WHERE effective_at <= fermata_now()
    ORDER BY withdrawn_at NULLS FIRST, effective_at DESC
""")

#: What was withdrawn never sold anything.
_IN_FORCE_ONCE = text("""
    SELECT book_id
    FROM plan_books
    WHERE effective_at <= fermata_now()
      AND withdrawn_at IS NULL
    ORDER BY effective_at DESC
""")
