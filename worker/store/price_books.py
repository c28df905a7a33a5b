"""Applying price books and looking at them. A book is never changed: whoever errs applies another one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.price_book import PriceBook
from worker.store.database import transaction
from worker.store.errors import Refused
from worker.store.reads_accounts import check_limit
from worker.store.snapshots import snapshot

#: One at a time applies a book, so that numbers follow each other and the same file twice is one book.
_APPLY_LOCK = 4_607_182_419


@dataclass(frozen=True, slots=True)
class BookApplied:
    """A book that prices every job submitted from `effective_at` on. `replayed`: it was there already."""

    book: int
    effective_at: datetime
    author: str
    note: str
    digest: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class BookShown:
    """One book with its document, as it was applied."""

    book: int
    effective_at: datetime
    author: str
    note: str
    digest: str
    created_at: datetime
    withdrawn_at: datetime | None
    document: str


@dataclass(frozen=True, slots=True)
class BookLine:
    """One book of the history. `in_force`: it prices what is submitted now."""

    book: int
    effective_at: datetime
    author: str
    note: str
    digest: str
    created_at: datetime
    withdrawn_at: datetime | None
    in_force: bool


class PriceBookShelf:
    """Every price book there ever was."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def apply(self, book: PriceBook, author: str, note: str, effective_at: datetime | None = None) -> BookApplied:
        """Number the book and put it in force, now or at a time to come, by the database's clock.

        The very document that is in force already (or planned for that very time) is not applied again: its number
        is the answer. Raises `Refused` for a time that is past or taken by another book.
        """
        values = {
            "document": book.document,
            "digest": book.digest,
            "effective_at": effective_at,
            "author": author,
            "note": note,
        }
        async with transaction(self._engine) as connection:
            await connection.execute(_LOCK, {"lock": _APPLY_LOCK})
            before = await _book_before(connection, effective_at)
            if before is not None and before.digest == book.digest:
                return BookApplied(
                    before.book_id, before.effective_at, before.author, before.note, before.digest, replayed=True
                )
            if before is not None and effective_at is not None:
                raise Refused("effective_at", f"book {before.book_id} comes into force at that very time")
            made = (await connection.execute(_APPLY, values)).one_or_none()
            if made is None:
                raise Refused("effective_at", "must not be in the past: a price never changes after the fact")
        return BookApplied(made.book_id, made.effective_at, author, note, book.digest, replayed=False)

    async def shown(self, book_id: int | None = None, at: datetime | None = None) -> BookShown:
        """A book by its number, or the one in force at a time (now, if none is given). Raises `Refused`."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_SHOWN, {"book": book_id, "at": at})).one_or_none()
        if row is None:
            raise Refused(
                "book" if book_id is not None else "at", "there is no such book" if book_id else "no book yet"
            )
        return BookShown(*row)

    async def history(self, limit: int = 100) -> tuple[BookLine, ...]:
        """The newest books first, by when they come into force."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            return tuple(BookLine(*row) for row in await connection.execute(_HISTORY, {"limit": limit}))


async def _book_before(connection: AsyncConnection, effective_at: datetime | None) -> Any:
    """The book that is in force now, or, with a time, the one that begins at that very time."""
    statement = _IN_FORCE if effective_at is None else _BEGINS_AT
    values = {} if effective_at is None else {"effective_at": effective_at}
    return (await connection.execute(statement, values)).one_or_none()


_LOCK = text("SELECT pg_advisory_xact_lock(:lock)")

_IN_FORCE = text("""
    SELECT book_id, effective_at, author, note, digest
    FROM price_books
    WHERE effective_at <= fermata_now()
      AND withdrawn_at IS NULL
    ORDER BY effective_at DESC
    LIMIT 1
""")

_BEGINS_AT = text("""
    SELECT book_id, effective_at, author, note, digest
    FROM price_books
    WHERE effective_at = :effective_at
""")

_APPLY = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    )
    INSERT INTO price_books (document, digest, effective_at, author, note, created_at)
    SELECT :document, :digest, COALESCE(CAST(:effective_at AS timestamptz), clock.now), :author, :note, clock.now
    FROM clock
    WHERE CAST(:effective_at AS timestamptz) IS NULL
       OR :effective_at >= clock.now
    RETURNING book_id, effective_at
""")

_SHOWN = text("""
    SELECT book_id, effective_at, author, note, digest, created_at, withdrawn_at, document
    FROM price_books
    WHERE CASE
              WHEN CAST(:book AS integer) IS NOT NULL THEN book_id = :book
              ELSE effective_at <= COALESCE(CAST(:at AS timestamptz), fermata_now()) AND withdrawn_at IS NULL
          END
    ORDER BY effective_at DESC
    LIMIT 1
""")

_HISTORY = text("""
    WITH in_force AS MATERIALIZED (
        SELECT max(effective_at) AS effective_at
        FROM price_books
        WHERE effective_at <= fermata_now()
          AND withdrawn_at IS NULL
    )
    SELECT b.book_id, b.effective_at, b.author, b.note, b.digest, b.created_at, b.withdrawn_at,
           b.effective_at = f.effective_at AS in_force
    FROM price_books AS b
    CROSS JOIN in_force AS f
    ORDER BY b.effective_at DESC
    LIMIT :limit
""")
