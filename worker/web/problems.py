"""What goes wrong over HTTP: one table from the errors of our layers to a status and a stable code.

Every answer that is no success is `application/problem+json` (RFC 9457) with a `code` that never changes its meaning
and the id of the request. No traceback, no statement, no secret and no more than a short piece of what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tasks.kind import RefusedRequest
from worker.artifacts.store import ArtifactError, DamagedArtifact
from worker.credits.documents import DocumentError
from worker.store.errors import (
    Conflict,
    InsufficientCredits,
    LedgerUnavailable,
    NoPrice,
    OutcomeUnknown,
    Overtaken,
    Refused,
    RefusedByDatabase,
    UnknownAccount,
    UnknownArtifact,
    UnknownJob,
    UnknownKey,
    UnknownVoice,
    UnknownWebhook,
)

log = structlog.get_logger(__name__)

#: Characters of a message that may be shown.
_DETAIL_MAX = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """How one sort of error is answered."""

    status: int
    code: str
    #: Why, for the reference in the OpenAPI document.
    meaning: str


#: The first that fits. Subclasses stand before what they derive from.
TABLE: tuple[tuple[type[Exception], Answer], ...] = (
    (RefusedRequest, Answer(422, "validation", "a field is not as it must be; `field` names it")),
    (DocumentError, Answer(422, "validation", "the document is refused as a whole; `problems` has every reason")),
    (InsufficientCredits, Answer(402, "insufficient_credits", "the account can't pay: nothing was stored")),
    (NoPrice, Answer(409, "no_price", "nobody sells this kind now: the book in force has no price for it")),
    (Overtaken, Answer(409, "overtaken", "another book came since the draft began: begin anew from it")),
    (Refused, Answer(422, "validation", "it can't be done as asked; `field` says what stands against it")),
    (Conflict, Answer(409, "idempotency_conflict", "the key was used before for something else: take a new one")),
    (UnknownAccount, Answer(404, "unknown_account", "there is no such account, or the key may not know of it")),
    (UnknownJob, Answer(404, "unknown_job", "there is no such job, or the key may not know of it")),
    (UnknownArtifact, Answer(404, "unknown_artifact", "there is no such artifact, or the key may not know of it")),
    (UnknownWebhook, Answer(404, "unknown_webhook", "there is no such endpoint")),
    (UnknownVoice, Answer(404, "unknown_voice", "there is no such voice")),
    (UnknownKey, Answer(404, "unknown_key", "there is no such key")),
    (OutcomeUnknown, Answer(503, "outcome_unknown", "it may or may not have been done: ask again with the same key")),
    (LedgerUnavailable, Answer(503, "unavailable", "the books can't be reached: nothing was done, try again")),
    (RefusedByDatabase, Answer(500, "internal", "a bug of ours, stopped by the database: nothing was done")),
    (DamagedArtifact, Answer(410, "artifact_gone", "the file is damaged or gone")),
    (ArtifactError, Answer(503, "unavailable", "the artifact store can't be used: nothing was done, try again")),
)

#: What has no error of its own in the layers below.
BY_STATUS: Mapping[int, Answer] = {
    400: Answer(400, "bad_request", "the request can't be read"),
    401: Answer(401, "unauthorized", "no key, or one that opens nothing: missing, unknown, expired or revoked"),
    403: Answer(403, "forbidden", "the key's role may not do this"),
    404: Answer(404, "not_found", "there is nothing at this address"),
    405: Answer(405, "method_not_allowed", "the address is right, the method is not"),
    408: Answer(408, "timeout", "the body came too slowly"),
    409: Answer(409, "conflict", "it doesn't fit the state of things"),
    413: Answer(413, "too_large", "the body is larger than this address takes"),
    415: Answer(415, "unsupported_media_type", "the body's type or encoding is not taken here"),
    416: Answer(416, "range_not_satisfiable", "the file has no such range"),
    422: Answer(422, "validation", "a field is not as it must be"),
    429: Answer(429, "rate_limited", "too many requests: wait for `Retry-After` seconds"),
    431: Answer(431, "headers_too_large", "too many or too large headers"),
    500: Answer(500, "internal", "a bug of ours; the request id finds it in the log"),
    503: Answer(503, "unavailable", "a part that is needed can't be reached: try again"),
}


class Problem(HTTPException):
    """An error that the HTTP layer finds by itself."""

    def __init__(
        self, status: int, detail: str, code: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)
        self.code = code or BY_STATUS[status].code
        self.more = more


class FieldProblem(BaseModel):
    """One of several things that are wrong."""

    field: str
    problem: str


class ProblemDocument(BaseModel):
    """Why a request was turned down (RFC 9457). Keys beside these belong to a code; more may come."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Unprocessable Entity",
                "status": 422,
                "code": "validation",
                "detail": "seconds: must be at most 300 (given 900)",
                "field": "seconds",
                "request_id": "0198c2f47a107b3e9c550d6f2a1b4e88",
            }
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable: programs decide by it.")
    detail: str = Field(description="For people.")
    request_id: str
    field: str | None = Field(None, description="Which field is wrong.")
    problems: list[FieldProblem] | None = Field(None, description="All that is wrong, where it is more than one thing.")
    needed: int | None = Field(None, description="Credits that the job needs; with `insufficient_credits`.")
    available: int | None = Field(None, description="Credits that were there for it.")
    shortfall: int | None = Field(None, description="Credits that are missing.")
    frozen: int | None = Field(
        None, description="Bought credits that can't be spent until the account has an active subscription."
    )
    smallest_pack: dict[str, Any] | None = Field(None, description="The smallest pack that would do, if one does.")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's OpenAPI: these ways of failing, beside those that every route has."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 403, 429, 431, 500, 503, *statuses}):
        answers = [answer for _, answer in TABLE if answer.status == status]
        known = dict.fromkeys((answer.code, answer.meaning) for answer in (*answers, BY_STATUS.get(status)) if answer)
        found[status] = {
            "description": "; ".join(f"`{code}`: {meaning}" for code, meaning in known),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """A problem, ready to be written down."""

    status: int
    code: str
    detail: str
    more: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def said(error: Exception) -> Said:
    """How an error is told to whoever asked."""
    match error:
        case Problem():
            return Said(error.status_code, error.code, str(error.detail), error.more, error.headers or {})
        case HTTPException():
            answer = BY_STATUS.get(error.status_code)
            detail = answer.meaning if answer else str(error.detail)
            return Said(error.status_code, answer.code if answer else "error", detail, {}, error.headers or {})
        case RequestValidationError():
            return _invalid(error.errors())
    answer = next((answer for kind, answer in TABLE if isinstance(error, kind)), BY_STATUS[500])
    if answer.status >= 500 and answer.code != "unavailable":
        return Said(answer.status, answer.code, answer.meaning, {}, _retry(answer))
    if isinstance(error, LedgerUnavailable | ArtifactError):
        return Said(answer.status, answer.code, answer.meaning, {}, _retry(answer))
    return Said(answer.status, answer.code, _short(_detail(error)), _more(error), {})


def document(told: Said, request_id: str) -> dict[str, Any]:
    """The problem as it goes out."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(told.status).phrase,
        "status": told.status,
        "code": told.code,
        "detail": told.detail,
        "request_id": request_id,
        **told.more,
    }


def response(told: Said, request_id: str) -> Response:
    """The problem as an answer."""
    return Response(
        msgspec.json.encode(document(told, request_id)),
        told.status,
        dict(told.headers),
        "application/problem+json",
    )


def add_handlers(app: FastAPI) -> None:
    """Answer everything that a route raises by the table."""

    async def handler(request: Request, error: Exception) -> Response:
        told = said(error)
        if told.status >= 500:
            _log(error, told)
        return response(told, request.scope["state"].get("request_id", ""))

    for kind in (*(kind for kind, _ in TABLE), HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handler)


def _log(error: Exception, told: Said) -> None:
    if told.code == "internal":
        log.error("request failed", code=told.code, error=str(error), exc_info=error)
    else:
        log.warning("request failed", code=told.code, error=str(error))


def _retry(answer: Answer) -> dict[str, str]:
    return {"Retry-After": "1"} if answer.status == 503 else {}


def _detail(error: Exception) -> str:
    # The store's hint is for the command line.
    return f"account: no account {error.account_id!r}" if isinstance(error, UnknownAccount) else str(error)


def _more(error: Exception) -> dict[str, Any]:
    match error:
        case DocumentError():
            return {
                "problems": [
                    {"field": f"{one.table}.{one.key}".strip("."), "problem": one.reason} for one in error.problems
                ]
            }
        case InsufficientCredits():
            return {
                "needed": error.needed,
                "available": error.available,
                "shortfall": error.needed - error.available,
                "frozen": error.frozen,
                "smallest_pack": error.smallest_pack,
            }
        case RefusedRequest() | Refused() | Conflict():
            return {"field": error.field}
    return {}


def _invalid(errors: Sequence[Any]) -> Said:
    """FastAPI's findings. What is wrong with the path is an address where nothing is."""
    places = {error["loc"][0] for error in errors}
    if "path" in places:
        return Said(404, "not_found", BY_STATUS[404].meaning)
    problems = [{"field": _place(error["loc"]), "problem": _sentence(error)} for error in errors[:20]]
    first = problems[0]
    if any(str(error["loc"][-1]).lower() == "idempotency-key" for error in errors):
        detail = "Idempotency-Key: must be given, 1 to 255 printable ASCII characters: asked twice it is done once"
        return Said(400, "idempotency_key", detail, {"field": "Idempotency-Key"})
    if errors[0]["loc"] == ("body",) and errors[0]["type"] == "missing":
        return Said(400, "bad_request", "a JSON body is required")
    detail = _short(f"{first['field']}: {first['problem']}")
    return Said(422, "validation", detail, {"field": first["field"], "problems": problems})


def _place(loc: Sequence[Any]) -> str:
    parts = loc[1:] if len(loc) > 1 else loc
    return ".".join(_short(str(part), 64) for part in parts)


def _sentence(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return _short(message[:1].lower() + message[1:])


def _short(text: str, most: int = _DETAIL_MAX) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text[:most])
