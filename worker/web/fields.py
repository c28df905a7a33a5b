"""The types that requests share: exactly what they say, never coerced, with their limits in the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from worker.credits.lots import ACCOUNT_ID, CREDITS_MAX
from worker.store.instants import problem_of_instant
from worker.store.reads_accounts import PAGE_MAX
from worker.store.texts import NOTE_LENGTH_MAX

ACCOUNT = f"^{ACCOUNT_ID}$"


class Body(BaseModel):
    """A JSON body: unknown fields refused, nothing coerced, values never shown in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


def _instant(given: object) -> datetime:
    if not isinstance(given, str) or len(given) > 40:
        raise ValueError("must be a time with its zone, as 2026-12-01T10:00:00Z")
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise ValueError("must be a time with its zone, as 2026-12-01T10:00:00Z") from None
    if (problem := problem_of_instant(time)) is not None:
        raise ValueError(problem)
    return time


def _uuid(given: object) -> UUID:
    """As it is written everywhere: 36 characters, no braces, no urn."""
    problem = "must be an id such as 0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"
    if not isinstance(given, str) or len(given) != 36:
        raise ValueError(problem)
    try:
        found = UUID(given)
    except ValueError:
        raise ValueError(problem) from None
    if str(found) != given.lower():  # Python takes hyphens and braces anywhere
        raise ValueError(problem)
    return found


def whole(given: object) -> object:
    """Query strings are text: only plain digits are a number."""
    if isinstance(given, str):
        if not (given.isascii() and given.isdigit() and len(given) <= 19):
            raise ValueError("must be a whole number")
        return int(given)
    return given


def _whole_segment(given: object) -> object:
    """An account's id as its address has it: `worker.web.guard` leaves the slashes of one segment written out."""
    return given.replace("%2F", "/").replace("%25", "%") if isinstance(given, str) else given


def printable(given: str | None) -> str | None:
    """Text on one line, as PostgreSQL can hold it and a terminal shows it."""
    if given is not None and not given.isprintable():
        raise ValueError("must be printable characters on one line")
    return given


_AN_ID: Any = {"examples": ["0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"]}
Instant = Annotated[
    datetime, BeforeValidator(_instant), Field(json_schema_extra={"examples": ["2026-12-01T10:00:00Z"]})
]
Id = Annotated[UUID, BeforeValidator(_uuid), Field(json_schema_extra=_AN_ID)]
AccountId = Annotated[str, Field(pattern=ACCOUNT, description="The account, by the id that you gave it.")]
Credits = Annotated[int, Field(ge=1, le=CREDITS_MAX, description="Whole credits.")]
Line = Annotated[str, Field(min_length=1, max_length=NOTE_LENGTH_MAX, description="Printable, on one line.")]

JobId = Annotated[Id, Path(description="The job.")]
ArtifactId = Annotated[Id, Path(description="The artifact.")]
AccountPath = Annotated[
    str,
    BeforeValidator(_whole_segment),
    Path(pattern=ACCOUNT, description="The account; a `/` in its id is written `%2F`."),
]
AccountQuery = Annotated[str | None, Query(pattern=ACCOUNT, description="Of this account only.")]
Limit = Annotated[
    int, BeforeValidator(whole), Query(ge=1, le=PAGE_MAX, description=f"At most so many, 1 to {PAGE_MAX}.")
]
After = Annotated[Id | None, Query(description="Go on behind this one: `next` of the page before.")]
Behind = Annotated[
    int, BeforeValidator(whole), Query(ge=0, le=2**63 - 1, description="Go on behind the one of this number.")
]
IdempotencyKey = Annotated[
    str,
    AfterValidator(printable),
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Yours, printable ASCII: the same one with the same body is done once, and answered again. "
        "With another body it is a conflict. A job's is known for as long as the job is kept: 30 days after its end "
        "at the least.",
        examples=["take-3"],
    ),
]
OwnKey = Annotated[
    str | None,
    AfterValidator(printable),
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="As elsewhere, but optional."),
]
