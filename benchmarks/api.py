"""The HTTP API: one process on real servers, asked over 64 connections that stay open.

The client is a few lines over plain sockets, so that what is measured is the API and the books, not a client library.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import psutil
import uvloop

from benchmarks.report import Figure, at_least, at_most
from config.settings import Settings, load
from worker.boot import opened_store
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.store.api_keys import ApiKeys, NewKey, Role

CONNECTIONS, ACCOUNTS, SECONDS = 64, 200, 6.0
BATCH, BATCHES = 1_000, 12
#: Requests over which the process must not grow, and after how many its memory is said; no longer than this in all.
MEMORY_REQUESTS, MEMORY_STEP, MEMORY_SECONDS = 200_000, 20_000, 600.0
#: Pairs of looks at a job that is not there and at one of another account.
PAIRS = 3_000
ROOT = Path(__file__).parent.parent


def measured(servers: LocalServers, rounds: int, memory_requests: int = MEMORY_REQUESTS) -> list[Figure]:
    """Submits a second, their times at half that rate, batches, both 404s, and memory."""
    return uvloop.run(_measured(servers, rounds, memory_requests))


async def _measured(servers: LocalServers, rounds: int, memory_requests: int) -> list[Figure]:
    settings = load(
        {}, database_url=servers.database_url, redis_url=servers.redis_url, artifacts_url=servers.artifacts_url
    )
    key, bound = await _prepared(settings)
    async with _api(servers, key) as (port, process):
        singles, halves, batches, costs = [], [], [], []
        await _submits(port, key, 1.0)
        for _ in range(rounds):
            spent = _Spent(process)
            rate, times = await _submits(port, key, SECONDS)
            singles.append(rate)
            costs.append(spent.microseconds / len(times))
            halves.append(quantiles((await _submits(port, key, SECONDS, rate / 2))[1], n=100)[98] * 1000)
            batches.append(await _batches(port, key))
        alike = await _alike(port, key, bound)
        grown = await _memory(port, key, process, memory_requests)
    return [
        at_least("api_submits", median(singles), "jobs/s", 800, f"{CONNECTIONS} connections"),
        Figure("api_submit_cpu", median(costs), "us", batches="of the API process"),
        at_most("api_submit_p99", median(halves), "ms", 100, "at half the rate of api_submits"),
        at_least("api_batch_jobs", median(batches), "jobs/s", 5_000, f"batches of {BATCH:,}"),
        Figure("api_404", alike[1], "ms", alike[0], alike[1] / alike[0], "of an unknown job", f"{PAIRS:,} pairs"),
        # Less than a megabyte either way is noise.
        at_most("api_growth", max(1.0, grown), "MB", 10, f"over {memory_requests:,} requests, once"),
    ]


class _Spent:
    """The processor time of a process from here on."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = self._now()

    @property
    def microseconds(self) -> float:
        return (self._now() - self._before) * 1e6

    def _now(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


async def _prepared(settings: Settings) -> tuple[str, str]:
    """An admin's key, and one that may not know of the accounts."""
    async with opened_store(settings, "bench") as store:
        for number in range(ACCOUNTS):
            await store.accounts.create(f"a{number}", "bench")
            await store.accounts.grant(f"a{number}", 10**11, "start", "bench")
        keys = ApiKeys(store.engine)
        bound = await keys.create(NewKey(Role.VIEWER, "bound", "elsewhere"), "bench")
        return (await keys.create(NewKey(Role.ADMIN, "bench"), "bench")).key, bound.key


@asynccontextmanager
async def _api(servers: LocalServers, key: str) -> AsyncIterator[tuple[int, psutil.Process]]:
    port = _free_port()
    environment = {
        **os.environ,
        "FERMATA_DATABASE_URL": dsn(servers.database_url),
        "FERMATA_REDIS_URL": servers.redis_url,
        "FERMATA_ARTIFACTS_URL": servers.artifacts_url,
        "FERMATA_API_PORT": str(port),
        "FERMATA_API_REQUESTS_PER_MINUTE": "10000000",
        "FERMATA_LOG_LEVEL": "warning",
    }
    child = subprocess.Popen([sys.executable, "-m", "worker.cli", "api"], cwd=ROOT, env=environment)  # noqa: ASYNC220
    try:
        deadline = time.monotonic() + 30
        while not await _answers(port, key):
            assert time.monotonic() < deadline, "the API did not start"
            await asyncio.sleep(0.1)
        yield port, psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


async def _answers(port: int, key: str) -> bool:
    try:
        return (await _ask(await _connected(port), _get("/v1/queues", key)))[0] == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connected(port: int) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port, limit=2**24)


