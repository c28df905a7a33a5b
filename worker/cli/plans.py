"""`fermata plans …`: the plans and packs that are sold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import cyclopts
from cyclopts import Parameter

from worker.cli import books_shown, opening, values
from worker.cli.options import Actor, Json, Note
from worker.cli.output import present, table, verbatim, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.opening import Books
    from worker.credits.plans import Plan, PlanBook
    from worker.plan_desk import PlanDesk, PlansApplied

T = TypeVar("T")

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
    number = None if book is None else _number(book)
    time = None if at is None else values.moment("at", at)

    from worker.credits.plans import parse_plan_book

    shown = _with_plans(lambda plans: plans.shown(number, time))
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
    shown = _with_plans(lambda plans: plans.history(most))
    return present({"books": shown}, json, books_shown.history(shown, books_shown.FORCED_PLANS))


@app.command
def diff(first: str, second: str | None = None, /, *, json: Json = False) -> int:
    """What changes: `diff FILE` or `diff 7` against the book in force, `diff 6 7` or `diff 6 FILE` against another."""
    before = None if second is None else _number(first)
    named = first if second is None else second
    after = _number(named) if named.isdigit() else values.document("file", named)
    found = _with_plans(lambda plans: plans.changes(before, after))
    return present(found, json, books_shown.changes(found))


@app.command(name="apply")
def apply_(
    file: str,
    /,
    *,
    note: Note,
    effective_at: Annotated[str | None, Parameter(help="From this time on, with its zone. Default: now.")] = None,
    force: Annotated[str | None, Parameter(help="Why a large change is meant; kept.")] = None,
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Sell these plans and packs from then on, and show what changes. Refused as a whole if anything in it is wrong.

    Running cycles keep what they were granted; the next one follows the new book. A plan that the file leaves out
    is no longer sold: whoever has it keeps it as it was.
    """
    text, why, who = values.document("file", file), values.line("note", note), values.actor_of(actor)
    time = None if effective_at is None else values.moment("effective_at", effective_at)

    reason = None if force is None else values.line("force", force)
    done = _with_plans(lambda plans: plans.apply(text, who, why, time, reason))
    return present(_told(done), json, _applied(done))


@app.command
def withdraw(book: str, /, *, note: Note, json: Json = False, actor: Actor = None) -> int:
    """Take back a plan book that is not in force yet."""
    number, why, who = _number(book), values.line("note", note), values.actor_of(actor)
    line = _with_plans(lambda plans: plans.withdraw(number, who, why))
    return present(line, json, books_shown.history([line], books_shown.FORCED_PLANS))


def _number(text: str) -> int:
    return values.whole("book", text, 1, 2**31 - 1)


def _with_plans(work: Callable[[PlanDesk], Awaitable[T]]) -> T:
    """Do one thing at the desk of plans."""

    async def opened(books: Books) -> T:
        from worker.boot import plan_desk

        return await work(plan_desk(books.settings, books.store.engine))

    return opening.with_books(opened)


def _told(done: PlansApplied) -> dict[str, object]:
    """The book as `prices apply` tells of one, and its changes."""
    from dataclasses import asdict

    return {**asdict(done.applied), "changes": done.changes}


def _applied(done: PlansApplied) -> Iterator[RenderableType]:
    yield from books_shown.applied(done.applied, books_shown.FORCED_PLANS)
    if done.changes:
        yield ""
        yield from books_shown.values_changed(done.changes)


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
