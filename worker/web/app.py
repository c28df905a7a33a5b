"""The HTTP application: health for now; routes come with their issue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response

from config.settings import Settings
from worker.boot import opened_store, our_version
from worker.store.errors import StoreError
from worker.store.leases import read_clock


def make_app(settings: Settings) -> FastAPI:
    """The application of one API process. Stateless: any number may run."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened_store(settings, "fermata-api") as store:
            app.state.store = store
            yield

    app = FastAPI(title="Fermata", version=our_version(), lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, Any]:
        """The process answers."""
        return {"ok": True}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, Any]:
        """The books answer too."""
        try:
            await read_clock(app.state.store.engine)
        except StoreError as error:
            response.status_code = 503
            return {"ok": False, "why": str(error)}
        return {"ok": True}

    return app
