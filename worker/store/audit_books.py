"""What the audit asks of price and plan books: that the log of changes tells of each what stands there now.

The trigger wrote the digest and the time from the row as it was inserted, and the log is append-only, for a year at
least. Whoever rewrites a book with its digest, moves the time from which it counts, or deletes it, would have to
rewrite the log too. Books are few, so rows are compared here: nothing that was written into the log stops the audit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

#: The log's clock is read by the trigger, a book's before it is written.
_APART = timedelta(minutes=1)


async def unlogged_books(connection: AsyncConnection) -> list[tuple[str, str]]:
    """(rule, what) of each book that is not what the log says it is, or that was withdrawn though it was in force."""
    first_at: datetime | None = await connection.scalar(_FIRST)
    books = {(row.shelf, str(row.book_id)): row for row in await connection.execute(_BOOKS)}
    applied: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in await connection.execute(_APPLIED):
        applied.setdefault((row.shelf, row.subject), row.after if isinstance(row.after, dict) else {})
    problems = [
        f"{shelf} {book_id}: {problem}"
        for shelf, book_id in sorted(books.keys() | applied.keys())
        for problem in _problems(books.get((shelf, book_id)), applied.get((shelf, book_id)), first_at)
    ]
    return [("book_is_as_logged", problem) for problem in problems]


def _problems(book: Any | None, applied: Mapping[str, Any] | None, first_at: datetime | None) -> Iterator[str]:
    if book is None:
        yield "the log says that it was applied, and it is not there"
        return
    if book.withdrawn_at is not None and book.withdrawn_at >= book.effective_at:
        yield f"in force from {book.effective_at} on, withdrawn at {book.withdrawn_at}: a book in force never is"
    if applied is None:
        # What the log had of it may have been forgotten with its year; a part of the log never is.
        if first_at is not None and book.created_at > first_at + _APART:
            yield f"applied at {book.created_at}, and the log, which begins at {first_at}, says nothing of it"
        return
    if applied.get("digest") != book.digest:
        yield f"its digest is {book.digest}, and the log says {applied.get('digest')}"
    if _instant(applied.get("effective_at")) != book.effective_at:
        yield f"in force from {book.effective_at} on, and the log says {applied.get('effective_at')}"


def _instant(written: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(written)
    except (TypeError, ValueError):
        return None


_FIRST = text("SELECT at FROM audit_log ORDER BY entry_id LIMIT 1")

_BOOKS = text("""
    SELECT 'price book' AS shelf, book_id, digest, effective_at, created_at, withdrawn_at
    FROM price_books
    UNION ALL
    SELECT 'plan book', book_id, digest, effective_at, created_at, withdrawn_at
    FROM plan_books
""")

#: The first of each is the trigger's: who may write to the log can add to it, and no more.
_APPLIED = text("""
    SELECT CASE what WHEN 'price_books.insert' THEN 'price book' ELSE 'plan book' END AS shelf, subject, after
    FROM audit_log
    WHERE what IN ('price_books.insert', 'plan_books.insert')
    ORDER BY entry_id
""")
