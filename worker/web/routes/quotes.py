"""`/v1/quotes`: what a job would cost at most."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from worker.client import JobRequest
from worker.credits.prices import Line
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountId, Body
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1/quotes", tags=["prices"], route_class=StrictRoute)


class QuoteBody(Body):
    """A job that is not asked for yet. Without an account no plan's prices apply and no inputs can be named."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "generation", "params": {"prompt": "x", "seconds": 120}}]}
    )

    kind: str = Field(min_length=1, max_length=64)
    account: AccountId | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)


class QuoteAnswer(BaseModel):
    """The most that the job could cost by the book in force now, and the lines that sum to it."""

    kind: str
    total: int
    book: int
    lines: list[Line]


@router.post("", response_model=QuoteAnswer, responses=responses(400, 404, 409, 413, 415, 422))
async def quote(request: Request, caller: Annotated[Caller, allowed(May.QUOTE)], body: QuoteBody) -> Response:
    """What a job would cost at most, and why. Stores nothing; a submit pins the price that is in force then."""
    account = body.account or caller.key.account or ""
    if account:
        caller.check(account)
    asked = JobRequest(account_id=account, kind=body.kind, params=body.params, inputs=body.inputs)
    quoted = await services_of(request).client.quote(asked)
    return answer({"kind": quoted.kind, "total": quoted.total, "book": quoted.book_id, "lines": quoted.lines})
