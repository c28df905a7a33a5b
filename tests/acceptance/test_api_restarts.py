"""A client submits while the API, PostgreSQL and Redis are killed under it: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import httpx2

from config.settings import load
from worker.boot import opened_store
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.store.api_keys import ApiKeys, NewKey, Role

ROOT = Path(__file__).parents[2]
JOBS, CLIENTS = 240, 6


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(local: LocalServers, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "FERMATA_DATABASE_URL": dsn(local.database_url),
        "FERMATA_REDIS_URL": local.redis_url,
        "FERMATA_ARTIFACTS_URL": local.artifacts_url,
        "FERMATA_API_PORT": str(port),
        "FERMATA_CONNECT_SECONDS": "1",
        "FERMATA_LOG_LEVEL": "error",
    }
    return subprocess.Popen([sys.executable, "-m", "worker.cli", "api"], cwd=ROOT, env=environment)


async def _submit(http: httpx2.AsyncClient, number: int) -> str:
    """As a client of any language does it: the same key again until there is an answer."""
    body = {"account": "ada", "kind": "generation", "params": {"prompt": "x", "seconds": 20}}
    async with asyncio.timeout(60):
        while True:
            try:
                done = await http.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"song-{number}"})
            except httpx2.HTTPError:
                await asyncio.sleep(0.05)
                continue
            if done.status_code == 202:
                return str(done.json()["id"])
            assert done.status_code == 503, done.text
            await asyncio.sleep(0.05)


async def test_nothing_is_lost_or_doubled_whatever_is_killed(own_servers: LocalServers) -> None:
    """Given a client that repeats what was not answered, when each server is killed once, each key is one job."""
    local, port = own_servers, _port()
    assert local.postgres is not None
    assert local.valkey is not None
    settings = load({}, database_url=local.database_url, environment="test")
    async with opened_store(settings, "test") as store:
        await store.accounts.create("ada", "test")
        await store.accounts.grant("ada", 10**9, "start", "test")
        key = (await ApiKeys(store.engine).create(NewKey(Role.PIPELINE, "load"), "test")).key
    processes = [_started(local, port)]
    answered: dict[int, str] = {}
    numbers = iter(range(JOBS))

    async def client() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=5) as http:
            for number in numbers:
                answered[number] = await _submit(http, number)

    async def after(count: int, act: Callable[[], Awaitable[None]]) -> None:
        while len(answered) < count:  # noqa: ASYNC110  a list has no event
            await asyncio.sleep(0.01)
        await act()

    async def api_dies() -> None:
        processes[0].send_signal(signal.SIGKILL)
        await asyncio.to_thread(processes[0].wait, 10)
        processes.append(_started(local, port))

    def again(server: object) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            server.kill()  # type: ignore[attr-defined]
            server.start()  # type: ignore[attr-defined]

        return act

    try:
        await asyncio.gather(
            *(client() for _ in range(CLIENTS)),
            after(JOBS // 4, api_dies),
            after(JOBS // 2, again(local.valkey)),
            after(3 * JOBS // 4, again(local.postgres)),
        )
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    connection = await asyncpg.connect(dsn(local.database_url))
    try:
        rows = await connection.fetch("SELECT idempotency_key, CAST(job_id AS text) AS job FROM jobs")
    finally:
        await connection.close()
    assert {f"song-{number}": job for number, job in answered.items()} == {
        row["idempotency_key"]: row["job"] for row in rows
    }
    assert {1} == set(Counter(row["idempotency_key"] for row in rows).values())
    assert JOBS == len(rows)
