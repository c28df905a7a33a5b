"""The shelves of price books and of plan books: numbered, in force from a time on, never changed.

Both tables are alike, and so is what is done with them. Whoever errs withdraws a book that is not in force yet, or
applies another one; the history keeps all of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Table, and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.document_changes import Change
from worker.store.creations import Asked, made_before, note_made
from worker.store.database import transaction
from worker.store.errors import Overtaken, Refused
from worker.store.instants import problem_of_instant
from worker.store.reads_accounts import check_limit
from worker.store.snapshots import snapshot
from worker.store.tables_books import plan_books, price_books
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX, is_line

#: One at a time changes a shelf, so that numbers follow each other and the same file twice is one book.
_SHELF_LOCK = 4_607_182_419


#: A withdrawal is written before its book could price a job: longer than any transaction that still may commit.
WITHDRAW_BEFORE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest book that somebody knows of, in force or planned; and, where told, the one that was in force then."""

    newest: int
    in_force: int | None = None


@dataclass(frozen=True, slots=True)
class BookDraft:
    """A document that was read and found right, and who applies it, why, from when on. None: from now on.

    `forced`: why a change that wants a rehearsal goes without one. `reverts_to`: the book that it repeats.
    `seen`: the shelf as the author saw it when the draft began; None: it is not asked whether it is still so.
    """

    document: str
    digest: str
    author: str
    note: str
    effective_at: datetime | None = None
    forced: str | None = None
    reverts_to: int | None = None
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class BookApplied:
    """A book that is in force from `effective_at` on. `replayed`: it was there already."""

    book: int
    effective_at: datetime
    author: str
    note: str
    digest: str
    replayed: bool
    forced: str | None = None
    reverts_to: int | None = None


@dataclass(frozen=True, slots=True)
class BookLine:
    """One book of the history. `in_force`: it is the one that counts now.

    `standing`: planned, in force, past, or withdrawn before it ever was.
    """

    book: int
    effective_at: datetime
    author: str
    note: str
    digest: str
    created_at: datetime
    withdrawn_at: datetime | None
    withdrawn_by: str | None
    withdrawn_note: str | None
    reverts_to: int | None
    forced: str | None
    in_force: bool
    standing: str


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
class BookChanges:
    """What one book says otherwise than another. A draft that is no book yet has no number.

    `effects`, of price books: for each kind the request whose price changes most, and each ending that charges
    something else, as sentences.
    """

    before: int
    after: int | None
    changes: tuple[Change, ...]
    effects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Follower:
    """A book that would follow another one: a draft, or (with its number) one that is planned already."""

    document: str
    digest: str
    forced: str | None
    book: int | None = None


#: Asked under the shelf's lock: may this book follow that document? Raises if not.
Approval = Callable[[AsyncConnection, str, Follower], Awaitable[None]]


