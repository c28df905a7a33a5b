"""Clients that send or take too slowly, without a key or with one, lose their connection: it is a place of others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from config.settings import load
from tests.acceptance.stage import until
from tests.servers import Database
from worker.store.api_keys import NewKey, Role
from worker.store.artifacts import Artifacts
from worker.store.ids import new_id
from worker.store.submits import ArtifactFacts
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


async def a_long_file(app: FastAPI, folder: Path) -> tuple[str, str]:
    """An artifact of 8 MB, and a key that may fetch it."""
    services, artifact = app.state.services, new_id()
    await services.accounts.create("ada", "test")
    facts = ArtifactFacts(artifact, "long.wav", "audio/wav", f"inputs/{artifact}", bytes(32), 1, 8_000, 1, 8_000_000)
    await Artifacts(services.engine).add("ada", facts, "test")
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    (folder / f"inputs/{artifact}").write_bytes(bytes(8_000_000))
    return str(artifact), (await services.keys.create(NewKey(Role.ADMIN, "x"), "test")).key


async def test_all_that_is_taken_earns_patience(
    running: tuple[server.Server, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only what waited in our own buffer: the system holds megabytes, and lets us write again a third later."""
    monkeypatch.setattr(server, "TAKE_SECONDS", 60.0)
    earned, patience_after = 0, server.patience_after

    def noted(before: float | None, waited: float, taken: int) -> float:
        nonlocal earned
        earned += taken
        return patience_after(before, waited, taken)

    monkeypatch.setattr(server, "patience_after", noted)
    served, port = running
    artifact, key = await a_long_file(served._app, tmp_path / "a")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /v1/artifacts/{artifact} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    writer.write(head.encode())
    await until(lambda: any(one._taking for one in served.server_state.connections), "it waits to be taken")  # type: ignore[union-attr]
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(8_000_000)
    writer.close()
    assert earned > 2_000_000


async def test_whoever_waits_is_cut_off_only_if_nothing_was_taken_meanwhile(
    running: tuple[server.Server, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system does not say of each byte that it has left: who is out of patience looks first."""
    monkeypatch.setattr(server, "TAKE_SECONDS", 60.0)
    served, port = running
    artifact, key = await a_long_file(served._app, tmp_path / "a")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /v1/artifacts/{artifact} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    writer.write(head.encode())
    await until(lambda: any(one._taking for one in served.server_state.connections), "it waits to be taken")  # type: ignore[union-attr]
    (connection,) = served.server_state.connections
    assert isinstance(connection, server.Impatient)
    connection._patience = 0.0
    connection._look_closer()
    assert connection._taking is not None, "megabytes were taken"
    connection._forget_taking()
    connection._waits_since -= 60.0
    connection._look_closer()
    with suppress(ConnectionError):
        assert len(await reader.read(-1)) < 8_000_000
    writer.close()


async def test_whoever_takes_a_little_now_and_then_is_cut_off(
    running: tuple[server.Server, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download may wait for so long in all, whatever is taken in between; why it ended stands in the log."""
    monkeypatch.setattr(server, "TAKE_SECONDS", 1.0)
    monkeypatch.setattr(server, "PACE_BYTES", 10**12)
    served, port = running
    for listening in served.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    artifact, key = await a_long_file(served._app, tmp_path / "a")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    slow.setblocking(False)
    loop, taken = asyncio.get_running_loop(), 0
    await loop.sock_connect(slow, ("127.0.0.1", port))
    head = f"GET /v1/artifacts/{artifact} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
    await loop.sock_sendall(slow, head.encode())
    await until(lambda: served.server_state.connections, "it is there")
    (connection,) = served.server_state.connections
    assert isinstance(connection, server.Impatient)
    with capture_logs() as logs, suppress(ConnectionError):
        while served.server_state.connections:
            due = loop.time() + 0.02
            await until(lambda: loop.time() > due or not served.server_state.connections, "it has waited")  # noqa: B023
            taken += len(await loop.sock_recv(slow, 65_536))
    slow.close()
    assert 100_000 < taken < 8_000_000
    told = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert ["answer cut off: it was taken too slowly"] == told


@pytest.mark.parametrize(
    ("before", "waited", "taken", "after"),
    [
        (None, 0.0, 0, 60.0),
        (None, 59.0, 0, 1.0),
        (None, 59.0, 100_000, 11.0),
        (60.0, 6.0, 60_000, 60.0),  # at the pace itself it goes on for ever
        (60.0, 6.0, 50_000, 59.0),
        (1.0, 1.0, 0, 0.0),
        (1.0, 9.0, 0, 0.0),
        (60.0, 1.0, 10**9, 60.0),  # who was quick once may not wait for longer
    ],
)
def test_patience_is_used_up_by_waiting_and_earned_by_taking(
    before: float | None, waited: float, taken: int, after: float
) -> None:
    """At 10 kB/s; a minute in all at most."""
    assert after == server.patience_after(before, waited, taken)
