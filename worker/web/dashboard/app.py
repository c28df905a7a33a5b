"""The dashboard as an application of its own, at the root of the API process: pages, actions, streams and files."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.kind import RefusedRequest
from worker.artifacts.store import ArtifactError
from worker.store.errors import StoreError
from worker.web.access import May
from worker.web.dashboard import (
    accounts,
    audit,
    customer,
    door,
    events,
    frame,
    job,
    jobs,
    overview,
    prices,
    sounds,
    streams,
    workers,
)
from worker.web.dashboard.doors import acting, failed, signed_out, staff
from worker.web.dashboard.frame import policy
from worker.web.dashboard.session import Forbidden, SignedOut

#: What the API answers for itself, unknown addresses below it too.
_NOT_OURS = ("/v1", "/livez", "/readyz", "/metrics")
_FILES = {path.name: path for folder in ("static", "vendor") for path in (frame.HERE / folder).glob("*.*")}
_SERVED = frozenset({".css", ".js", ".svg"})


def make_dashboard() -> Starlette:
    """Its `state.board` is set before the first request comes."""
    application = Starlette(
        routes=[*_door(), *_pages(), *_actions()],
        exception_handlers={
            SignedOut: signed_out,
            **dict.fromkeys((Forbidden, StoreError, RefusedRequest, ArtifactError, HTTPException, Exception), failed),
        },
    )
    application.add_middleware(Policy)
    return application


def _door() -> Iterator[Route]:
    yield Route("/sign-in", door.door)
    yield Route("/sign-in", door.enter, methods=["POST"])
    yield Route("/sign-out", door.leave, methods=["POST"])
    yield Route("/static/{name}", _file)


def _pages() -> Iterator[Route]:
    yield Route("/", staff(overview.overview, May.LOOK_AT_QUEUES, elsewhere=True))
    yield Route("/live/overview", staff(streams.overview, May.LOOK_AT_QUEUES))
    yield Route("/plots/jobs", staff(overview.plot, May.LOOK_AT_QUEUES))
    yield Route("/queues/{queue}", staff(overview.queue, May.LOOK_AT_QUEUES))
    yield Route("/live/queues/{queue}", staff(streams.queue, May.LOOK_AT_QUEUES))
    yield Route("/workers", staff(workers.workers, May.LOOK_AT_QUEUES))
    yield Route("/live/workers", staff(streams.workers, May.LOOK_AT_QUEUES))
    yield Route("/jobs", staff(jobs.jobs, May.LOOK_AT_JOBS))
    yield Route("/jobs/{job}", staff(job.job, May.LOOK_AT_JOBS))
    yield Route("/live/jobs/{job}", staff(streams.job, May.LOOK_AT_JOBS))
    yield Route("/pictures/{artifact}.png", staff(sounds.picture, May.LOOK_AT_JOBS))
    yield Route("/audio/{artifact}", staff(sounds.audio, May.LOOK_AT_JOBS))
    yield Route("/accounts", staff(accounts.accounts, May.LOOK_AT_ACCOUNTS))
    yield Route("/accounts/{account:path}", staff(accounts.account, May.LOOK_AT_ACCOUNTS))
    yield Route("/prices", staff(prices.prices, May.LOOK_AT_PRICES))
    yield Route("/events", staff(events.events, May.LOOK_AT_JOBS))
    yield Route("/webhooks/{webhook}", staff(events.webhook, May.STEER))
    yield Route("/audit", staff(audit.audit, May.LOOK_AT_LOG))
    yield Route("/credits", customer.own_credits)
    yield Route("/credits/jobs/{job}", customer.receipt)


def _actions() -> Iterator[Route]:
    for path, handler, may in (
        ("/do/pause/{scope}/{name}", overview.pause, May.STEER),
        ("/do/resume/{scope}/{name}", overview.resume, May.STEER),
        ("/do/limit/{scope}/{name}", overview.limit, May.STEER),
        ("/do/jobs/cancel/{job}", job.cancel, May.CANCEL),
        ("/do/jobs/retry/{job}", job.retry, May.STEER),
        ("/do/prices/draft", prices.draft, May.SET_PRICES),
        ("/do/prices/withdraw", prices.withdraw, May.SET_PRICES),
        ("/do/prices/revert", prices.revert, May.SET_PRICES),
        ("/do/audit", audit.run, May.STEER),
        ("/do/webhooks/create", events.create, May.STEER),
        ("/do/webhooks/test/{webhook}", events.try_out, May.STEER),
        ("/do/webhooks/redeliver/{webhook}", events.redeliver, May.STEER),
        ("/do/webhooks/delete/{webhook}", events.delete, May.STEER),
        ("/do/jobs/preview", jobs.preview, May.COMPENSATE),
        ("/do/jobs/many", jobs.many, May.COMPENSATE),
        ("/do/jobs/force-end/{job}", job.force_end, May.STEER),
        ("/do/workers/drain/{worker:path}", workers.drain, May.STEER),
        ("/do/jobs/compensate/{job}", job.compensate, May.COMPENSATE),
        ("/do/accounts/topup/{account:path}", accounts.topup, May.CREDIT),
        ("/do/accounts/grant/{account:path}", accounts.grant, May.CREDIT),
        ("/do/accounts/pause/{account:path}", accounts.pause, May.STEER),
        ("/do/accounts/limit/{account:path}", accounts.limit, May.STEER),
        ("/do/accounts/resume/{account:path}", accounts.resume, May.STEER),
    ):
        yield Route(path, acting(handler, may), methods=["POST"])


async def _file(request: Request) -> Response:
    """One of our files. Asked for by its sum, it may be kept for ever."""
    path = _FILES.get(request.path_params["name"])
    if path is None or path.suffix not in _SERVED:
        return Response(status_code=404)
    kept = "public, max-age=31536000, immutable" if request.query_params.get("v") else "no-cache"
    return FileResponse(path, headers={"cache-control": kept})


class Pages(Mount):
    """The dashboard at the root, for every address that is not the API's."""

    def __init__(self, dashboard: Starlette) -> None:
        super().__init__("", dashboard, name="dashboard")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["path"].startswith(_NOT_OURS):
            return Match.NONE, {}
        return super().matches(scope)


class Policy:
    """Puts the content policy on every page. Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", policy())
                headers.setdefault("x-content-type-options", "nosniff")
                headers.setdefault("referrer-policy", "same-origin")
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, with_policy)
