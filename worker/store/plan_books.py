"""Plan books in the database: numbered and immutable like price books. What is sold, and on what terms it was sold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.plans import Plan, PlanBook, parse_plan_book
from worker.store.database import transaction
from worker.store.errors import Refused
from worker.store.price_books import BookApplied, BookLine, BookShown
from worker.store.reads_accounts import check_limit
from worker.store.snapshots import snapshot

#: One at a time applies a book, so that numbers follow each other and the same file twice is one book.
_APPLY_LOCK = 4_607_182_420


class PlanBooks:
    """Parsed books by number. A book never changes, so a process reads each one once."""

    def __init__(self) -> None:
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

    async def _as_sold_last(self, connection: AsyncConnection, name: str) -> Plan:
        for book_id in (await connection.execute(_NEWEST_FIRST)).scalars().all():
            plan = (await self.numbered(connection, book_id)).plans.get(name)
            if plan is not None:
                return plan
        raise Refused("plan", f"no plan book ever had {name!r}")


class PlanBookShelf:
    """Every plan book there ever was."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def apply(self, book: PlanBook, author: str, note: str, effective_at: datetime | None = None) -> BookApplied:
        """Number the book and put it in force, now or at a time to come, by the database's clock.

        From then on it says what is sold; running cycles keep what they were granted. The very document that is in
        force already (or planned for that very time) is not applied again. Raises `Refused` for a time that is past
        or taken by another book.
        """
        values = {"effective_at": effective_at, "author": author, "note": note}
        async with transaction(self._engine) as connection:
            await connection.execute(_LOCK, {"lock": _APPLY_LOCK})
            before: Any = (await connection.execute(_BEFORE, {"effective_at": effective_at})).one_or_none()
            if before is not None and before.digest == book.digest:
                return _applied(before, replayed=True)
            if before is not None and effective_at is not None:
                raise Refused("effective_at", f"book {before.book_id} comes into force at that very time")
            document = {"document": book.document, "digest": book.digest}
            made = (await connection.execute(_APPLY, values | document)).one_or_none()
            if made is None:
                raise Refused("effective_at", "must not be in the past: what was sold then was sold")
        return _applied(made, replayed=False)

    async def shown(self, book_id: int | None = None, at: datetime | None = None) -> BookShown:
        """A book by its number, or the one in force at a time (now, if none is given). Raises `Refused`."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_SHOWN, {"book": book_id, "at": at})).one_or_none()
        if row is None:
            field, problem = ("at", "no plans yet") if book_id is None else ("book", f"there is no book {book_id}")
            raise Refused(field, problem)
        return BookShown(*row)

    async def history(self, limit: int = 100) -> tuple[BookLine, ...]:
        """The newest books first, by when they come into force."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            return tuple(BookLine(*row) for row in await connection.execute(_HISTORY, {"limit": limit}))


def _applied(row: Any, *, replayed: bool) -> BookApplied:
    return BookApplied(row.book_id, row.effective_at, row.author, row.note, row.digest, replayed)


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
    ORDER BY effective_at DESC
""")

_LOCK = text("SELECT pg_advisory_xact_lock(:lock)")

#: The book in force, or the one that begins at that very time.
_BEFORE = text("""
    SELECT book_id, effective_at, author, note, digest
    FROM plan_books
    WHERE CASE WHEN CAST(:effective_at AS timestamptz) IS NULL
               THEN effective_at <= fermata_now() AND withdrawn_at IS NULL
               ELSE effective_at = :effective_at END
    ORDER BY effective_at DESC
    LIMIT 1
""")

_APPLY = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    )
    INSERT INTO plan_books (document, digest, effective_at, author, note, created_at)
    SELECT :document, :digest, COALESCE(CAST(:effective_at AS timestamptz), clock.now), :author, :note, clock.now
    FROM clock
    WHERE CAST(:effective_at AS timestamptz) IS NULL
       OR :effective_at >= clock.now
    RETURNING book_id, effective_at, author, note, digest
""")

_SHOWN = text("""
    SELECT book_id, effective_at, author, note, digest, created_at, withdrawn_at, document
    FROM plan_books
    WHERE CASE
              WHEN CAST(:book AS integer) IS NOT NULL THEN book_id = :book
              ELSE effective_at <= COALESCE(CAST(:at AS timestamptz), fermata_now()) AND withdrawn_at IS NULL
          END
    ORDER BY effective_at DESC
    LIMIT 1
""")

_HISTORY = text("""
    SELECT book_id, effective_at, author, note, digest, created_at, withdrawn_at,
           row_number() OVER (
               PARTITION BY effective_at <= fermata_now() AND withdrawn_at IS NULL ORDER BY effective_at DESC
           ) = 1 AND effective_at <= fermata_now() AND withdrawn_at IS NULL AS in_force
    FROM plan_books
    ORDER BY effective_at DESC
    LIMIT :limit
""")
