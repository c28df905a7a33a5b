"""What product people do with prices: each verb of `fermata prices` and each route under /prices is one of these."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

from config.settings import Settings
from tasks.kind import Kind
from worker.credits.document_changes import changes_between
from worker.credits.plans import parse_plan_book
from worker.credits.price_changes import large_changes
from worker.credits.prices import WIDEST_BOUNDS, Bounds, PriceBook, parse_price_book
from worker.credits.rehearsal import Rehearsal, endings_by_hold
from worker.overcharges import Overcharged, Overcharges
from worker.pricing import request_fields
from worker.store.book_shelf import BookApplied, BookChanges, BookDraft, BookLine, BookShelf, BookShown, Seen
from worker.store.compensations import Compensations
from worker.store.creations import Asked
from worker.store.errors import Refused
from worker.store.past_jobs import PastJobs
from worker.store.price_report import PriceReport, PriceReports
from worker.store.rehearsals import Rehearsals, Rehearsed, rehearsed_or_forced


class PriceDesk:
    """Price books, as people write, try out, apply and take them back."""

    def __init__(
        self,
        *,
        shelf: BookShelf,
        plans: BookShelf,
        past: PastJobs,
        rehearsals: Rehearsals,
        compensations: Compensations,
        reports: PriceReports,
        kinds: Mapping[str, Kind],
        settings: Settings,
    ) -> None:
        self._shelf = shelf
        self._plans = plans
        self._past = past
        self._rehearsals = rehearsals
        self._overcharges = Overcharges(past, compensations)
        self._reports = reports
        self._kinds = kinds
        self._bounds = bounds_of(settings)
        self._percent_max = settings.price_change_percent_max
        #: The names of each plan book: it never changes, and is read once.
        self._plans_of: dict[int, tuple[str, ...]] = {}

    async def read(self, document: str) -> PriceBook:
        """The book that a document describes, for our kinds and the plans that some account may have.

        Raises `PriceBookError` with all that is wrong, each with table, key and reason.
        """
        return parse_price_book(
            document,
            kinds=self._kinds,
            request_fields=request_fields(self._kinds),
            plans=await self._plan_names(),
            bounds=self._bounds,
        )

    async def _plan_names(self) -> Collection[str]:
        """The plans of all plan books: whoever has one that is no longer sold keeps it, and one may be to come.

        No account has any other: it was sold by a book, and books are never deleted.
        """
        for book, document in (await self._plans.documents(besides=self._plans_of)).items():
            self._plans_of[book] = tuple(parse_plan_book(document).plans)
        return {name for names in self._plans_of.values() for name in names}

    async def apply(
        self,
        document: str,
        author: str,
        note: str,
        effective_at: datetime | None = None,
        force: str | None = None,
        asked: Asked | None = None,
        seen: Seen | None = None,
        *,
        trial: bool = False,
    ) -> BookApplied:
        """Put a book in force, now or later, for jobs submitted from then on; once a request.

        `seen`: the books as its author saw them when the draft began. Others came since: `Overtaken`.
        `trial`: nothing is written, and whatever would be refused is refused.

        One that changes what some request costs by more than `price_change_percent_max` must have been rehearsed,
        exactly this document, unless `force` says why not. Raises as `read` and as `BookShelf.apply`.
        """
        book = await self.read(document)
        draft = BookDraft(book.document, book.digest, author, note, effective_at, force, seen=seen)
        return await self._shelf.apply(draft, rehearsed_or_forced(self._percent_max), asked, trial=trial)

    async def rehearse(self, document: str, length: timedelta, actor: str) -> Rehearsed:
        """What the jobs that ended in the time until now would have cost under a draft, and whom that would hurt.

        Prices nothing and nobody anew; the rehearsal itself is kept, as `apply` asks for it. Raises as `read`.
        """
        book = await self.read(document)
        against, sold = await self._shelf.shown(), parse_plan_book((await self._plans.shown()).document)
        period = await self._past.period(length)
        rehearsal = Rehearsal(book)
        async for page in self._past.pages(period, endings_by_hold(book)):
            # In a thread: whoever serves others from this loop goes on meanwhile.
            await asyncio.to_thread(rehearsal.take_all, page.jobs, page.lots)
        return await self._rehearsals.keep(book.digest, against.book, period, rehearsal.outcome(sold), actor)

    async def revert(self, book_id: int, author: str, note: str, asked: Asked | None = None) -> BookApplied:
        """Put the document of an old book in force again, now, as a new book; once a request.

        Needs no rehearsal: it is how a wrong book is mended at once. A planned book that would then be a large change
        must be withdrawn first, or have been rehearsed. Raises as `read` and as `BookShelf.apply`.
        """
        book = await self.read((await self._shelf.shown(book_id)).document)
        draft = BookDraft(book.document, book.digest, author, note, reverts_to=book_id)
        return await self._shelf.apply(draft, rehearsed_or_forced(self._percent_max), asked)

    async def overcharged(
        self, book_id: int, under: int | None = None, worst_max: int = 20, *, give: tuple[str, str] | None = None
    ) -> Overcharged:
        """The jobs that a book priced and another one, by default the one in force, would have charged less.

        Looks only, unless `give` says why and by whom each job's difference is granted: once per job, and in total
        never more than it was charged. Raises `Refused` for a book that is not there, or compared with itself.
        """
        wrong, right = await self._shelf.shown(book_id), await self._shelf.shown(under)
        if wrong.book == right.book:
            raise Refused("under", f"book {book_id} can't be compared with itself: name another one")
        other = _read_again(right.document)
        return await self._overcharges.found((book_id, wrong.effective_at), (right.book, other), worst_max, give)

    async def report(self, length: timedelta) -> PriceReport:
        """What prices did in the time until now, for each kind and model."""
        return await self._reports.report(length)

    async def withdraw(self, book_id: int, author: str, note: str) -> BookLine:
        """Take back a book that is not in force yet. Raises as `BookShelf.withdraw`, and as `apply` for a planned book
        that would then be a large change."""
        return await self._shelf.withdraw(book_id, author, note, rehearsed_or_forced(self._percent_max))

    async def shown(self, book_id: int | None = None, at: datetime | None = None) -> BookShown:
        """A book by its number, or the one in force at a time, by default now."""
        return await self._shelf.shown(book_id, at)

    async def history(self, limit: int = 100) -> tuple[BookLine, ...]:
        """Every book, the newest first."""
        return await self._shelf.history(limit)

    async def changes(self, before: int | None, after: int | str) -> BookChanges:
        """What a book or a draft says otherwise than another one, by default the one in force."""
        old = await self._shelf.shown(before)
        number = after if isinstance(after, int) else None
        document = (await self.read(after)).document if isinstance(after, str) else ""
        new = document if number is None else (await self._shelf.shown(number)).document
        effects = large_changes(_read_again(old.document), _read_again(new), 0)
        return BookChanges(old.book, number, changes_between(old.document, new), effects)


def _read_again(document: str) -> PriceBook:
    """A book that was accepted before, whatever its bounds were then."""
    return parse_price_book(document, bounds=WIDEST_BOUNDS)


def bounds_of(settings: Settings) -> Bounds:
    """What no price may be above, by the settings."""
    return Bounds(
        Decimal(settings.price_credits_max),
        Decimal(settings.price_multiplier_max),
        Decimal(settings.price_seconds_max),
    )
