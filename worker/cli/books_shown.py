"""Price and plan books as people read them: what was applied, all that ever were, what one changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from worker.cli.output import facts, table, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.credits.document_changes import Change
    from worker.store.book_shelf import BookApplied, BookChanges, BookLine


#: Of a large change that was let in with a reason: what it went without, or how it came.
FORCED_PRICES, FORCED_PLANS = "without a rehearsal", "forced"


def history(books: Sequence[BookLine], forced: str = FORCED_PRICES) -> Iterator[RenderableType]:
    """Books, one a line."""
    yield table(
        ["book", "in force from", "now", "author", "note", "applied", "remarks"],
        [(b.book, b.effective_at, b.standing, b.author, b.note, b.created_at, _remarks(b, forced)) for b in books],
        right=["book"],
    )


def _remarks(book: BookLine, forced: str) -> str:
    said = [
        book.withdrawn_by and f"withdrawn by {book.withdrawn_by}: {book.withdrawn_note}",
        book.reverts_to and f"the document of book {book.reverts_to}",
        book.forced and f"{forced}: {book.forced}",
    ]
    return "; ".join(remark for remark in said if remark)


def changes(found: BookChanges) -> Iterator[RenderableType]:
    """What one book says otherwise than another, value by value."""
    after = f"book {found.after}" if found.after is not None else "the draft"
    yield f"book {found.before} -> {after}"
    yield from values_changed(found.changes)
    for effect in found.effects:
        yield f"at most: {visible(effect)}"
    if not found.changes:
        yield "no difference but comments and layout"


def values_changed(found: Sequence[Change]) -> Iterator[RenderableType]:
    """One value a line."""
    for change in found:
        yield visible(str(change))


def applied(done: BookApplied, forced: str = FORCED_PRICES) -> Iterator[RenderableType]:
    """The book that will count."""
    yield facts(
        [
            ("book", done.book),
            ("in force from", done.effective_at),
            ("author", done.author),
            ("note", done.note),
            ("the document of", done.reverts_to and f"book {done.reverts_to}"),
            (forced, done.forced),
            ("done before", True if done.replayed else None),
        ]
    )
