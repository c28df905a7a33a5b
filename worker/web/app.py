"""The HTTP application of one API process. Stateless: any number may run, anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from config.settings import Settings
from tasks.registry import registry
from worker.boot import opened_api, opened_board, our_version
from worker.links import COMPLETIONS_PATH
from worker.web import problems, reference
from worker.web.dashboard.app import Pages, make_dashboard
from worker.web.dashboard.forms import FORM_BYTES_MAX
from worker.web.guard import Guard
from worker.web.routes import (
    accounts,
    artifacts,
    engines,
    following,
    health,
    jobs,
    keys,
    prices,
    queues,
    quotes,
    steering,
    voices,
    webhooks,
)
from worker.web.uploads import ENVELOPE_BYTES_MAX

_DESCRIPTION = """
Paid music jobs: submit, follow, pay only for what was made.

Every request carries a key: `Authorization: Bearer fmt_…`, made by `fermata keys create`. Errors are
`application/problem+json` with a stable `code`. A POST that creates takes an `Idempotency-Key`: sent again after a
lost answer, it is done once. Amounts are whole credits; times are UTC. Keys of documents are only ever added.
"""


def make_app(settings: Settings) -> FastAPI:
    """The application. Connects when it is started, not here."""

    dashboard = make_dashboard()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened_api(settings) as services, opened_board(services) as board:
            app.state.services = services
            dashboard.state.board = board
            yield

    app = FastAPI(
        title="Fermata",
        version=our_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for resource in (
        *(health, jobs, following, quotes, artifacts, queues, steering, accounts, prices, voices, keys, webhooks),
        engines,
    ):
        app.include_router(resource.router)
    app.router.routes.append(Pages(dashboard))
    problems.add_handlers(app)
    app.add_middleware(Guard, body_bytes_max=_body_bytes_max(settings))
    _complete_document(app, settings)
    return app


def _body_bytes_max(settings: Settings) -> dict[str, int]:
    """The addresses that take more than a job's worth."""
    return {
        "/v1/jobs/batch": jobs.BATCH_BYTES_MAX,
        "/v1/artifacts": settings.upload_bytes_max + ENVELOPE_BYTES_MAX,
        "/v1/voices": settings.upload_bytes_max + ENVELOPE_BYTES_MAX,
        "/v1/prices": prices.BOOK_BYTES_MAX,
        "/v1/prices/rehearsals": prices.BOOK_BYTES_MAX,
        COMPLETIONS_PATH: engines.COMPLETION_BYTES_MAX,
        "/do/prices/draft": FORM_BYTES_MAX,
    }


def _complete_document(app: FastAPI, settings: Settings) -> None:
    """Have the OpenAPI document say what stands in no route's types."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        if "ProblemDocument" not in document.get("components", {}).get("schemas", {}):
            reference.complete(document, registry(settings.extra_kinds, settings.engines))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
