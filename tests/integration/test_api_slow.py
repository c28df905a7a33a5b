"""Clients that send or take too slowly, without a key or with one, lose their connection: it is a place of others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from config.settings import load
from tests.acceptance.stage import until
from tests.servers import Database
from worker.web import server
from worker.web.app import make_app

BODY = b"Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
UNKEYED = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n" + BODY
CHUNKED = b"Transfer-Encoding: chunked"
ALIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def running(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[server.Server, int]]:
    """The server as `fermata api` runs it, less patient still, and its port."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(server, "TAKE_SECONDS", 0.5)
    settings = load(
        {}, database_url=database.url, environment="test", artifacts_url=(tmp_path / "a").as_uri(), api_port=0
    )
    served = server.server_of(make_app(settings), settings)
    task = asyncio.create_task(served.serve())
    await until(lambda: served.started or task.done(), "it listens")
    yield served, served.servers[0].sockets[0].getsockname()[1]
    served.should_exit = True
    await task


async def is_closed(wire: Wire, trickle: bytes) -> bool:
    """Whether the server closes while that is sent to it, ten times a second for three seconds."""
    reader, writer = wire

    async def go_on() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(trickle)
                await writer.drain()
                await asyncio.sleep(0.1)

    going = asyncio.create_task(go_on())
    try:
        async with asyncio.timeout(3):
            with suppress(ConnectionError):
                while await reader.read(65_536):
                    pass
        return True
    except TimeoutError:
        return False
    finally:
        going.cancel()
        writer.close()


@pytest.mark.parametrize(
    ("first", "trickle"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nX-Slow: ", b"x", id="a head without end"),
        pytest.param(UNKEYED, b"x", id="a body behind its 401"),
        pytest.param(
            UNKEYED.replace(b"Content-Length: 60000", b"Transfer-Encoding: chunked"), b"1\r\nx\r\n", id="chunks"
        ),
        pytest.param(ALIVE, b"\r\n", id="empty lines behind an answer"),
    ],
)
async def test_whoever_sends_without_end_is_closed(
    running: tuple[server.Server, int], first: bytes, trickle: bytes
) -> None:
    """Nobody holds a connection by a byte now and then, whatever the byte belongs to."""
    wire = await asyncio.open_connection("127.0.0.1", running[1])
    wire[1].write(first)
    assert await is_closed(wire, trickle)


async def test_requests_one_after_another_keep_their_connection(running: tuple[server.Server, int]) -> None:
    """For longer than a single one may take."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running[1])
    for _ in range(10):
        writer.write(ALIVE)
        assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"}")
        await asyncio.sleep(0.15)
    writer.close()


@pytest.mark.parametrize("asked", [40, 1_000])
async def test_whoever_takes_no_answer_is_cut_off(running: tuple[server.Server, int], asked: int) -> None:
    """However many wait to be taken: so many that we write no more, or so few that closing would wait for ever."""
    served, port = running
    for listening in served.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(deaf, ("127.0.0.1", port))
    await loop.sock_sendall(deaf, ALIVE * asked)
    await until(lambda: served.server_state.total_requests >= 40, "it answers")
    await until(lambda: not served.server_state.connections, "the connection is gone")
    deaf.close()