async def _ask(connection: Connection, request: bytes) -> tuple[int, bytes]:
    reader, writer = connection
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def _get(path: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


def _post(path: str, key: str, number: int, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: k{number}-{time.monotonic_ns()}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _song(number: int) -> dict[str, object]:
    params = {"prompt": "warm lofi piano", "seconds": 60}
    return {"account": f"a{number % ACCOUNTS}", "kind": "generation", "params": params}


async def _submits(port: int, key: str, seconds: float, rate: float | None = None) -> tuple[float, list[float]]:
    """Jobs a second, and how long each submit took; at this rate in all, or as fast as 64 connections go."""
    numbers, times = count(), list[float]()
    until = time.perf_counter() + seconds
    pause = CONNECTIONS / rate if rate else 0.0

    async def one(place: int) -> None:
        connection = await _connected(port)
        due = time.perf_counter() + pause * place / CONNECTIONS
        while (now := time.perf_counter()) < until:
            if pause:
                await asyncio.sleep(max(0.0, due - now))
                due += pause
            number = next(numbers)
            began = time.perf_counter()
            status, body = await _ask(connection, _post("/v1/jobs", key, number, json.dumps(_song(number)).encode()))
            assert status == 202, body
            times.append(time.perf_counter() - began)
        connection[1].close()

    began = time.perf_counter()
    await asyncio.gather(*(one(place) for place in range(CONNECTIONS)))
    return len(times) / (time.perf_counter() - began), times


async def _batches(port: int, key: str) -> float:
    async def some(place: int) -> None:
        connection = await _connected(port)
        for number in range(place, BATCHES, 2):
            body = json.dumps({"jobs": [_song(one) for one in range(BATCH)]}).encode()
            status, answer = await _ask(connection, _post("/v1/jobs/batch", key, number, body))
            assert status == 207, answer[:500]
            assert json.loads(answer)["taken"] == BATCH
        connection[1].close()

    began = time.perf_counter()
    await asyncio.gather(some(0), some(1))
    return BATCH * BATCHES / (time.perf_counter() - began)


async def _alike(port: int, key: str, bound: str) -> tuple[float, float]:
    """Medians in ms of a look at a job that is not there and at another account's, taken in turns by a bound key."""
    connection = await _connected(port)
    _, body = await _ask(connection, _post("/v1/jobs", key, 0, json.dumps(_song(0)).encode()))
    theirs = json.loads(body)["id"]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * PAIRS):
        which = number % 2 if number // 2 % 2 else 1 - number % 2  # which goes first changes from pair to pair
        job = theirs if which else f"0198c2f4-7a10-7b3e-9c55-{number:012x}"
        began = time.perf_counter()
        status, _ = await _ask(connection, _get(f"/v1/jobs/{job}", bound))
        times[which].append((time.perf_counter() - began) * 1000)
        assert status == 404
    connection[1].close()
    return median(times[0]), median(times[1])


async def _memory(port: int, key: str, process: psutil.Process, requests: int) -> float:
    """By how many MB the process grows over so many requests: looks, quotes and refusals in turn.

    Counted from the first step on, which fills caches that have their bounds; each step is said.
    """
    quote = json.dumps({"kind": "generation", "params": {"prompt": "x", "seconds": 60}}).encode()
    kinds: list[Callable[[int], bytes]] = [
        lambda _: _get("/v1/accounts/a1/balance", key),
        lambda number: _post("/v1/quotes", key, number, quote),
        lambda number: _get(f"/v1/jobs/0198c2f4-7a10-7b3e-9c55-{number:012x}", key),
        lambda number: _get(f"/v1/nothing/{number}", key),
    ]
    numbers = iter(range(requests))
    began, sizes = time.monotonic(), list[float]()

    async def one() -> None:
        connection = await _connected(port)
        for number in numbers:
            assert time.monotonic() - began < MEMORY_SECONDS, f"only {number:,} requests in {MEMORY_SECONDS:.0f} s"
            status, _ = await _ask(connection, kinds[number % len(kinds)](number))
            assert status < 500
            if (number + 1) % MEMORY_STEP == 0 or number + 1 == requests:
                sizes.append(float(process.memory_info().rss) / 1e6)
                print(f"{number + 1:,} requests after {time.monotonic() - began:.0f} s: {sizes[-1]:.1f} MB", flush=True)
        connection[1].close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return sizes[-1] - sizes[0]
