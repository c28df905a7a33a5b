"""Prices: the books, a draft with its changes and its rehearsal, what a job would cost, and putting a book in force."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tasks.kind import AudioInfo, RefusedRequest
from tasks.validation import parse
from worker.cli.asking import typed_params
from worker.cli.values import Misused
from worker.credits.documents import DocumentError
from worker.credits.prices import PriceBook, Priced, PriceTooHigh, UnknownPrice, Usage, price
from worker.price_desk import PriceDesk
from worker.store.book_shelf import BookChanges, BookLine, Seen
from worker.store.errors import Overtaken, Refused
from worker.store.instants import problem_of_instant
from worker.web.dashboard import frame
from worker.web.dashboard.board import Board, board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.price_numbers import fields_with, numbers_of, with_numbers
from worker.web.dashboard.session import Visitor

#: Frames a second of the made-up recording that a quote is asked for.
_SAMPLE_RATE = 48_000
_BOOK_MAX = 2**31 - 1
#: What a browser's field for a time can hold; it would empty itself over anything else.
_FIELD_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody is writing, each field as it was sent, and what is known of it so far.

    `typed`: numbers that were typed into the form and are not in the document, `were` what stood there before.
    """

    document: str
    problems: tuple[str, ...] = ()
    found: BookChanges | None = None
    rehearsed: Any = None
    said: str = ""
    tried: bool = False
    overtaken: bool = False
    note: str = ""
    effective_at: str = ""
    force: str = ""
    on: str = ""
    in_force: str = ""
    typed: Mapping[str, str] = field(default_factory=dict)
    were: Mapping[str, str] = field(default_factory=dict)

    @property
    def clock(self) -> str:
        """The sort of field that keeps the time as it was typed."""
        return "datetime-local" if not self.effective_at or _FIELD_TIME.fullmatch(self.effective_at) else "text"


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
    # Read before the book: one that comes between them is then one that the draft doesn't know of.
    history = await board.services.prices.history(50)
    newest = max((line.book for line in history if line.withdrawn_at is None), default=None)
    in_force = next((line.book for line in history if line.in_force), None)
    shown = await board.services.prices.shown(int(number) if number else None)
    asked = await _asked(board, request, shown.document)
    begun = Draft(shown.document, on=str(newest or ""), in_force=str(in_force or ""))
    return await _page(request, visitor, begun, asked, book=shown)


async def draft(request: Request, visitor: Visitor, form: Form) -> Response:
    """Check a draft, rehearse it or put it in force. Whatever is wrong with it, nothing that was typed is lost."""
    desk, verb, shown = board_of(request).services.prices, form.text("verb"), _sent(form)
    try:
        written = with_numbers(shown.document, shown.typed, shown.were) if shown.typed else shown.document
        shown = replace(shown, document=written, typed={}, were={})
        at, seen, force = _time(form), _seen(form), shown.force or None
        shown = replace(shown, found=await desk.changes(None, written))
        if verb == "apply":
            done = await desk.apply(written, visitor.actor, form.line("note"), at, force, seen=seen)
            when = "already" if done.replayed else f"from {done.effective_at:%Y-%m-%d %H:%M:%S} UTC"
            return frame.go(f"/prices?book={done.book}", f"Book {done.book} is in force {when}.")
        if verb == "rehearse":
            shown = replace(shown, rehearsed=await _rehearsed(desk, written, visitor))
        # Whoever only looks may not know yet what to note.
        await desk.apply(written, visitor.actor, shown.note or "a check", at, force, seen=seen, trial=True)
        shown = replace(shown, said=_verdict(shown))
    except DocumentError as error:
        shown = replace(shown, problems=tuple(str(problem) for problem in error.problems))
    except Refused as error:
        shown = replace(shown, problems=(str(error),), overtaken=isinstance(error, Overtaken))
    return await _page(request, visitor, replace(shown, tried=verb != "apply"), Asked())


def _sent(form: Form) -> Draft:
    """The form as it was sent, to be shown again."""
    were, typed = _were(form), {name.removeprefix("number:"): form.text(name) for name in form.names("number:")}
    try:
        at = _time(form)
    except Refused:
        at = None  # told when the draft is looked at
    return Draft(
        form.verbatim("document"),
        note=form.text("note"),
        effective_at=at.replace(tzinfo=None).isoformat() if at else form.text("effective_at"),
        force=form.text("force"),
        on=form.text("on"),
        in_force=form.text("in_force"),
        typed={place: text for place, text in typed.items() if were.get(place) != text},
        were=were,
    )


def _were(form: Form) -> Mapping[str, str]:
    """The numbers as the page had them: a field that still says so was not typed into."""
    try:
        return msgspec.json.decode(form.text("numbers_were") or "{}", type=dict[str, str])
    except msgspec.MsgspecError:
        return {}


def _seen(form: Form) -> Seen | None:
    if not form.text("on"):
        return None
    return Seen(form.whole("on", 1, _BOOK_MAX), form.whole("in_force", 1, _BOOK_MAX) if form.text("in_force") else None)


def _verdict(shown: Draft) -> str:
    if shown.found is None or not shown.found.changes:
        return "It says the same as the book in force."
    return "It can be applied." if shown.note else "It can be applied, with a note that says why."


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
    fields = numbers_of(shown.document)
    typed_over = {place: text for place, text in shown.were.items() if place in shown.typed}
    were = {**{field.place: field.value for field in fields}, **typed_over}
    values = {
        "draft": shown,
        "numbers": fields_with(fields, shown.typed),
        "were": msgspec.json.encode(were).decode(),
        "asked": asked,
        "book": book,
        "history": history,
        "coming": _coming(history),
        "in_force": next((line for line in history if line.in_force), None),
        "kinds": sorted(board.services.client.kinds),
        "plans": (await board.services.accounts.plans()).plans,
        "now": await board.live.now(),
    }
    status = 409 if shown.overtaken else 400 if shown.problems else 200
    return frame.page(request, visitor, "prices.html", values, status=status)


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


async def _rehearsed(desk: PriceDesk, document: str, visitor: Visitor) -> Any:
    return await desk.rehearse(document, timedelta(days=30), visitor.actor)


def _time(form: Form) -> datetime | None:
    """From when on, in UTC: a browser's field has no zone, and one that is told is heeded."""
    typed = form.text("effective_at")
    if not typed:
        return None
    try:
        time = datetime.fromisoformat(typed)
    except ValueError:
        raise Refused("effective_at", "must be a time like 2026-12-01T00:00, in UTC") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if (problem := problem_of_instant(time)) is not None:
        raise Refused("effective_at", problem)
    return time.astimezone(UTC)
