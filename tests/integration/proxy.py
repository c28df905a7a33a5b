"""A small TCP proxy before PostgreSQL that loses exactly one thing: a COMMIT, or the answer to it.

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
    """The way to one database. `database` is the app's and the owner's way through it."""

    database: Database
    host: str
    port: int
    fault: Fault | None = None
    lost: int = 0
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    def lose(self, fault: Fault) -> None:
        """Do so with the next COMMIT."""
        self.fault = fault

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it or it is cut."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        back, forth = await asyncio.open_connection(self.host, self.port)
        answers = asyncio.create_task(_copy(back, writer))
        try:
            while chunk := await reader.read(65_536):
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

    async def close(self) -> None:
        """Cut what still talks."""
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def wired(database: Database) -> AsyncIterator[Wire]:
    """The database behind a proxy."""
    url = make_url(database.url)
    wire = Wire(database, url.host or "127.0.0.1", url.port or 5432)
    server = await asyncio.start_server(wire.talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    wire.database = replace(database, url=through)
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
