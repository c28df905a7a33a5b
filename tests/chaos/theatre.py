"""Where it is played: PostgreSQL and Valkey of its own behind proxies, workers, schedulers and APIs that are started
again whenever they die, and a chronicle of what happened."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Any

import asyncpg
import redis
import redis.asyncio
from sqlalchemy import make_url

from tasks.registry import registry
from tests.acceptance.exactness import broken_rules
from tests.acceptance.stage import Process, Stage, Zygote, opened_stage, put_plans_in_force, put_prices_in_force
from tests.chaos import kinds
from tests.integration.proxy import Wire, laid
from tests.servers import TEST_CLOCK, Database
from worker.local.ports import free_port
from worker.local.postgres import EmbeddedPostgres
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.local.valkey import EmbeddedValkey
from worker.pricing import quoted_usage_of
from worker.store.audit import audit

EVENTS_KEPT = 40
#: How long anything may take that has to come: a starved machine is slow, and no promise is about its speed.
PATIENT_SECONDS = 120.0
#: Settings of every process here, beside those of the acceptance tests.
TIMES = {
    "SLOTS": "4",
    "DELIVER_TICK_SECONDS": "0.1",
    "CYCLES_TICK_SECONDS": "0.3",
    "HINT_REPEAT_SECONDS": "3",
    "NOTIFY_TICK_SECONDS": "2",
    "PRUNE_TICK_SECONDS": "5",
    "STATEMENT_TIMEOUT_SECONDS": "4",
    "WEBHOOK_PRIVATE_TARGETS": "true",
    "WEBHOOK_TIMEOUT_SECONDS": "1",
    "WEBHOOK_BACKOFF_FIRST_SECONDS": "0.2",
}
WORKERS, SCHEDULERS, APIS = ("worker-1", "worker-2", "worker-3"), ("scheduler-1", "scheduler-2"), ("api-1", "api-2")
#: What the dynamic linker is told, so that a worker's clock goes wrong; time that only passes stays right.
FAKETIME = "libfaketime.so.1"


@dataclass(slots=True)
class Chronicle:
    """What happened, counted and, of late, in order."""

    started: float = field(default_factory=monotonic)
    faults: Counter[str] = field(default_factory=Counter)
    #: What the plan asked for and did not get, each with its reason.
    not_done: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    looks: int = 0

    def note(self, event: str) -> None:
        """One line of it."""
        self.latest.append(f"{monotonic() - self.started:7.2f} s  {event}")

    def fault(self, kind: str, detail: str = "") -> None:
        """A fault was done."""
        self.faults[kind] += 1
        self.note(f"{kind} {detail}".rstrip())

    def left_undone(self, kind: str, reason: str) -> None:
        """A fault of the plan could not be done: nobody may take it for one that was withstood."""
        self.not_done[f"{kind}, because {reason}"] += 1
        self.note(f"not done: {kind}, because {reason}")

    def violated(self, what: str) -> None:
        """A promise is broken."""
        self.violations.append(what)
        self.note(f"VIOLATION {what}")


@dataclass(slots=True)
class Theatre:
    """The whole deployment under trial."""

    stage: Stage
    local: LocalServers
    to_postgres: Wire
    to_redis: Wire
    ports: Mapping[str, int]
    pool: asyncpg.Pool
    chronicle: Chronicle = field(default_factory=Chronicle)
    cast: dict[str, Process] = field(default_factory=dict)
    #: Whom the adversary has killed, or told to go: that they end is no finding.
    doomed: set[int] = field(default_factory=set)
    #: Of those, whom it killed itself: they did not die at a named step.
    killed: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    #: Jobs that had not ended at the last look.
    unfinished: int = 0
    #: By how many seconds the database's clock is ahead, at least and at most: more while it is being set.
    ahead_seconds: tuple[float, float] = (0.0, 0.0)
    #: One fault at a time for each server.
    postgres_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    redis_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clock_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def postgres(self) -> EmbeddedPostgres:
        assert self.local.postgres is not None
        return self.local.postgres

    @property
    def valkey(self) -> EmbeddedValkey:
        assert self.local.valkey is not None
        return self.local.valkey

    @property
    def redis(self) -> redis.asyncio.Redis:
        """Straight to it, past the proxy."""
        return redis.asyncio.Redis.from_url(self.valkey.url(), socket_timeout=2, socket_connect_timeout=2)

    # --- the cast

    def enter(self, name: str, **settings: object) -> Process:
        """Start a member of the cast; one that is still there is ended first."""
        if (before := self.cast.get(name)) is not None and before.alive:
            self._dooms(before)
            before.end()
        role = name.partition("-")[0]
        if role == "api":
            settings = {"api_port": self.ports[name], "database_url": self._way(self.stage.database.url), **settings}
        else:
            settings = {"database_url": self._way(self.stage.database.worker_url), **settings}
        self.cast[name] = self.stage.forked(role, **settings)
        return self.cast[name]

    def enter_with_another_clock(self, name: str, offset: str) -> bool:
        """A worker whose clock is off by that much, from a process of its own; False where there is no libfaketime."""
        library = faketime_library()
        if library is None:
            return False
        if name in self.cast:
            self._dooms(self.cast[name])
            self.cast[name].end()
        environment = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        self.stage.environment = {**self.stage.environment, **environment}
        try:
            self.cast[name] = self.stage.script("worker", database_url=self._way(self.stage.database.worker_url))
        finally:
            self.stage.environment = {k: v for k, v in self.stage.environment.items() if k not in environment}
        return True

    def _way(self, url: str) -> str:
        return dsn(self.to_postgres.through(url))

    async def keep_the_cast(self) -> None:
        """Start whoever has died again, until cancelled."""
        while True:
            for name, process in list(self.cast.items()):
                if not process.alive:
                    code = process.end()
                    self.chronicle.note(f"{name} ended with {code}, started again")
                    self.chronicle.ends[f"{name.partition('-')[0]} {code}"] += 1
                    self._judge_end(name, process, code)
                    self.enter(name)
            await asyncio.sleep(0.05)

    def _judge_end(self, name: str, process: Process, code: int) -> None:
        """Whom the adversary killed is dead; whom it told to go leaves in order; nobody else ends at all."""
        expected = {-signal.SIGKILL: self.doomed, 0: self.leaving, -signal.SIGTERM: self.leaving}
        if process.pid not in expected.get(code, ()):
            self.chronicle.violated(f"{name} ended by itself with {code}: {process.said[-1500:]}")

    def kill(self, process: Process) -> None:
        """kill -9."""
        self._dooms(process)
        process.send(signal.SIGKILL)

    def _dooms(self, process: Process) -> None:
        self.doomed.add(process.pid)
        self.killed.add(process.pid)

    def tell_to_go(self, process: Process) -> None:
        """SIGTERM. One that has not come to its handler yet dies of it, and an API's server sends it to itself."""
        self.leaving.add(process.pid)
        process.send(signal.SIGTERM)

    # --- looking

    def clock(self) -> tuple[float, float]:
        """The earliest and the latest that it can be by the database's clock, in seconds since 1970."""
        least, most = self.ahead_seconds
        return time() + least, time() + most

    async def ask(self, sql: str, *values: Any, seconds: float = 150.0) -> list[asyncpg.Record]:
        """Rows, straight from PostgreSQL; waits for it while it is away."""
        deadline = monotonic() + seconds
        while True:
            try:
                async with self.pool.acquire(timeout=3) as connection:
                    rows: list[asyncpg.Record] = await connection.fetch(sql, *values, timeout=10)
                    return rows
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def value(self, sql: str, *values: Any) -> Any:
        """One value of it."""
        return (await self.ask(sql, *values))[0][0]

    async def until(
        self, sql: str, *values: Any, seconds: float = PATIENT_SECONDS, look_seconds: float = 0.02
    ) -> float:
        """Wait until the query says true; how long that took. Raises `TimeoutError`."""
        started = monotonic()
        while not await self.value(sql, *values):
            if monotonic() - started > seconds:
                raise TimeoutError(f"not within {seconds:g} s: {sql} {values}")
            await asyncio.sleep(look_seconds)
        return monotonic() - started

    async def look_for_violations(self, pause_seconds: float = 1.0) -> None:
        """Ask the independent questions again and again, until cancelled."""
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                async with self.pool.acquire(timeout=3) as connection:
                    found = await broken_rules(connection)
                    self.unfinished = await connection.fetchval("SELECT count(*) FROM jobs WHERE ended_at IS NULL")
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                continue
            self.chronicle.looks += 1
            for rule, rows in found.items():
                self.chronicle.violated(f"{rule}: {rows[0]}")

    async def audit(self) -> None:
        """The product's own audit, and the independent questions once more."""
        async with self.pool.acquire() as connection:
            for rule, rows in (await broken_rules(connection)).items():
                self.chronicle.violated(f"{rule}: {rows[0]}")
        usage = quoted_usage_of(registry(kinds.ALL))
        for violation in (await audit(self.stage.store.engine, quoted_usage=usage)).violations:
            self.chronicle.violated(f"audit: {violation}")

    def said(self, pattern: str) -> int:
        """How often all processes, the dead ones too, said something."""
        return sum(len(re.findall(pattern, process.said)) for process in self.stage.processes)


