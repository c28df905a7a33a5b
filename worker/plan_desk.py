"""What product people do with plans and packs: each verb of `fermata plans` is one of these."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from worker.credits.document_changes import Change, changes_between
from worker.credits.plans import PlanBook, parse_plan_book
from worker.store.book_shelf import BookApplied, BookChanges, BookDraft, BookLine, BookShelf, BookShown
from worker.store.plan_books import moderate_or_forced


@dataclass(frozen=True, slots=True)
class PlansApplied:
    """A plan book, and what it says otherwise than the one that it follows."""

    applied: BookApplied
    changes: tuple[Change, ...]


class PlanDesk:
    """Plan books, as people write, apply and take them back."""

    def __init__(self, shelf: BookShelf, models: Mapping[str, Collection[str]], percent_max: int) -> None:
        """`models`: of each kind. `percent_max`: by how much what is sold may change without a reason."""
        self._shelf = shelf
        self._models = models
        self._percent_max = percent_max

    def read(self, document: str) -> PlanBook:
        """The plans and packs that a document describes, for our kinds. Raises `PlanBookError` with all problems."""
        return parse_plan_book(document, models=self._models)

    async def apply(
        self, document: str, author: str, note: str, effective_at: datetime | None = None, force: str | None = None
    ) -> PlansApplied:
        """Sell these plans and packs, from now on or later.

        What changes the credits of a plan or a pack by more than `percent_max` needs `force`, which says why. Raises
        as `read` and as `BookShelf.apply`.
        """
        book = self.read(document)
        draft = BookDraft(book.document, book.digest, author, note, effective_at, force)
        applied = await self._shelf.apply(draft, moderate_or_forced(self._percent_max))
        before = await self._shelf.before(applied.effective_at)
        return PlansApplied(applied, () if before is None else changes_between(before.document, book.document))

    async def withdraw(self, book_id: int, author: str, note: str) -> BookLine:
        """Take back a book that is not in force yet. Raises as `BookShelf.withdraw`, and as `apply` for a planned book
        that would then be a large change."""
        return await self._shelf.withdraw(book_id, author, note, moderate_or_forced(self._percent_max))

    async def changes(self, before: int | None, after: int | str) -> BookChanges:
        """What a book or a draft says otherwise than another one, by default the one in force."""
        old = await self._shelf.shown(before)
        number = after if isinstance(after, int) else None
        new = self.read(after).document if isinstance(after, str) else (await self._shelf.shown(after)).document
        return BookChanges(old.book, number, changes_between(old.document, new))

    async def shown(self, book_id: int | None = None, at: datetime | None = None) -> BookShown:
        """A book by its number, or the one in force at a time, by default now."""
        return await self._shelf.shown(book_id, at)

    async def history(self, limit: int = 100) -> tuple[BookLine, ...]:
        """Every book, the newest first."""
        return await self._shelf.history(limit)
