"""The API in tests: its application in this process, over a fresh database, with keys of every role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from config.settings import Settings, load
from tests.servers import Database
from worker.store.api_keys import NewKey, Role
from worker.web.app import make_app
from worker.web.server import server_of
from worker.web.services import Services

ACTOR = "test"
SONG = {"prompt": "x", "seconds": 20}


@dataclass(slots=True)
class Api:
    """The application and who may call it."""

    app: FastAPI
    services: Services
    http: httpx2.AsyncClient
    database: Database
    keys: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def key(self, role: str = "admin", accounts: str | None = None) -> str:
        """A key of this role, made once."""
        name = f"{role}:{accounts}"
        if name not in self.keys:
            made = await self.services.keys.create(NewKey(Role(role), name, accounts), ACTOR)
            self.keys[name] = made.key
        return self.keys[name]

    async def token(self, account: str) -> str:
        """A customer's token."""
        return (await self.services.keys.token(account, 600, ACTOR)).key

    async def account(self, account: str = "ada", credits: int = 0) -> str:  # noqa: A002  credits are credits
        """An account with that many granted credits."""
        await self.services.accounts.create(account, ACTOR)
        if credits:
            await self.services.accounts.grant(account, credits, f"start-{next(self._numbers)}", ACTOR)
        return account

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, role: str = "admin", **more: Any
    ) -> httpx2.Response:
        """A request with a key of this role, or with `key`. `idempotency` becomes the header, new by default."""
        headers = {"Authorization": f"Bearer {key if key is not None else await self.key(role)}"}
        if method == "POST":
            headers["Idempotency-Key"] = more.pop("idempotency", None) or f"k-{next(self._numbers)}"
        headers |= more.pop("headers", {})
        if body is not None:
            more["json"] = body
        return await self.http.request(method, path, headers=headers, **more)

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The document of a request that must succeed."""
        done = await self.ask(method, path, body, **more)
        assert done.is_success, (done.status_code, done.text)
        return done.json()

    async def submit(self, account: str = "ada", *, key: str | None = None, **more: Any) -> Any:
        """A song of that account, queued."""
        idempotency = more.pop("idempotency", None)
        body = {"account": account, "kind": "generation", "params": SONG, **more}
        return await self.ok("POST", "/v1/jobs", body, key=key, idempotency=idempotency)


@asynccontextmanager
async def an_api(database: Database, folder: Path, **settings: Any) -> AsyncIterator[Api]:
    """The application, started."""
    app = make_app(
        load(
            {}, database_url=database.url, environment="test", artifacts_url=(folder / "artifacts").as_uri(), **settings
        )
    )
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://fermata") as http:
            yield Api(app, app.state.services, http, database)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """An API process, as good as: the same server in this loop, and where it answers."""
    server = server_of(make_app(settings), settings)
    task = asyncio.create_task(server._serve())
    while not server.started:
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield server, f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task
