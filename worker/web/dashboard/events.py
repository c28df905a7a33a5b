"""Events and webhooks: what happened lately, who is told of it, and how that goes."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from worker.credits.states import ENDED
from worker.store.errors import UnknownWebhook
from worker.web.access import May
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.session import Visitor

_EVENTS, _DELIVERIES, _LATEST = 100, 50, 12


async def events(request: Request, visitor: Visitor) -> Response:
    """An account's events, or what ended last of all; and the endpoints."""
    board, query = board_of(request), request.query_params
    account, after = query.get("account", "").strip(), query.get("after", "")
    seq = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
    latest = [
        job
        for state in sorted(ENDED)
        if not account
        for job in (await board.services.reads.jobs(state=state, limit=_LATEST)).jobs
    ]
    page = None
    if account:
        page = await (
            board.events.events(account, seq, _EVENTS) if after else board.events.events_end(account, _EVENTS)
        )
    values = {
        "account": account,
        "page": page,
        "page_ends": page is not None and not after and len(page.events) == _EVENTS,
        "latest": sorted(latest, key=lambda job: (job.ended_at, job.id), reverse=True)[: 2 * _LATEST],
        "webhooks": await board.webhooks.webhooks.all() if visitor.may(May.STEER) else (),
        "now": await board.live.now(),
    }
    return frame.page(request, visitor, "events.html", values)


async def webhook(request: Request, visitor: Visitor) -> Response:
    """One endpoint with its latest deliveries."""
    board = board_of(request)
    shown, deliveries = await board.webhooks.webhooks.show(_id(request), _DELIVERIES)
    values = {"webhook": shown, "deliveries": deliveries, "now": await board.live.now(), "made": None}
    return frame.page(request, visitor, "webhook.html", values)


async def create(request: Request, visitor: Visitor, form: Form) -> Response:
    """A new endpoint. Its secret stands on this one page and nowhere else."""
    board = board_of(request)
    wanted = form.text("events").replace(",", " ").split()
    made = await board.webhooks.create(form.line("url"), form.optional("account"), wanted, visitor.actor)
    shown, deliveries = await board.webhooks.webhooks.show(made.webhook, _DELIVERIES)
    values = {"webhook": shown, "deliveries": deliveries, "now": await board.live.now(), "made": made}
    return frame.page(request, visitor, "webhook.html", values)


async def try_out(request: Request, visitor: Visitor, form: Form) -> Response:
    """Send it a signed test event now."""
    webhook_id = _id(request)
    answer = await board_of(request).webhooks.try_out(webhook_id)
    said = f"It took the test event: {answer.status}." if answer.taken else f"It did not take it: {answer.error}"
    return frame.go(f"/webhooks/{webhook_id}", said, bad=not answer.taken)


async def redeliver(request: Request, visitor: Visitor, form: Form) -> Response:
    """Tell it again what it could not take, or one event."""
    webhook_id = _id(request)
    seq = form.whole("event", 1, 2**62) if form.text("event") else None
    count = await board_of(request).webhooks.webhooks.redeliver(webhook_id, seq)
    return frame.go(f"/webhooks/{webhook_id}", f"{count:,} events will be told again.")


async def delete(request: Request, visitor: Visitor, form: Form) -> Response:
    """Tell it nothing any more."""
    await board_of(request).webhooks.webhooks.delete(_id(request), visitor.actor)
    return frame.go("/events", "The endpoint is deleted; it is told nothing any more.")


def _id(request: Request) -> UUID:
    given = request.path_params["webhook"]
    try:
        return UUID(given)
    except ValueError:
        raise UnknownWebhook(given[:64]) from None
