"""`fermata plans …`: the plans and packs that are sold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from worker.cli import books_shown, opening, values
from worker.cli.options import Actor, Json
from worker.cli.output import present, table, verbatim, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Books
    from worker.credits.plans import Plan, PlanBook
    from worker.store.book_shelf import BookApplied, BookLine, BookShown

app = cyclopts.App(name="plans", help="Plans and packs: what is sold.")


@app.command
def show(
    *,
    book: Annotated[str | None, Parameter(help="This number. Default: the one in force.")] = None,
    at: Annotated[str | None, Parameter(help="The one in force at this time, with its zone.")] = None,
    document: Annotated[bool, Parameter(negative=(), help="As it was applied, ready for a file.")] = False,
    json: Json = False,
) -> int:
    """The plans and packs that are sold."""
    if book is not None and at is not None:
        raise values.Misused("at", "give either a book or a time")
    number = None if book is None else values.whole("book", book, 1, 2**31 - 1)
    time = None if at is None else values.moment("at", at)

    async def work(books: Books) -> BookShown:
        from worker.store.book_shelf import plan_shelf

        return await plan_shelf(books.store.engine).shown(number, time)

    from worker.credits.plans import parse_plan_book

    shown = opening.with_books(work)
    if document and not json:
        write(verbatim(shown.document))
        return 0
    sold = parse_plan_book(shown.document)
    told = {
        "book": shown.book,
        "effective_at": shown.effective_at,
        "author": shown.author,
        "note": shown.note,
        "plans": sold.plans,
        "packs": sold.packs,
        "digest": sold.digest,
        "document": shown.document,
    }
    return present(told, json, _sold(sold))


@app.command
def history(*, limit: Annotated[str, Parameter(help="1 to 1000.")] = "100", json: Json = False) -> int:
    """Every plan book: who applied it, when and why."""
    most = values.whole("limit", limit, 1, 1000)

    async def work(books: Books) -> tuple[BookLine, ...]:
        from worker.store.book_shelf import plan_shelf

        return await plan_shelf(books.store.engine).history(most)

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
    """Sell these plans and packs from then on. Refused as a whole if anything in the file is wrong.

    Running cycles keep what they were granted; the next one follows the new book. A plan that the file leaves out
    is no longer sold: whoever has it keeps it as it was.
    """
    text, why, who = values.document("file", file), values.line("note", note), values.actor_of(actor)
    time = None if effective_at is None else values.moment("effective_at", effective_at)

    async def work(books: Books) -> BookApplied:
        from tasks.registry import registry
        from worker.credits.plans import parse_plan_book
        from worker.pricing import models_of
        from worker.store.book_shelf import BookDraft, plan_shelf

        book = parse_plan_book(text, models=models_of(registry(books.settings.extra_kinds)))
        return await plan_shelf(books.store.engine).apply(BookDraft(book.document, book.digest, who, why, time))

    done = opening.with_books(work)
    return present(done, json, books_shown.applied(done))


def _sold(book: PlanBook) -> Iterator[RenderableType]:
    yield table(
        ["plan", "credits a month", "jobs at a time", "priority", "price", "kinds"],
        [
            (p.name, p.monthly_credits, p.jobs_at_a_time, p.priority, p.price_shown, _kinds(p))
            for p in book.plans.values()
        ],
        right=["credits a month", "jobs at a time", "priority"],
    )
    yield ""
    yield table(
        ["pack", "credits", "price"],
        [(p.name, p.credits, p.price_shown) for p in book.packs.values()],
        right=["credits"],
    )


def _kinds(plan: Plan) -> str:
    """`generation (draft, standard), stem_split`: with the models where only some are allowed."""
    return ", ".join(f"{kind} ({', '.join(plan.models[kind])})" if kind in plan.models else kind for kind in plan.kinds)
