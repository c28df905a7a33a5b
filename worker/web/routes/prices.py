"""`/v1/prices` and `/v1/plans`: what each action costs, what is sold."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from worker.overcharges import Overcharged
from worker.store.book_shelf import BookApplied, BookChanges, BookLine, BookShown, Seen
from worker.store.price_report import PriceReport
from worker.store.reads_accounts import PAGE_MAX
from worker.store.rehearsals import Rehearsed
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import Body, IdempotencyKey, Instant, Limit, Line, whole
from worker.web.once import asked
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1", tags=["prices"], route_class=StrictRoute)

#: Bytes of a body with a document in it.
BOOK_BYTES_MAX = 1024**2
_BOOK_MAX = 2**31 - 1

Looker = Annotated[Caller, allowed(May.LOOK_AT_PRICES)]
Shopper = Annotated[Caller, allowed(May.LOOK_AT_PLANS)]
Setter = Annotated[Caller, allowed(May.SET_PRICES)]
Reviewer = Annotated[Caller, allowed(May.REVIEW_PRICES)]
Mender = Annotated[Caller, allowed(May.MEND_PRICES)]
BookPath = Annotated[int, BeforeValidator(whole), Path(ge=1, le=_BOOK_MAX, description="The book's number.")]
BookQuery = Annotated[int | None, BeforeValidator(whole), Query(ge=1, le=_BOOK_MAX)]
_CHANGES = responses(400, 409, 413, 415, 422)
_MAKES: dict[int | str, dict[str, Any]] = {
    200: {"model": BookApplied, "description": "It was done before."},
    **_CHANGES,
}


class BookBody(Body):
    """A price book as TOML, and why it is applied."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"document": "[generation]\nbase = 5\n…", "note": "spring prices"}]}
    )

    document: str = Field(
        min_length=1, max_length=BOOK_BYTES_MAX, description="The whole book, as `GET /prices` has it."
    )
    note: Line = Field(description="Why, for the history.")
    effective_at: Instant | None = Field(None, description="From this time on. Default: now.")
    force: Line | None = Field(None, description="Why a large change goes without a rehearsal.")
    on: int | None = Field(
        None,
        ge=1,
        le=_BOOK_MAX,
        description="The book that the draft began from, the newest that you know of: `overtaken` (409) if another one "
        "was put in force or planned since. Default: that is not asked.",
    )


class DraftBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"document": "[generation]\nbase = 5\n…", "days": 30}]})

    document: str = Field(min_length=1, max_length=BOOK_BYTES_MAX)
    days: int = Field(30, ge=1, le=366, description="On the jobs that ended in so many days until now.")


class NoteBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "a slip in book 7"}]})

    note: Line = Field(description="Why, for the history.")


class MendBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "book 7 had a slip", "under": 6}]})

    reason: Line = Field(description="Why, for the customers and the books.")
    under: int | None = Field(
        None, ge=1, le=_BOOK_MAX, description="What this book would have charged less. Default: the one in force."
    )


class HistoryAnswer(BaseModel):
    books: list[BookLine]


class PlansAnswer(BaseModel):
    plans: dict[str, Any]
    packs: dict[str, Any]
    digest: str


@router.get("/prices", response_model=BookShown, responses=responses(422) | {304: {"description": "As you have it."}})
async def prices(
    request: Request,
    caller: Looker,
    book: BookQuery = None,
    at: Annotated[Instant | None, Query(description="The one in force at this time.")] = None,
) -> Response:
    """The price book in force now, or another one, as it was applied. `ETag` and `If-None-Match` save the way."""
    shown = await services_of(request).prices.shown(book, at)
    etag = f'"{shown.book}-{shown.digest[:16]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return answer(shown, 200, headers)


@router.get("/prices/history", response_model=HistoryAnswer, responses=responses(422))
async def history(request: Request, caller: Looker, limit: Limit = 100) -> Response:
    """Every price book: who applied it, when and why."""
    return answer({"books": await services_of(request).prices.history(limit)})


