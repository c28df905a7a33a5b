"""Real small HTTP servers that are told of events: they keep what they got, and answer as badly as a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

#: The bytes of an answer; None: close without one; ...: never answer.
Reply = bytes | None


@dataclass(frozen=True, slots=True)
class Told:
    """One request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body."""
        return msgspec.json.decode(self.body)


@dataclass(slots=True)
class Endpoint:
    """A server. `reply` decides over each request, by the number of those before it."""

    port: int = 0
    told: list[Told] = field(default_factory=list)
    reply: Callable[[int], bytes | None] = lambda number: answer(200)
    #: Requests wait for it before they are answered.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    open_max: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            number = len(self.told)
            self.told.append(Told(first.split()[1], headers, body))
            self.waiting += 1
            self.open_max = max(self.open_max, self.waiting)
            await self.gate.wait()
            self.waiting -= 1
            if (reply := self.reply(number)) is not None:
                writer.write(reply)
                await writer.drain()
        writer.close()


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def an_endpoint(
    reply: Callable[[int], bytes | None] | None = None, *, tls: ssl.SSLContext | None = None, shut: bool = False
) -> AsyncIterator[Endpoint]:
    """A server for as long as the block. `shut`: requests wait until the test sets its gate."""
    endpoint = Endpoint()
    if reply is not None:
        endpoint.reply = reply
    if not shut:
        endpoint.gate.set()
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, ssl=tls)
    endpoint.port = server.sockets[0].getsockname()[1]
    try:
        yield endpoint
    finally:
        endpoint.gate.set()
        server.close()