@asynccontextmanager
async def opened_theatre(local: LocalServers, folder: Path) -> AsyncIterator[Theatre]:
    """Everything but the cast. Ends every process that was started."""
    assert local.postgres is not None
    assert local.valkey is not None
    postgres, valkey = local.postgres, local.valkey
    database = Database(
        local.database_url.rpartition("/")[2], local.database_url, local.owner_database_url, postgres.worker_url
    )
    async with AsyncExitStack() as stack:
        async with database.connection(as_owner=True) as connection:
            await connection.execute(TEST_CLOCK)
        url = make_url(local.database_url)
        to_postgres, to_redis = Wire("127.0.0.1", url.port or 5432), Wire("127.0.0.1", valkey.port or 6379)
        await stack.enter_async_context(laid(to_postgres))
        await stack.enter_async_context(laid(to_redis))
        zygote = Zygote(preload=("worker.web.app", "tests.chaos.kinds"))
        stack.callback(zygote.close)
        environment = {
            **{f"FERMATA_{name}": value for name, value in TIMES.items()},
            "PATH": os.environ.get("PATH", os.defpath),
            "FERMATA_ENVIRONMENT": "test",
            "FERMATA_DATABASE_URL": dsn(to_postgres.through(database.url)),
            "FERMATA_REDIS_URL": to_redis.through(valkey.url()),
            "FERMATA_ARTIFACTS_URL": (folder / "artifacts").as_uri(),
            "FERMATA_DATA_DIR": str(folder / "data"),
            "FERMATA_EXTRA_KINDS": kinds.ALL,
        }
        stage = await stack.enter_async_context(opened_stage(database, environment, folder, zygote))
        await put_prices_in_force(database, kinds.PRICES)
        await put_plans_in_force(database, *[name.partition(":")[2].lower() for name in kinds.ALL.split(",")])
        pool = await stack.enter_async_context(asyncpg.create_pool(dsn(database.url), min_size=0, max_size=5))
        yield Theatre(stage, local, to_postgres, to_redis, {name: free_port() for name in APIS}, pool)


def faketime_library() -> Path | None:
    """Where Debian's package libfaketime has put it."""
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{FAKETIME}"))
    return found[0] if found else None


def tell(line: str = "") -> None:
    """Say something to whoever watches."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
