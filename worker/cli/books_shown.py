"""Price and plan books as tables: what was applied, and all that ever were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from worker.cli.output import facts, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.store.price_books import BookApplied, BookLine


def history(books: Sequence[BookLine]) -> Iterator[RenderableType]:
    """Every book, the newest first."""
    yield table(
        ["book", "in force from", "now", "author", "note", "applied"],
        [(b.book, b.effective_at, "in force" if b.in_force else None, b.author, b.note, b.created_at) for b in books],
        right=["book"],
    )


def applied(done: BookApplied) -> Iterator[RenderableType]:
    """The number that a book has now."""
    yield facts(
        [
            ("book", done.book),
            ("in force from", done.effective_at),
            ("author", done.author),
            ("note", done.note),
            ("done before", True if done.replayed else None),
        ]
    )
