"""`fermata prices …`: what each action costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from worker.cli import books_shown, opening, values
from worker.cli.options import Actor, Inputs, Json, Params
from worker.cli.output import facts, present, table, verbatim, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Books, Desk
    from worker.client import Quote
    from worker.store.price_books import BookApplied, BookLine, BookShown

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
    number = None if book is None else values.whole("book", book, 1, 2**31 - 1)
    time = None if at is None else values.moment("at", at)

    async def work(books: Books) -> BookShown:
        from worker.store.price_books import PriceBookShelf

        return await PriceBookShelf(books.store.engine).shown(number, time)

    shown = opening.with_books(work)
    if json:
        return present(shown, True, [])
    write(verbatim(shown.document))
    return 0


@app.command
def history(*, limit: Annotated[str, Parameter(help="1 to 1000.")] = "100", json: Json = False) -> int:
    """Every price book: who applied it, when and why."""
    most = values.whole("limit", limit, 1, 1000)

    async def work(books: Books) -> tuple[BookLine, ...]:
        from worker.store.price_books import PriceBookShelf

        return await PriceBookShelf(books.store.engine).history(most)

    shown = opening.with_books(work)
    return present({"books": shown}, json, books_shown.history(shown))


@app.command(name="apply")
def apply_(
    file: str,
    /,
    *,
    note: Annotated[str, Parameter(help="Why, for the history.")],
    effective_at: Annotated[str | None, Parameter(help="From this time on, with its zone. Default: now.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Put a price book in force, for jobs submitted from then on. Refused as a whole if anything in it is wrong."""
    text, why, who = values.document("file", file), values.line("note", note), values.actor_of(actor)
    time = None if effective_at is None else values.moment("effective_at", effective_at)

    async def work(books: Books) -> BookApplied:
        from tasks.registry import registry
        from worker.credits.prices import parse_price_book
        from worker.pricing import request_fields
        from worker.store.price_books import PriceBookShelf

        kinds = registry(books.settings.extra_kinds, books.settings.engines)
        sold = await books.store.accounts.plans()
        book = parse_price_book(text, kinds=kinds, request_fields=request_fields(kinds), plans=sold.plans)
        return await PriceBookShelf(books.store.engine).apply(book, who, why, time)

    done = opening.with_books(work)
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
    return present(document, json, _quote(quoted))


def _quote(quoted: Quote) -> Iterator[RenderableType]:
    yield table(
        ["rule", "quantity", "rate", "credits"],
        [(line.rule, line.quantity, line.rate, line.amount) for line in quoted.lines],
        right=["quantity", "rate", "credits"],
    )
    yield facts([("at most", f"{quoted.total:,} credits by book {quoted.book_id}")])
