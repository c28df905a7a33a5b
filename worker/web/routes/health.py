"""`/livez` and `/readyz`: for whoever decides whether requests come here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from worker.store.errors import StoreError
from worker.store.leases import read_clock
from worker.web.answers import answer
from worker.web.services import services_of

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz", responses={503: {"description": "The books can't be reached."}})
async def readyz(request: Request) -> Response:
    """The books answer too."""
    try:
        await read_clock(services_of(request).engine)
    except StoreError as error:
        return answer({"ok": False, "why": str(error)}, 503)
    return answer({"ok": True})
