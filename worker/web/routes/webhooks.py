"""`/v1/webhooks`: who is told of what happens here, and how that goes."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from worker.store.webhooks import DeliveryShown, WebhookShown
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountId, Body, Id, IdempotencyKey, Limit
from worker.web.once import asked
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute
from worker.webhooks.desk import WebhookMade
from worker.webhooks.events import EVENTS
from worker.webhooks.targets import URL_LENGTH_MAX

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=StrictRoute)

Teller = Annotated[Caller, allowed(May.TELL)]
WebhookId = Annotated[Id, Path(description="The endpoint's id.")]
EventName = Annotated[str, Field(pattern=r"^[a-z][a-z_.]{0,63}$", json_schema_extra={"enum": list(EVENTS)})]


_EVENTS_SAID = (
    "Only these. Default: all. What each tells in `data`: "
    + "; ".join(f"`{name}`: {said}" for name, said in EVENTS.items())
    + "."
)


class WebhookBody(Body):
    """An endpoint. It is told of what happens from now on, signed as Standard Webhooks says.

    Each message is `{"id", "type", "timestamp", "account", "data"}`: `type` is the event's name; `id`, which the header
    `webhook-id` repeats, stays the same however often it is sent. Keys are only ever added.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://studio.example/fermata", "events": ["ended"]}]}
    )

    url: str = Field(min_length=1, max_length=URL_LENGTH_MAX, description="https, on a public address.")
    account: AccountId | None = Field(None, description="Only of this account. Default: of all.")
    events: list[EventName] = Field(default_factory=list, max_length=50, description=_EVENTS_SAID)


class RedeliverBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"event": 4711}]})

    event: int | None = Field(
        None, ge=1, le=2**63 - 1, description="This event, whatever became of it. Default: all that are dead."
    )


class WebhooksAnswer(BaseModel):
    webhooks: list[WebhookShown]


class WebhookAnswer(BaseModel):
    webhook: WebhookShown
    deliveries: list[DeliveryShown]


class DeletedAnswer(BaseModel):
    webhook: UUID
    deleted: bool


class TestAnswer(BaseModel):
    """Whether it took the test event, and what it answered."""

    webhook: UUID
    taken: bool
    status: int | None
    error: str | None


class RedeliverAnswer(BaseModel):
    webhook: UUID
    events: int


@router.post("", status_code=201, response_model=WebhookMade, responses=responses(400, 404, 409, 413, 415, 422))
async def create(request: Request, caller: Teller, body: WebhookBody, key: IdempotencyKey) -> Response:
    """Tell an endpoint. Its secret is shown this once, to the same request again for ten minutes: keep it."""
    once = asked(request, caller, "webhooks", key, body)
    made = await services_of(request).webhooks.create(body.url, body.account, body.events, caller.actor, once)
    return answer(made, 200 if made.replayed else 201, {"Location": f"/v1/webhooks/{made.webhook}"})


@router.get("", response_model=WebhooksAnswer, responses=responses())
async def webhooks(request: Request, caller: Teller) -> Response:
    """Every endpoint, the oldest first, and how much each is still to be told."""
    return answer({"webhooks": await services_of(request).webhooks.webhooks.all()})


@router.get("/{webhook}", response_model=WebhookAnswer, responses=responses(404, 422))
async def webhook(request: Request, caller: Teller, webhook: WebhookId, limit: Limit = 50) -> Response:
    """One endpoint with its latest deliveries."""
    shown, deliveries = await services_of(request).webhooks.webhooks.show(webhook, limit)
    return answer({"webhook": shown, "deliveries": deliveries})


@router.delete("/{webhook}", response_model=DeletedAnswer, responses=responses(404))
async def delete(request: Request, caller: Teller, webhook: WebhookId) -> Response:
    """Tell it nothing any more, and forget what it was still to be told."""
    await services_of(request).webhooks.webhooks.delete(webhook, caller.actor)
    return answer({"webhook": webhook, "deleted": True})


@router.post("/{webhook}/test", response_model=TestAnswer, responses=responses(404))
async def trial(request: Request, caller: Teller, webhook: WebhookId) -> Response:
    """Send it a signed `test` event now."""
    got = await services_of(request).webhooks.try_out(webhook)
    return answer({"webhook": webhook, "taken": got.taken, "status": got.status, "error": got.error})


@router.post("/{webhook}/redeliver", response_model=RedeliverAnswer, responses=responses(400, 404, 413, 415, 422))
async def redeliver(
    request: Request, caller: Teller, webhook: WebhookId, body: RedeliverBody | None = None
) -> Response:
    """Tell it again what it could not take; one that had closed itself by a 410 is opened."""
    count = await services_of(request).webhooks.webhooks.redeliver(webhook, body.event if body else None)
    return answer({"webhook": webhook, "events": count})
