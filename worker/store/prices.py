"""Price books in the database: numbered, immutable, pinned by the jobs they priced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.prices import WIDEST_BOUNDS, PriceBook, parse_price_book


class PriceBooks:
    """Parsed books by number. A book never changes, so a process reads each one once."""

    def __init__(self) -> None:
        self._parsed: dict[int, PriceBook] = {}

    async def load(self, connection: AsyncConnection, book_ids: Iterable[int]) -> Mapping[int, PriceBook]:
        """The books of these numbers, read where this process has not seen them."""
        missing = [book_id for book_id in book_ids if book_id not in self._parsed]
        if missing:
            for row in await connection.execute(_READ_BOOKS, {"books": missing}):
                self._parsed[row.book_id] = parse_price_book(row.document, bounds=WIDEST_BOUNDS)
        return self._parsed

    def parsed(self, book_id: int) -> PriceBook:
        """A book that was loaded before: a claim loads the book of the job it claims."""
        return self._parsed[book_id]

    async def current(self, connection: AsyncConnection) -> tuple[int, PriceBook, datetime]:
        """The number and the book in force now, and that now: the database's clock."""
        book_id, now = (await connection.execute(_CURRENT_BOOK)).one()
        return book_id, (await self.load(connection, [book_id]))[book_id], now


_READ_BOOKS = text("""
    SELECT book_id, document
    FROM price_books
    WHERE book_id = ANY(CAST(:books AS integer[]))
""")

_CURRENT_BOOK = text("""
    SELECT b.book_id, clock.now
    FROM (SELECT fermata_now() AS now) AS clock
    JOIN price_books AS b ON b.effective_at <= clock.now
    WHERE b.withdrawn_at IS NULL
    ORDER BY b.effective_at DESC
    LIMIT 1
""")