@router.get("/prices/changes", response_model=BookChanges, responses=responses(422))
async def changes(
    request: Request,
    caller: Looker,
    after: Annotated[int, BeforeValidator(whole), Query(ge=1, le=_BOOK_MAX)],
    before: BookQuery = None,
) -> Response:
    """What one book says otherwise than another, by default the one in force."""
    return answer(await services_of(request).prices.changes(before, after))


@router.post("/prices", status_code=201, response_model=BookApplied, responses=_MAKES)
async def apply(request: Request, caller: Setter, body: BookBody, key: IdempotencyKey) -> Response:
    """Put a book in force, for jobs submitted from then on. Refused as a whole if anything in it is wrong.

    The very document that is in force already is not applied again: its number is the answer.
    """
    once = asked(request, caller, "prices", key, body)
    seen = None if body.on is None else Seen(body.on)
    done = await services_of(request).prices.apply(
        body.document, caller.actor, body.note, body.effective_at, body.force, once, seen
    )
    return answer(done, 200 if done.replayed else 201)


@router.post("/prices/rehearsals", status_code=201, response_model=Rehearsed, responses=_CHANGES)
async def rehearse(request: Request, caller: Setter, body: DraftBody) -> Response:
    """What past jobs would have cost under a draft, and whom that would hurt. Prices nothing anew."""
    return answer(
        await services_of(request).prices.rehearse(body.document, timedelta(days=body.days), caller.actor), 201
    )


@router.post("/prices/{book}/revert", status_code=201, response_model=BookApplied, responses=_MAKES)
async def revert(request: Request, caller: Setter, book: BookPath, body: NoteBody, key: IdempotencyKey) -> Response:
    """Put the document of an old book in force again, now, as a new book."""
    once = asked(request, caller, "reverted prices", key, book, body)
    done = await services_of(request).prices.revert(book, caller.actor, body.note, once)
    return answer(done, 200 if done.replayed else 201)


@router.post("/prices/{book}/withdraw", response_model=BookLine, responses=_CHANGES)
async def withdraw(request: Request, caller: Setter, book: BookPath, body: NoteBody) -> Response:
    """Take back a book that is not in force yet."""
    return answer(await services_of(request).prices.withdraw(book, caller.actor, body.note))


@router.get("/prices/report", response_model=PriceReport, responses=responses(422))
async def report(
    request: Request,
    caller: Reviewer,
    days: Annotated[
        int,
        BeforeValidator(whole),
        Query(ge=1, le=366, description="Of the jobs that ended in so many days until now."),
    ] = 30,
) -> Response:
    """What prices did: quoted against charged, what came back and why, what is held now."""
    return answer(await services_of(request).prices.report(timedelta(days=days)))


@router.get("/prices/{book}/overcharged", response_model=Overcharged, responses=responses(404, 422))
async def overcharged(
    request: Request,
    caller: Reviewer,
    book: BookPath,
    under: Annotated[
        int | None,
        BeforeValidator(whole),
        Query(ge=1, le=_BOOK_MAX, description="Compare with this book. Default: the one in force."),
    ] = None,
    limit: Annotated[int, BeforeValidator(whole), Query(ge=1, le=PAGE_MAX, description="Jobs to name.")] = 20,
) -> Response:
    """The jobs that a book priced and another one would have charged less. Looks only."""
    return answer(await services_of(request).prices.overcharged(book, under, limit))


@router.post(
    "/prices/{book}/overcharged", response_model=Overcharged, responses=responses(400, 404, 409, 413, 415, 422)
)
async def compensate_overcharged(request: Request, caller: Mender, book: BookPath, body: MendBody) -> Response:
    """Give each of those jobs what is missing of what it was charged too much: no credit twice, whoever asks again.

    Under a cheaper book than before it is the rest. Jobs that have not ended are counted only: ask again then.
    """
    give = (body.reason, caller.actor)
    return answer(await services_of(request).prices.overcharged(book, body.under, give=give))


@router.get("/plans", response_model=PlansAnswer, responses=responses())
async def plans(request: Request, caller: Shopper) -> Response:
    """The plans and packs that are sold now."""
    sold = await services_of(request).accounts.plans()
    return answer({"plans": sold.plans, "packs": sold.packs, "digest": sold.digest})
