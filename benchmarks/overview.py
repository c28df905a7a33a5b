"""What the dashboard costs: one look over a million jobs and 100,000 accounts, and 200 people who watch it."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from benchmarks.rehearsing import past_made
from benchmarks.report import Figure, at_most
from config.settings import Settings
from worker.boot import opened_store
from worker.local.ports import free_port
from worker.local.processes import spawn, stop
from worker.local.roles import dsn
from worker.local.system import LocalServers, environment_for
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.reads import Reads
from worker.store.reads_overview import OverviewReads
from worker.store.sessions import Sessions
from worker.web.dashboard.history import History
from worker.web.dashboard.session import COOKIE

JOBS, ACCOUNTS, VIEWERS = 1_000_000, 100_000, 200
#: What was promised: milliseconds of a look and of a search, and a part of a core for all viewers together.
LOOK_MS_MAX, SEARCH_MS_MAX, CORE_MAX = 50.0, 50.0, 0.30
#: Jobs that wait and that run while it is measured.
WAITING, RUNNING = 20_000, 500
#: Looks a round, and how long viewers watch in each.
_LOOKS, _WATCH_SECONDS = 15, 10.0


def measured(servers: LocalServers, rounds: int) -> list[Figure]:
    """Looks, searches and viewers over a database that is filled once, for that takes long."""
    return asyncio.run(_measured(servers, rounds))


async def _measured(servers: LocalServers, rounds: int) -> list[Figure]:
    await past_made(dsn(servers.owner_database_url), JOBS, ACCOUNTS, days=1)
    await _backlog_made(dsn(servers.owner_database_url))
    settings = Settings(database_url=servers.database_url, artifacts_url=str(servers.data_dir / "artifacts"))
    async with opened_store(settings, "fermata-bench") as store:
        overview, reads = OverviewReads(store.engine), Reads(store.engine)
        looks = rounds * _LOOKS
        look = [
            await _milliseconds("what moves", overview.look, looks),
            await _milliseconds("with what moves slowly", lambda: overview.look(slow=True), looks),
            await _milliseconds("with minutes", lambda: _minutes(overview), looks),
            await _milliseconds("with both, after a silence", lambda: _minutes(overview, slow=True), looks),
        ]
        searches = [
            await _milliseconds("of an account", lambda: reads.jobs("account-77"), looks),
            await _milliseconds("failed", lambda: reads.jobs(state="failed"), looks),
            await _milliseconds("queued", lambda: reads.jobs(state="queued"), looks),
            await _milliseconds("of an account, failed", lambda: reads.jobs("account-77", "failed"), looks),
        ]
        made = await ApiKeys(store.engine).create(NewKey(Role.VIEWER, "bench"), "bench")
        secret = await Sessions(store.engine).open(made.shown)
    watched = [await _watched(settings, servers, secret) for _ in range(rounds)]
    core, events = (statistics.median(column) for column in zip(*watched, strict=True))
    total, worst = max(took for _, took in look), max(took for _, took in searches)
    return [
        at_most("overview_look_ms", total, "ms", LOOK_MS_MAX, _each_of(look)),
        at_most("job_search_ms", worst, "ms", SEARCH_MS_MAX, _each_of(searches)),
        at_most(
            "overview_viewers_cores",
            core,
            "cores",
            CORE_MAX,
            f"{VIEWERS} streams, {events:,.0f} events in {_WATCH_SECONDS:g} s",
        ),
    ]


def _each_of(reads: list[tuple[str, float]]) -> str:
    return ", ".join(f"{what} {took:.1f}" for what, took in reads)


async def _milliseconds(what: str, read: Callable[[], Awaitable[Any]], looks: int) -> tuple[str, float]:
    """The median of some reads as the process sees them: PostgreSQL's time and the way there and back."""
    took = []
    for _ in range(looks):
        started = time.perf_counter()
        await read()
        took.append(1000 * (time.perf_counter() - started))
    return what, statistics.median(took)


async def _minutes(overview: OverviewReads, *, slow: bool = False) -> None:
    """A look with what it reads of the events: the last minutes again, and a window of the past."""
    now = datetime.now(UTC) - timedelta(hours=6)
    history = History().with_ended((), now - timedelta(minutes=60), now)
    await overview.look(windows=list(history.wanted(now)), slow=slow)


async def _watched(settings: Settings, servers: LocalServers, secret: str) -> tuple[float, int]:
    """Cores that one API process takes while so many watch, and the events that they were shown."""
    port = free_port()
    environment = {**environment_for(servers), "FERMATA_API_PORT": str(port), "FERMATA_LOG_LEVEL": "warning"}
    child = spawn(
        [Path(sys.executable).with_name("fermata"), "api"],
        on_parent_death=signal.SIGKILL,
        env={**os.environ, **environment},
    )
    try:
        await _answering(port)
        streams = [asyncio.create_task(_stream(port, secret)) for _ in range(VIEWERS)]
        await asyncio.sleep(5)  # all are there, and the first looks are over
        process = psutil.Process(child.pid)
        before, started = process.cpu_times(), time.monotonic()
        await asyncio.sleep(_WATCH_SECONDS)
        after, seconds = process.cpu_times(), time.monotonic() - started
        for stream in streams:
            stream.cancel()
        seen = await asyncio.gather(*streams)
        return (after.user + after.system - before.user - before.system) / seconds, sum(seen)
    finally:
        stop(child, [(signal.SIGTERM, 10)])


async def _answering(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise TimeoutError("the API does not answer")


async def _stream(port: int, secret: str) -> int:
    """Watch the overview until cancelled; returns the events seen. Plain sockets, so that we cost little ourselves."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /live/overview HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {COOKIE}={secret}\r\n\r\n".encode())
    events = 0
    try:
        while block := await reader.read(65_536):
            events += block.count(b"\n\n")
    except asyncio.CancelledError:
        pass
    finally:
        writer.close()
    return events


async def _backlog_made(owner_dsn: str) -> None:
    connection = await asyncpg.connect(owner_dsn, server_settings={"synchronous_commit": "off", "jit": "off"})
    try:
        for statement in _BACKLOG.split(";\n\n"):
            await connection.execute(
                statement.replace(":waiting", str(WAITING)).replace(":running", str(RUNNING)), timeout=600
            )
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


_BACKLOG = """
INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at, settled_at)
SELECT account_id, job_id, quoted, 'committed', charged, '{1}', ARRAY[quoted], started_at, ended_at
FROM jobs;

INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged)
SELECT account_id, ended_at + interval '1 hour', 'ended', job_id, state, kind, queue, reason, charged
FROM jobs
ORDER BY ended_at;

INSERT INTO due (account_id, job_id, queue, kind, priority, since, not_before, ends_by)
SELECT account_id, job_id, kind, kind, 0, fermata_now(), fermata_now(), fermata_now() + interval '1 day'
FROM jobs
LIMIT :waiting;

INSERT INTO live (account_id, job_id, token, queue, kind, worker_id, started_at, lease_until, ends_by, attempt)
SELECT account_id, job_id, gen_random_uuid(), kind, kind, 'w' || (job_id::text < '8')::int, fermata_now(),
       fermata_now() + interval '1 minute', fermata_now() + interval '1 day', 1
FROM jobs
ORDER BY account_id DESC
LIMIT :running
"""
