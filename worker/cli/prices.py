"""`fermata prices …`: what each action costs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import cyclopts
from cyclopts import Parameter

from worker.cli import books_shown, opening, prices_shown, values
from worker.cli.options import Actor, Author, Inputs, Json, Note, Params
from worker.cli.output import present, verbatim, write

if TYPE_CHECKING:
    from worker.cli.opening import Books, Desk
    from worker.client import Quote
    from worker.price_desk import PriceDesk
    from worker.store.book_shelf import BookApplied

T = TypeVar("T")

_BOOK_MAX = 2**31 - 1

app = cyclopts.App(name="prices", help="Price books: what each action costs.")


@app.command
def show(
    *,
    book: Annotated[str | None, Parameter(help="This number. Default: the one in force.")] = None,
    at: Annotated[str | None, Parameter(help="The one in force at this time, with its zone.")] = None,
    json: Json = False,
) -> int:
    """A price book as it was applied, ready to be redirected into a file."""
    if book is not None and at is not None:
        raise values.Misused("at", "give either a book or a time")
    number = None if book is None else _number(book)
    time = None if at is None else values.moment("at", at)
    shown = _with_prices(lambda prices: prices.shown(number, time))
    if json:
        return present(shown, True, [])
    write(verbatim(shown.document))
    return 0


@app.command
def history(*, limit: Annotated[str, Parameter(help="1 to 1000.")] = "100", json: Json = False) -> int:
    """Every price book: who applied it, when and why."""
    most = values.whole("limit", limit, 1, 1000)
    shown = _with_prices(lambda prices: prices.history(most))
    return present({"books": shown}, json, books_shown.history(shown))


@app.command
def diff(first: str, second: str | None = None, /, *, json: Json = False) -> int:
    """What changes: `diff FILE` or `diff 7` against the book in force, `diff 6 7` or `diff 6 FILE` against another."""
    before = None if second is None else _number(first)
    named = first if second is None else second
    after = _number(named) if named.isdigit() else values.document("file", named)
    found = _with_prices(lambda prices: prices.changes(before, after))
    return present(found, json, books_shown.changes(found))


@app.command(name="apply")
def apply_(
    file: str,
    /,
    *,
    note: Note,
    effective_at: Annotated[str | None, Parameter(help="From this time on, with its zone. Default: now.")] = None,
    force: Annotated[str | None, Parameter(help="Why a large change goes without a rehearsal; kept.")] = None,
    on: Annotated[str | None, Parameter(help="The book the file began from: refused if another came since.")] = None,
    json: Json = False,
    author: Author = None,
) -> int:
    """Put a price book in force, for jobs submitted from then on. Refused as a whole if anything in it is wrong.

    One that changes what some request costs by much must have been rehearsed as it is.
    """
    text, why, who = values.document("file", file), values.line("note", note), values.author_of(author)
    time = None if effective_at is None else values.moment("effective_at", effective_at)
    reason = None if force is None else values.line("force", force)
    known = None if on is None else values.whole("on", on, 1, _BOOK_MAX)

    async def work(prices: PriceDesk) -> BookApplied:
        from worker.store.book_shelf import Seen

        seen = None if known is None else Seen(known)
        return await prices.apply(text, who, why, time, reason, seen=seen)

    done = _with_prices(work)
    return present(done, json, books_shown.applied(done))


@app.command
def rehearse(
    file: str,
    /,
    *,
    since: Annotated[str, Parameter(help="How far back: 12h, 30d, 8w.")] = "30d",
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Try a draft out on past jobs: what they would have cost, what a month buys, who would have run out."""
    text, length, who = values.document("file", file), values.span("since", since), values.actor_of(actor)
    found = _with_prices(lambda prices: prices.rehearse(text, length, who))
    return present(found, json, prices_shown.rehearsal(found))


@app.command
def withdraw(
    book: str,
    /,
    *,
    note: Note,
    json: Json = False,
    author: Author = None,
) -> int:
    """Take back a price book that is not in force yet."""
    number, why, who = _number(book), values.line("note", note), values.author_of(author)
    line = _with_prices(lambda prices: prices.withdraw(number, who, why))
    return present(line, json, books_shown.history([line]))


@app.command
def revert(
    book: str,
    /,
    *,
    note: Note,
    json: Json = False,
    author: Author = None,
) -> int:
    """Put the document of an old price book in force again, as a new book."""
    number, why, who = _number(book), values.line("note", note), values.author_of(author)
    done = _with_prices(lambda prices: prices.revert(number, who, why))
    return present(done, json, books_shown.applied(done))


@app.command
def quote(
    kind: str,
    /,
    *,
    params: Params = (),
    inputs: Inputs = (),
    account: Annotated[str | None, Parameter(help="With this account's plan and artifacts.")] = None,
    json: Json = False,
) -> int:
    """What a job would cost at most, and why. Stores nothing, files included."""
    whose = "" if account is None else values.account_id(account)

    async def work(desk: Desk) -> Quote:
        from worker.cli.asking import kind_named, quote_files, split_inputs, typed_params
        from worker.client import JobRequest

        given = split_inputs(inputs)
        if given.artifacts and not whose:
            raise values.Misused("account", "must be given with artifacts: they belong to one")
        asked = JobRequest(
            account_id=whose,
            kind=kind,
            params=typed_params(kind_named(desk, kind), params),
            inputs={name: str(artifact) for name, artifact in given.artifacts.items()},
        )
        return await quote_files(desk, asked, given.files)

    quoted = opening.with_desk(work)
    document = {"kind": quoted.kind, "total": quoted.total, "book": quoted.book_id, "lines": quoted.lines}
    return present(document, json, prices_shown.quote(quoted))


@app.command
def overcharged(
    book: str,
    /,
    *,
    under: Annotated[str | None, Parameter(help="Compare with this book. Default: the one in force.")] = None,
    compensate: Annotated[bool, Parameter(negative=(), help="Grant each job's difference, once.")] = False,
    reason: Annotated[str | None, Parameter(help="Why, for the customers and the books. With --compensate.")] = None,
    limit: Annotated[str, Parameter(help="Jobs to name, 1 to 100000.")] = "20",
    json: Json = False,
    author: Author = None,
) -> int:
    """Jobs under a book that another one would have charged less. Looks only, unless told to compensate."""
    if compensate != (reason is not None):
        raise values.Misused("reason", "goes with --compensate, and --compensate with a reason")
    number, other = _number(book), None if under is None else _number(under)
    most = values.whole("limit", limit, 1, 100_000)
    give = (values.line("reason", reason), values.author_of(author)) if reason is not None else None
    found = _with_prices(lambda prices: prices.overcharged(number, other, most, give=give))
    return present(found, json, prices_shown.overcharged(found))


@app.command
def report(*, since: Annotated[str, Parameter(help="How far back: 12h, 30d, 8w.")] = "30d", json: Json = False) -> int:
    """What prices did: quoted against charged, what came back and why, what is held now."""
    length = values.span("since", since)
    found = _with_prices(lambda prices: prices.report(length))
    return present(found, json, prices_shown.report(found))


def _number(text: str) -> int:
    return values.whole("book", text, 1, _BOOK_MAX)


def _with_prices(work: Callable[[PriceDesk], Awaitable[T]]) -> T:
    """Do one thing at the desk of prices."""

    async def opened(books: Books) -> T:
        from worker.boot import price_desk
        from worker.collector import calm

        calm()  # pages of past jobs are thousands of objects, none of them in a cycle: a third of a rehearsal's time
        return await work(price_desk(books.settings, books.store.engine, books.store.books))

    return opening.with_books(opened)
