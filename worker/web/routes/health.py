"""`/livez`, `/readyz` and `/metrics`: for whoever decides whether requests come here, and whether to call somebody."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from worker.readiness import readiness_of
from worker.store.doctoring import read_revision
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(tags=["health"])
_guarded = APIRouter(tags=["health"], route_class=StrictRoute)


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz", responses={503: {"description": "Something that is needed is missing; `why` names it."}})
async def readyz(request: Request) -> Response:
    """The books answer too, their schema is ours, and this process is not about to end."""
    services = services_of(request)
    url = services.settings.redis_url
    found = await readiness_of(
        lambda: read_revision(services.engine),
        url.get_secret_value() if url else None,
        lambda: getattr(request.app.state, "draining", False),
    )
    document: dict[str, Any] = {"ok": found.ready, "facts": found.facts}
    return answer(document, 200) if found.ready else answer({**document, "why": found.why_not}, 503)


@_guarded.get("/metrics", response_class=Response, responses=responses())
async def metrics(request: Request, caller: Annotated[Caller, allowed(May.LOOK_AT_QUEUES)]) -> Response:
    """This process's figures and the books', as Prometheus reads them. A key that may look at queues opens it."""
    return Response(services_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


router.include_router(_guarded)