class BookShelf:
    """Every book of one table there ever was."""

    def __init__(self, engine: AsyncEngine, table: Table, never_back: str, way_back: str) -> None:
        """`never_back`: why no book begins in the past. `way_back`: what mends one that is in force."""
        self._engine = engine
        self._table = table
        self._never_back = never_back
        self._way_back = way_back

    async def apply(
        self,
        draft: BookDraft,
        approval: Approval | None = None,
        asked: Asked | None = None,
        *,
        trial: bool = False,
    ) -> BookApplied:
        """Number the draft and put it in force, now or at a time to come, by the database's clock.

        The very document that is in force already (or planned for that very time) is not applied again: its number
        is the answer, and so it is for a request that comes again. Raises `Refused` for an author or a note out of
        bounds, for a time that is past or taken by another book, for a revert to what was never in force, `Overtaken`
        where the shelf is no longer as the draft's author saw it, `Conflict`, and whatever `approval` raises: it is
        asked about the draft, unless that is a revert, and about the planned book that would follow the draft. Then
        nothing is written.

        `trial`: nothing is written either way, of the request neither, and a draft that would be let in has number 0.
        """
        _check_draft(draft)
        asked = None if trial else asked
        async with transaction(self._engine, "apply_book") as connection:
            now = await self._locked(connection)
            if (made := await made_before(connection, asked)) is not None:
                return _replayed(await self._line(connection, int(made.made)))
            at = draft.effective_at or now
            if draft.effective_at is not None and at <= now:
                raise Refused("effective_at", f"must not be in the past: {self._never_back}")
            if draft.reverts_to is not None:
                await self._check_was_in_force(connection, draft.reverts_to, now)
            before = await self._book(connection, self._standing_at(at))
            same = before is not None and before.digest == draft.digest
            if before is not None and same and draft.effective_at in (None, before.effective_at):
                await note_made(connection, asked, str(before.book))
                return _replayed(await self._line(connection, before.book))
            if draft.seen is not None:
                await self._check_not_overtaken(connection, draft.seen, now)
            if before is not None and before.effective_at == at:
                raise Refused("effective_at", f"book {before.book} comes into force at that very time")
            if approval is not None:
                # What a revert repeats was let in once, and is wanted at once.
                if draft.reverts_to is None:
                    follower = Follower(draft.document, draft.digest, draft.forced)
                    await self._approve(connection, approval, before, follower)
                # A reason to force the draft is one for what it makes of the planned book too.
                if draft.forced is None and (planned := await self._next(connection, at)) is not None:
                    await approval(connection, draft.document, planned)
            book = 0 if trial else await self._written(connection, draft, at, now)
            await note_made(connection, asked, str(book))
        return BookApplied(book, at, draft.author, draft.note, draft.digest, False, draft.forced, draft.reverts_to)

    async def withdraw(self, book_id: int, author: str, note: str, approval: Approval | None = None) -> BookLine:
        """Take back a book that is not in force yet: it never will be. Withdrawn before: the same answer again.

        Raises `Refused` for a book that is or was in force, or is about to be: jobs may have been priced by it before
        this is written. `approval` is asked about
        the planned book that would then follow the one before.
        """
        _check_words(author, note)
        books = self._table.c
        async with transaction(self._engine, "withdraw_book") as connection:
            now = await self._locked(connection)
            row = await self._book(connection, books.book_id == book_id)
            if row is None:
                raise Refused("book", "there is no such book")
            if row.withdrawn_at is None:
                if row.effective_at <= now:
                    raise Refused(
                        "book", f"book {book_id} is in force since {row.effective_at:%Y-%m-%d}: {self._way_back}"
                    )
                if row.effective_at <= now + WITHDRAW_BEFORE:
                    late = f"comes into force at {row.effective_at:%H:%M:%S} UTC, too soon to be withdrawn"
                    raise Refused("book", f"book {book_id} {late}; then {self._way_back}")
                planned = await self._next(connection, row.effective_at)
                if approval is not None and planned is not None:
                    before = await self._book(connection, self._standing_before(row.effective_at))
                    await self._approve(connection, approval, before, planned)
                withdrawn = {"withdrawn_at": now, "withdrawn_by": author, "withdrawn_note": note}
                await connection.execute(self._table.update().where(books.book_id == book_id).values(withdrawn))
            return await self._line(connection, book_id)

    async def shown(self, book_id: int | None = None, at: datetime | None = None) -> BookShown:
        """A book by its number, or the one in force at a time (now, if none is given). Raises `Refused`."""
        books = self._table.c
        async with snapshot(self._engine) as connection:
            if book_id is not None:
                row = await self._book(connection, books.book_id == book_id)
            else:
                row = await self._book(connection, self._standing_at(at or func.fermata_now()))
        if row is None and book_id is not None:
            raise Refused("book", "there is no such book")
        if row is None:
            raise Refused("at", "no book yet")
        return row

    async def before(self, time: datetime) -> BookShown | None:
        """The book in force until this time; None if there was none."""
        async with snapshot(self._engine) as connection:
            return await self._book(connection, self._standing_before(time))

    async def documents(self, besides: Collection[int] = ()) -> Mapping[int, str]:
        """The documents of all books but these, whether they are, were or will be in force, or were withdrawn."""
        books = self._table.c
        statement = select(books.book_id, books.document).where(books.book_id.not_in(list(besides)))
        async with snapshot(self._engine) as connection:
            return {row.book_id: row.document for row in await connection.execute(statement)}

    async def history(self, limit: int = 100) -> tuple[BookLine, ...]:
        """The newest books first, by when they come into force."""
        check_limit(limit)
        async with snapshot(self._engine) as connection:
            statement = self._lines().order_by(self._table.c.effective_at.desc(), self._table.c.book_id.desc())
            return tuple(BookLine(*row) for row in await connection.execute(statement.limit(limit)))

    async def _locked(self, connection: AsyncConnection) -> datetime:
        """The clock, read once nobody else changes the shelf."""
        await connection.execute(select(func.pg_advisory_xact_lock(_SHELF_LOCK)))
        now: datetime = (await connection.execute(select(func.fermata_now(type_=DateTime(timezone=True))))).scalar_one()
        return now

    def _standing_at(self, time: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
        return and_(self._table.c.effective_at <= time, self._table.c.withdrawn_at.is_(None))

    def _standing_before(self, time: datetime) -> ColumnElement[bool]:
        return and_(self._table.c.effective_at < time, self._table.c.withdrawn_at.is_(None))

    async def _approve(
        self, connection: AsyncConnection, approval: Approval, before: BookShown | None, follower: Follower
    ) -> None:
        """The first book of all follows nothing."""
        if before is not None:
            await approval(connection, before.document, follower)

    async def _next(self, connection: AsyncConnection, time: datetime) -> Follower | None:
        """The book that is planned to be the first after this time."""
        books = self._table.c
        statement = select(books.document, books.digest, books.forced, books.book_id)
        statement = statement.where(books.effective_at > time, books.withdrawn_at.is_(None))
        row = (await connection.execute(statement.order_by(books.effective_at).limit(1))).one_or_none()
        return None if row is None else Follower(*row)

    async def _check_was_in_force(self, connection: AsyncConnection, book_id: int, now: datetime) -> None:
        """What was only planned was let in as the follower of another book, and for later."""
        books = self._table.c
        if await self._book(connection, and_(books.book_id == book_id, self._standing_at(now))) is None:
            raise Refused("book", f"book {book_id} was never in force: there is nothing to go back to, apply it anew")

    async def _check_not_overtaken(self, connection: AsyncConnection, seen: Seen, now: datetime) -> None:
        """Books are numbered under the shelf's lock: what came since has a higher number."""
        books = self._table.c
        known = await self._book(connection, books.book_id == seen.newest)
        if known is None:
            raise Refused("on", f"there is no book {seen.newest}")
        newer = select(func.max(books.book_id)).where(books.book_id > seen.newest, books.withdrawn_at.is_(None))
        found = await connection.scalar(newer)
        if found is not None:
            raise _overtaken_by(await self._line(connection, found), now)
        if known.withdrawn_at is not None:
            line = await self._line(connection, seen.newest)
            gone = f"book {line.book} was withdrawn by {line.withdrawn_by} ({line.withdrawn_note})"
            raise Overtaken("on", f"{gone} since this draft began: begin anew from the books as they are now")
        standing = await self._book(connection, self._standing_at(now))
        if seen.in_force is not None and standing is not None and standing.book != seen.in_force:
            raise _overtaken_by(await self._line(connection, standing.book), now)

    async def _book(self, connection: AsyncConnection, which: ColumnElement[bool]) -> BookShown | None:
        """The latest of these books."""
        books = self._table.c
        statement = select(
            *(books.book_id, books.effective_at, books.author, books.note, books.digest, books.created_at),
            *(books.withdrawn_at, books.document),
        )
        statement = statement.where(which).order_by(books.effective_at.desc()).limit(1)
        row = (await connection.execute(statement)).one_or_none()
        return None if row is None else BookShown(*row)

    def _lines(self) -> Any:
        """The history, each row as `BookLine` has it."""
        books = self._table.c
        in_force = select(func.max(books.effective_at)).where(self._standing_at(func.fermata_now())).scalar_subquery()
        counts = (books.effective_at == in_force) & books.withdrawn_at.is_(None)
        return select(
            *(books.book_id, books.effective_at, books.author, books.note, books.digest, books.created_at),
            *(books.withdrawn_at, books.withdrawn_by, books.withdrawn_note, books.reverts_to, books.forced),
            func.coalesce(counts, False),
            case(
                (books.withdrawn_at.is_not(None), "withdrawn"),
                (counts, "in force"),
                (books.effective_at > func.fermata_now(), "planned"),
                else_="past",
            ),
        )

    async def _line(self, connection: AsyncConnection, book_id: int) -> BookLine:
        return BookLine(*(await connection.execute(self._lines().where(self._table.c.book_id == book_id))).one())

    async def _written(self, connection: AsyncConnection, draft: BookDraft, at: datetime, now: datetime) -> int:
        values = {
            "document": draft.document,
            "digest": draft.digest,
            "effective_at": at,
            "author": draft.author,
            "note": draft.note,
            "created_at": now,
            "forced": draft.forced,
            "reverts_to": draft.reverts_to,
        }
        statement = self._table.insert().values(values).returning(self._table.c.book_id)
        return int((await connection.execute(statement)).scalar_one())


def price_shelf(engine: AsyncEngine) -> BookShelf:
    """The price books."""
    return BookShelf(engine, price_books, "a price never changes after the fact", "revert to the one before it")


def plan_shelf(engine: AsyncEngine) -> BookShelf:
    """The plan books."""
    return BookShelf(engine, plan_books, "what was sold then was sold", "apply the one before it again")


def _replayed(line: BookLine) -> BookApplied:
    return BookApplied(
        *(line.book, line.effective_at, line.author, line.note, line.digest),
        replayed=True,
        forced=line.forced,
        reverts_to=line.reverts_to,
    )


def _overtaken_by(line: BookLine, now: datetime) -> Overtaken:
    verb = "in force" if line.effective_at <= now else f"planned for {line.effective_at:%Y-%m-%d %H:%M} UTC"
    return Overtaken(
        "on",
        f"book {line.book} by {line.author} ({line.note}) is {verb} since this draft began, and one of the two would "
        f"undo the other unseen: take over what book {line.book} changes, then apply the draft on book {line.book}",
    )


def _check_draft(draft: BookDraft) -> None:
    _check_words(draft.author, draft.note)
    if draft.forced is not None and (not is_line(draft.forced, NOTE_LENGTH_MAX) or not draft.forced.strip()):
        raise Refused("force", f"must be 1 to {NOTE_LENGTH_MAX} printable characters on one line: why")
    if draft.effective_at is not None and (problem := problem_of_instant(draft.effective_at)) is not None:
        raise Refused("effective_at", problem)


def _check_words(author: str, note: str) -> None:
    for field, words, most in (("as", author, ACTOR_LENGTH_MAX), ("note", note, NOTE_LENGTH_MAX)):
        if not is_line(words, most) or not words.strip():
            raise Refused(field, f"must be 1 to {most} printable characters on one line")
