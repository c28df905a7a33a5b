"""The dashboard in tests without a browser: pages as a visitor of some role gets them, forms as one sends them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx2
from fastapi import FastAPI

from tests.integration.api_support import Api
from worker.web.dashboard.board import Board

_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')


@dataclass(slots=True)
class Visit:
    """A signed-in browser without scripts."""

    http: httpx2.AsyncClient
    form_token: str = ""

    async def page(self, path: str, status: int = 200) -> str:
        """The text of a page, after redirects."""
        found = await self.http.get(path, follow_redirects=True)
        assert status == found.status_code, (path, found.status_code, found.text[-800:])
        if match := _TOKEN.search(found.text):
            self.form_token = match[1]
        return unescape(found.text)

    async def send(self, path: str, *, follow: bool = True, **fields: Any) -> httpx2.Response:
        """Send a form of the page that was opened last."""
        values = {"form_token": self.form_token, "back": "/", **fields}
        return await self.http.post(path, data=values, follow_redirects=follow)


@asynccontextmanager
async def visiting(api: Api, role: str | None = "admin", key: str | None = None) -> AsyncIterator[Visit]:
    """A browser that has signed in with a key of that role, or with `key`; with no role, one at the door."""
    transport = httpx2.ASGITransport(api.http._transport.app, raise_app_exceptions=False)  # type: ignore[attr-defined]
    async with httpx2.AsyncClient(transport=transport, base_url="http://fermata") as http:
        visit = Visit(http)
        if role is not None or key is not None:
            given = key if key is not None else await api.key(role or "admin")
            entered = await visit.send("/sign-in", key=given, next="/", follow=False)
            assert 303 == entered.status_code, entered.text
            found = await http.get("/", follow_redirects=True)
            match = _TOKEN.search(found.text)
            visit.form_token = match[1] if match else ""
        yield visit


def board_in(api: Api) -> Board:
    """The board of the application under test."""
    return board_of_app(api.app)


def board_of_app(app: FastAPI) -> Board:
    """The board of an application that has started."""
    mounted: Any = next(route for route in app.routes if getattr(route, "name", None) == "dashboard")
    board: Board = mounted.app.state.board
    return board
