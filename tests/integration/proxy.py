"""A small TCP proxy before a server, which can be a bad way to it: slow, dark, cut; or lose exactly one COMMIT.

Armed with `lose_commit` or `lose_answer` it does so once, cuts that connection, and is a plain wire again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from sqlalchemy import make_url

from tests.servers import Database

Fault = Literal["lose_commit", "lose_answer"]


@dataclass(slots=True)
class Wire:
    """The way to one server."""

    host: str
    port: int
    fault: Fault | None = None
    lost: int = 0
    #: By so much each piece is late, either way.
    delay_seconds: float = 0.0
    #: Clients are not told that the server closed their connection.
    holds_ends: bool = False
    #: Not set: nothing arrives, either way, until it is set again.
    lit: asyncio.Event = field(default_factory=asyncio.Event)
    #: Where it listens.
    entrance: int = 0
    _server: asyncio.Server | None = None
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    def lose(self, fault: Fault) -> None:
        """Do so with the next COMMIT."""
        self.fault = fault

    def through(self, url: str) -> str:
        """That server's URL, by this way."""
        return make_url(url).set(host="127.0.0.1", port=self.entrance).render_as_string(hide_password=False)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it or it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            back, forth = await asyncio.open_connection(self.host, self.port)
        except (OSError, asyncio.CancelledError):
            writer.close()
            self._talks.discard(task)
            return
        answers = asyncio.create_task(self._copy(back, writer))
        try:
            while chunk := await reader.read(65_536):
                await self._travel()
                if self.fault is not None and b"COMMIT" in chunk:
                    fault, self.fault = self.fault, None
                    if fault == "lose_answer":
                        answers.cancel()
                        await asyncio.wait({answers})
                        forth.write(chunk)
                        await back.read(65_536)  # it is committed now
                    self.lost += 1
                    break
                forth.write(chunk)
                await forth.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            answers.cancel()
            writer.close()
            forth.close()
            self._talks.discard(task)

    async def cut(self) -> int:
        """End all connections that there are now; returns how many."""
        talks = list(self._talks)
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        return len(talks)

    async def close(self) -> None:
        """Let nobody in any more, and end all connections."""
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def open_again(self) -> None:
        """After `close`: take connections where it listened before."""
        self._server = await asyncio.start_server(self.talk, "127.0.0.1", self.entrance)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                await self._travel()
                writer.write(chunk)
                await writer.drain()
            if not self.holds_ends:
                writer.close()

    async def _travel(self) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        await self.lit.wait()


@dataclass(slots=True)
class DatabaseWire(Wire):
    """The way to one database. `database` is the app's and the owner's way through it."""

    database: Database = field(kw_only=True)


@asynccontextmanager
async def laid(wire: Wire) -> AsyncIterator[None]:
    """Let it be gone through, for as long as the block."""
    wire.lit.set()
    wire._server = await asyncio.start_server(wire.talk, "127.0.0.1", 0)
    wire.entrance = wire._server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        await wire.close()


@asynccontextmanager
async def wired(database: Database) -> AsyncIterator[DatabaseWire]:
    """The database behind a proxy."""
    url = make_url(database.url)
    wire = DatabaseWire(url.host or "127.0.0.1", url.port or 5432, database=database)
    async with laid(wire):
        wire.database = replace(database, url=wire.through(database.url))
        yield wire
