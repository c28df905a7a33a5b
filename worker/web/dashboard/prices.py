"""Prices: the books, a draft with its changes and its rehearsal, what a job would cost, and putting a book in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tasks.kind import AudioInfo, RefusedRequest
from tasks.validation import parse
from worker.cli.asking import typed_params
from worker.cli.values import Misused
from worker.credits.document_changes import Change
from worker.credits.documents import DocumentError
from worker.credits.prices import PriceBook, Priced, PriceTooHigh, UnknownPrice, Usage, price
from worker.store.book_shelf import BookLine
from worker.store.errors import Refused
from worker.web.dashboard import frame
from worker.web.dashboard.board import Board, board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.price_numbers import numbers_of, with_numbers
from worker.web.dashboard.session import Visitor

#: Frames a second of the made-up recording that a quote is asked for.
_SAMPLE_RATE = 48_000
_BOOK_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody is writing, and what is known of it so far."""

    document: str
    problems: tuple[str, ...] = ()
    changes: tuple[Change, ...] | None = None
    rehearsed: Any = None
    note: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A quote that was asked for, and its answer."""

    kind: str = ""
    params: str = ""
    seconds: str = "60"
    plan: str = ""
    priced: Priced | None = None
    problem: str = ""


async def prices(request: Request, visitor: Visitor) -> Response:
    """The book in force (or another one), the history, and a draft that begins with it."""
    board = board_of(request)
    number = request.query_params.get("book", "")
    if number and not (number.isascii() and number.isdigit() and 0 < int(number[:12]) <= _BOOK_MAX):
        raise Refused("book", "must be the number of a book")
    shown = await board.services.prices.shown(int(number) if number else None)
    asked = await _asked(board, request, shown.document)
    return await _page(request, visitor, Draft(shown.document), asked, book=shown)


async def draft(request: Request, visitor: Visitor, form: Form) -> Response:
    """Check a draft, rehearse it or put it in force. Whatever is wrong with it, the draft is not lost."""
    board, verb = board_of(request), form.text("verb")
    written, note = form.verbatim("document"), form.text("note")
    try:
        if verb == "numbers":
            typed = {name.removeprefix("number:"): form.text(name) for name in form.names("number:")}
            written = with_numbers(written, typed)
        changes = (await board.services.prices.changes(None, written)).changes
        if verb == "apply":
            done = await board.services.prices.apply(
                written, visitor.actor, form.line("note"), _time(form), form.text("force") or None
            )
            when = "already" if done.replayed else f"from {done.effective_at:%Y-%m-%d %H:%M:%S} UTC"
            said = f"Book {done.book} is in force {when}."
            return frame.go(f"/prices?book={done.book}", said)
        rehearsed = await _rehearsed(board, written, visitor) if verb == "rehearse" else None
        said = "It can be applied." if changes else "It says the same as the book in force."
        shown = Draft(written, changes=changes, rehearsed=rehearsed, note=note, said=said)
    except DocumentError as error:
        shown = Draft(written, problems=tuple(str(problem) for problem in error.problems), note=note)
    except Refused as error:
        shown = Draft(written, problems=(str(error),), note=note)
    return await _page(request, visitor, shown, Asked())


async def withdraw(request: Request, visitor: Visitor, form: Form) -> Response:
    """Take back a book that is not in force yet."""
    book = form.whole("book", 1, _BOOK_MAX)
    await board_of(request).services.prices.withdraw(book, visitor.actor, form.line("note"))
    return frame.go("/prices", f"Book {book} is withdrawn: it will never be in force.")


async def revert(request: Request, visitor: Visitor, form: Form) -> Response:
    """Put an old book in force again, as a new one."""
    book = form.whole("book", 1, _BOOK_MAX)
    done = await board_of(request).services.prices.revert(book, visitor.actor, form.line("note"))
    return frame.go("/prices", f"Book {done.book} is in force; it repeats book {book}.")


async def _page(request: Request, visitor: Visitor, shown: Draft, asked: Asked, book: Any = None) -> Response:
    board = board_of(request)
    history = await board.services.prices.history(50)
    values = {
        "draft": shown,
        "numbers": numbers_of(shown.document),
        "asked": asked,
        "book": book,
        "history": history,
        "coming": _coming(history),
        "in_force": next((line for line in history if line.in_force), None),
        "kinds": sorted(board.services.client.kinds),
        "plans": (await board.services.accounts.plans()).plans,
        "now": await board.live.now(),
    }
    return frame.page(request, visitor, "prices.html", values, status=400 if shown.problems else 200)


def _coming(history: tuple[BookLine, ...]) -> frozenset[int]:
    """Books above the one in force that nobody has withdrawn."""
    found = set()
    for line in history:
        if line.in_force:
            break
        if line.withdrawn_at is None:
            found.add(line.book)
    return frozenset(found)


async def _asked(board: Board, request: Request, document: str) -> Asked:
    """A quote by the book that is shown: of a kind, its request and recordings of some length."""
    query = request.query_params
    name = query.get("kind", "")
    if not name:
        return Asked()
    asked = Asked(name, query.get("params", ""), query.get("seconds", "60"), query.get("plan", ""))
    try:
        book = await board.services.prices.read(document)
        priced = _quoted(board, book, asked)
    except (RefusedRequest, Refused, Misused, DocumentError, UnknownPrice, PriceTooHigh) as error:
        return Asked(asked.kind, asked.params, asked.seconds, asked.plan, problem=str(error))
    return Asked(asked.kind, asked.params, asked.seconds, asked.plan, priced)


def _quoted(board: Board, book: PriceBook, asked: Asked) -> Priced:
    kind = board.services.client.kinds.get(asked.kind)
    if kind is None:
        raise Refused("kind", f"there is no kind {asked.kind[:40]!r}")
    if not (asked.seconds.isascii() and asked.seconds.isdigit() and 0 < int(asked.seconds[:6]) <= 3600):
        raise Refused("seconds", "must be a whole number from 1 to 3,600")
    given = parse(kind, typed_params(kind, [line for line in asked.params.splitlines() if line.strip()]))
    recording = AudioInfo(int(asked.seconds) * _SAMPLE_RATE, _SAMPLE_RATE, 2)
    most = kind.usage(given, {name: recording for name, limits in kind.inputs.items() if limits.required})
    usages = [Usage(Decimal(use.seconds_in), Decimal(use.seconds_out)) for use in most]
    return price(book, kind.name, usages, given.model_dump(mode="json"), asked.plan or None)


async def _rehearsed(board: Board, document: str, visitor: Visitor) -> Any:
    return await board.services.prices.rehearse(document, timedelta(days=30), visitor.actor)


def _time(form: Form) -> datetime | None:
    typed = form.text("effective_at")
    if not typed:
        return None
    try:
        return datetime.fromisoformat(typed).replace(tzinfo=UTC)
    except ValueError:
        raise Refused("effective_at", "must be a time like 2026-12-01T00:00, in UTC") from None
