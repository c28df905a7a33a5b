"""`fermata webhooks …`: who is told of what happens here, and how that goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from worker.cli import opening, values
from worker.cli.failures import NO
from worker.cli.options import Actor, Json
from worker.cli.output import facts, present, table

if TYPE_CHECKING:
    from uuid import UUID

    from rich.console import RenderableType

    from worker.store.webhooks import DeliveryShown, Webhooks, WebhookShown
    from worker.webhooks.desk import WebhookDesk

app = cyclopts.App(name="webhooks", help="Endpoints that are told of events, signed as Standard Webhooks says.")


@app.command
def create(
    url: str,
    /,
    *,
    account: Annotated[str | None, Parameter(help="Only of this account. Default: of all.")] = None,
    event: Annotated[
        tuple[str, ...], Parameter(negative="", help="Only these, such as `ended`; repeat it. Default: all.")
    ] = (),
    json: Json = False,
    actor: Actor = None,
) -> int:
    """Tell an endpoint of what happens from now on. Shows its secret: once, so keep it."""
    whose, who = None if account is None else values.account_id(account), values.actor_of(actor)
    made = opening.with_books(lambda books: _desk(books).create(url, whose, event, who))
    return present(made, json, _made(made.webhook, made.secret))


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """All endpoints, and how much each is still to be told."""

    async def work(books: opening.Books) -> tuple[WebhookShown, ...]:
        return await _webhooks(books).all()

    found = opening.with_books(work)
    return present({"webhooks": found}, json, _list(found))


@app.command
def show(
    webhook: str,
    /,
    *,
    limit: Annotated[str, Parameter(help="Deliveries to show: 1 to 1000.")] = "20",
    json: Json = False,
) -> int:
    """One endpoint with its latest deliveries."""
    webhook_id, most = values.identifier("webhook", webhook), values.whole("limit", limit, 1, 1000)

    async def work(books: opening.Books) -> tuple[WebhookShown, tuple[DeliveryShown, ...]]:
        return await _webhooks(books).show(webhook_id, most)

    found, deliveries = opening.with_books(work)
    return present({"webhook": found, "deliveries": deliveries}, json, _one(found, deliveries))


@app.command
def delete(webhook: str, /, *, json: Json = False, actor: Actor = None) -> int:
    """Tell an endpoint nothing any more, and forget what it was still to be told."""
    webhook_id, who = values.identifier("webhook", webhook), values.actor_of(actor)
    opening.with_books(lambda books: _webhooks(books).delete(webhook_id, who))
    return present({"webhook": webhook_id, "deleted": True}, json, [f"{webhook_id} is deleted"])


@app.command(name="test")
def trial(webhook: str, /, *, json: Json = False) -> int:
    """Send an endpoint a signed `test` event now: 0 if it takes it, 1 if not, with what it answered."""
    webhook_id = values.identifier("webhook", webhook)

    answer = opening.with_books(lambda books: _desk(books).try_out(webhook_id))
    document = {"webhook": webhook_id, "taken": answer.taken, "status": answer.status, "error": answer.error}
    line = f"taken: answered {answer.status}" if answer.taken else f"not taken: {answer.error}"
    return present(document, json, [line], 0 if answer.taken else NO)


@app.command
def redeliver(
    webhook: str,
    /,
    *,
    event: Annotated[str | None, Parameter(help="This event's number, delivered or dead. Default: all dead.")] = None,
    json: Json = False,
) -> int:
    """Tell an endpoint again what it could not take; one that had closed itself is opened."""
    webhook_id = values.identifier("webhook", webhook)
    seq = None if event is None else values.whole("event", event.removeprefix("evt_"))
    count = opening.with_books(lambda books: _webhooks(books).redeliver(webhook_id, seq))
    return present({"webhook": webhook_id, "events": count}, json, [f"{count:,} events will be told again"])


def _made(webhook: UUID, secret: str | None) -> Iterator[RenderableType]:
    yield facts([("webhook", webhook), ("secret", secret)])
    yield "The secret is not shown again."


def _webhooks(books: opening.Books) -> Webhooks:
    from worker.store.webhooks import Webhooks

    return Webhooks(books.store.engine)


def _desk(books: opening.Books) -> WebhookDesk:
    from worker.boot import webhook_desk

    return webhook_desk(books.settings, books.store.engine)


def _list(found: Sequence[WebhookShown]) -> Iterator[RenderableType]:
    yield table(
        ["webhook", "url", "account", "events", "pending", "dead", "closed"],
        [(w.webhook, w.url, w.account or "all", _named(w), w.pending, w.dead, w.closed_at) for w in found],
        right=["pending", "dead"],
    )


def _one(found: WebhookShown, deliveries: Sequence[DeliveryShown]) -> Iterator[RenderableType]:
    yield facts(
        [
            ("webhook", found.webhook),
            ("url", found.url),
            ("account", found.account or "all"),
            ("events", _named(found)),
            ("pending", found.pending),
            ("dead", found.dead),
            ("closed", found.closed_at),
        ]
    )
    yield table(
        ["event", "what", "account", "job", "state", "attempts", "next try", "answer"],
        [
            (d.seq, d.event, d.account, d.job, d.state, d.attempts, d.next_at, d.last_error or d.last_status)
            for d in deliveries
        ],
        right=["event", "attempts"],
    )


def _named(found: WebhookShown) -> str:
    return ", ".join(found.events) or "all"
