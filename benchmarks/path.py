"""The path of a job, in real processes: null jobs a second, pick-up, hints a job, and what an idle system costs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import asyncpg
import psutil

from benchmarks.report import Figure, at_most, figure_of
from config.settings import Settings, load
from worker.boot import opened_client
from worker.client import Client, JobRequest
from worker.local.processes import spawn, stop
from worker.local.roles import dsn
from worker.local.system import LocalServers, environment_for

JOBS = 20_000
ACCOUNTS = 1_000
#: Two worker processes, as the reference has two with 8 threads each.
WORKERS = 2
SLOTS = 256
SUBMIT_AT_ONCE = 2_000
PICKUPS = 60
#: Of each look at an idle system.
IDLE_SECONDS = 10.0
DEADLINE_SECONDS = 120.0
QUEUE = "null"

#: A plain actor: one INCR a message, everything of dramatiq's own left as it comes.
PLAIN_ACTOR = """
import os, dramatiq, redis
from dramatiq.brokers.redis import RedisBroker
broker = RedisBroker(url=os.environ["PLAIN_URL"], namespace="plain")
dramatiq.set_broker(broker)
client = redis.Redis.from_url(os.environ["PLAIN_URL"])
@dramatiq.actor
def plain():
    client.incr("plain-count")
"""


def measured(servers: LocalServers, rounds: int) -> list[Figure]:
    """All figures of the path, each round beside its reference."""
    with tempfile.TemporaryDirectory() as folder, _system(servers, Path(folder)) as system:
        asyncio.run(_prepared(system.settings))
        pairs, hints = [], []
        for _ in range(rounds):
            reference = _plain_dramatiq(servers, Path(folder))
            ours, hints_per_job, per_hint = asyncio.run(_null_jobs(system.settings, system.log))
            pairs.append((ours, reference))
            hints.append((hints_per_job, per_hint))
        pickups = asyncio.run(_pickups(system.settings))
        rss, idle = system.idle(rounds)
    batches = f"{median(per for _, per in hints):.1f} ids a hint, {WORKERS} workers of {SLOTS} slots"
    plain = median(reference for _, reference in pairs)
    return [
        Figure("dramatiq", plain, "messages/s", batches="the reference of null_job"),
        figure_of(
            "null_job",
            "jobs/s",
            pairs,
            against="dramatiq actor doing one INCR, 2 × 8 threads, enqueue included",
            batches=batches,
        ),
        at_most("hints_per_job", median(per for per, _ in hints), "hints", 1.2, batches),
        at_most("pickup_ms", median(pickups), "ms", 20.0, f"{PICKUPS} jobs one after the other, idle system"),
        at_most("worker_rss_mb", rss, "MB", 120.0, "idle, the larger of the workers"),
        at_most("idle_cpu_percent", idle, "% of a core", 3.0, "servers, scheduler and workers together"),
    ]


# --- our side


class _System:
    """A scheduler and two workers, as real processes."""

    def __init__(self, servers: LocalServers, settings: Settings, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.children: list[subprocess.Popen[bytes]] = []
        self._servers = servers

    def idle(self, rounds: int) -> tuple[float, float]:
        """(MB of the larger worker, percent of one core of everything) over some whiles of nothing to do."""
        parts = [psutil.Process(child.pid) for child in self.children]
        servers = [self._servers.postgres, self._servers.valkey]
        everything = [*parts, *(psutil.Process(part.pid) for part in servers if part is not None and part.pid)]
        everything += [child for process in everything for child in process.children(recursive=True)]
        percents = []
        for _ in range(rounds):
            before = _cpu_seconds(everything)
            time.sleep(IDLE_SECONDS)
            percents.append(100 * (_cpu_seconds(everything) - before) / IDLE_SECONDS)
        return max(part.memory_info().rss for part in parts[1:]) / 1e6, median(percents)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def _system(servers: LocalServers, folder: Path) -> Iterator[_System]:
    given = {
        **environment_for(servers),
        "FERMATA_EXTRA_KINDS": "benchmarks.kinds:Null",
        "FERMATA_SLOTS": str(SLOTS),
        "FERMATA_LOG_LEVEL": "warning",
    }
    settings = load(given)
    asyncio.run(_priced(servers.owner_database_url))
    system = _System(servers, settings, folder)
    fermata = Path(sys.executable).with_name("fermata")
    environment = {**os.environ, **given}
    try:
        for arguments in (["scheduler"], *[["worker", QUEUE]] * WORKERS):
            system.children.append(spawn([fermata, *arguments], on_parent_death=signal.SIGKILL, env=environment))
        yield system
    finally:
        for child in system.children:
            if child.poll() is None:
                child.terminate()
        for child in system.children:
            stop(child, [(signal.SIGTERM, 15.0)])


async def _priced(owner_url: str) -> None:
    """A book in which the null kind has a price."""
    connection = await asyncpg.connect(dsn(owner_url))
    try:
        document = await connection.fetchval("SELECT document FROM price_books ORDER BY book_id DESC LIMIT 1")
        if "[null]" not in document:
            document += "\n[null]\nbase = 1\n"
            await connection.execute(
                "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
                "VALUES ($1, md5($1), fermata_now(), 'benchmark', 'null jobs', fermata_now())",
                document,
            )
    finally:
        await connection.close()


async def _prepared(settings: Settings) -> None:
    """Accounts with credits, and workers that are there."""
    async with opened_client(settings) as (_, store):
        for first in range(0, ACCOUNTS, 50):
            await asyncio.gather(*(_account(store, number) for number in range(first, first + 50)))
    await _until(settings, f"SELECT count(*) = {WORKERS} FROM workers WHERE stopped_at IS NULL")


async def _account(store: object, number: int) -> None:
    await store.accounts.create(f"path-{number}", "benchmark")  # type: ignore[attr-defined]
    await store.accounts.grant(f"path-{number}", 10**6, "start", "benchmark")  # type: ignore[attr-defined]


async def _null_jobs(settings: Settings, _: Path) -> tuple[float, float, float]:
    """(jobs a second from the first submit to the last settle, hints a job, ids a hint)."""
    async with opened_client(settings) as (client, _store):
        before = await _counts_now(settings)
        started = time.monotonic()
        await _submit_backlog(client)
        # Seldom: whoever looks at tables that fill and empty pays for it, and so does who is measured.
        await _until(settings, "SELECT NOT EXISTS (SELECT FROM due) AND NOT EXISTS (SELECT FROM live)", 0.1)
        seconds = time.monotonic() - started
        after = await _counts_now(settings)
    hinted, hints, jobs = (now - then for now, then in zip(after, before, strict=True))
    assert jobs == JOBS, f"{jobs} of {JOBS} jobs succeeded"
    return JOBS / seconds, hinted / JOBS, hinted / max(hints, 1)


async def _submit_backlog(client: Client) -> None:
    for first in range(0, JOBS, SUBMIT_AT_ONCE):
        asked = [JobRequest(f"path-{number % ACCOUNTS}", QUEUE) for number in range(first, first + SUBMIT_AT_ONCE)]
        for answer in await client.submit_many(asked, "benchmark"):
            if isinstance(answer, Exception):
                raise answer


async def _pickups(settings: Settings) -> list[float]:
    """Milliseconds from a submit's COMMIT to its claim, by the database's clock."""
    async with opened_client(settings) as (client, _):
        jobs = []
        for number in range(PICKUPS):
            job = await client.submit(JobRequest(f"path-{number}", QUEUE), "benchmark")
            jobs.append(job.job_id)
            await _until(settings, f"SELECT ended_at IS NOT NULL FROM jobs WHERE job_id = '{job.job_id}'")
    connection = await asyncpg.connect(dsn(_url(settings)))
    try:
        rows = await connection.fetch(
            "SELECT extract(epoch FROM started_at - created_at) * 1000 AS ms FROM jobs WHERE job_id = ANY($1)", jobs
        )
    finally:
        await connection.close()
    return [float(row["ms"]) for row in rows]


async def _counts_now(settings: Settings) -> tuple[int, int, int]:
    """As of after this call: the scheduler leaves its figures every few seconds."""
    connection = await asyncpg.connect(dsn(_url(settings)))
    now = await connection.fetchval("SELECT fermata_now()::text")
    await connection.close()
    await _until(settings, f"SELECT ran_at > '{now}' FROM duty_runs WHERE duty = 'scheduler'")
    return await _counts(settings)


async def _counts(settings: Settings) -> tuple[int, int, int]:
    connection = await asyncpg.connect(dsn(_url(settings)))
    try:
        row = await connection.fetchrow(
            "SELECT coalesce((body->>'hinted')::bigint, 0), coalesce((body->>'hints')::bigint, 0), "
            "(SELECT count(*) FROM jobs WHERE state = 'succeeded') FROM duty_runs WHERE duty = 'scheduler'"
        )
        return (row[0], row[1], row[2])
    finally:
        await connection.close()


async def _until(settings: Settings, sql: str, look_seconds: float = 0.01) -> None:
    """Wait until a statement says true."""
    connection = await asyncpg.connect(dsn(_url(settings)))
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not await connection.fetchval(sql):
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:.0f} s: {sql}"
            await asyncio.sleep(look_seconds)
    finally:
        await connection.close()


def _url(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


# --- the reference


def _plain_dramatiq(servers: LocalServers, folder: Path) -> float:
    """Messages a second of a plain dramatiq actor, from the first enqueue to the last INCR."""
    (folder / "plain_actor.py").write_text(PLAIN_ACTOR)
    environment = {**os.environ, "PLAIN_URL": servers.redis_url, "PYTHONPATH": str(folder)}
    dramatiq = Path(sys.executable).with_name("dramatiq")
    child = spawn(
        [dramatiq, "plain_actor", "-p", "2", "-t", "8"],
        on_parent_death=signal.SIGTERM,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        script = (
            "import plain_actor as p, time\n"
            "p.client.delete('plain-count')\n"
            "p.plain.send()\n"
            "while int(p.client.get('plain-count') or 0) < 1: time.sleep(0.01)\n"
            f"started = time.monotonic()\nfor _ in range({JOBS}): p.plain.send()\n"
            f"while int(p.client.get('plain-count')) <= {JOBS}: time.sleep(0.01)\n"
            f"print({JOBS} / (time.monotonic() - started))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=True
        )
        return float(done.stdout)
    finally:
        stop(child, [(signal.SIGTERM, 15.0)])
