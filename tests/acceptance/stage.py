"""A whole deployment for one test: real worker and scheduler processes on a database and a Redis of its own.

The test plays the pipeline (it submits through our own client), the provider (it opens gates) and fate (it kills,
freezes and floods). Times are short, so that what takes a deployment half a minute takes a test two seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from config.settings import Settings, load
from tests import kinds
from tests.servers import Database
from worker.artifacts.folder import FolderStore
from worker.boot import Store, opened_client
from worker.client import Client, JobRequest
from worker.local.processes import is_alive, spawn, stop
from worker.local.roles import dsn
from worker.store.ops import Controls

ROOT = Path(__file__).parents[2]
ACTOR = "test"

#: A lease that lapses within a test, but not because a busy machine paused its worker for a moment.
LEASE_SECONDS = 2.0
SHORT_TIMES = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "RENEW_SECONDS": "0.5",
    "IDLE_TRANSACTION_SECONDS": "1",
    "LOCK_TIMEOUT_SECONDS": "1.5",
    "CONNECT_SECONDS": "2",
    "REAP_TICK_SECONDS": "0.1",
    "DISPATCH_TICK_SECONDS": "0.1",
    "EXPIRE_TICK_SECONDS": "0.3",
    "SWEEP_TICK_SECONDS": "0.3",
    "HINT_REPEAT_SECONDS": "1",
    "PROGRESS_SECONDS": "0.1",
    "BACKOFF_FIRST_SECONDS": "0.1",
    "BACKOFF_MAX_SECONDS": "0.4",
    "DRAIN_SECONDS": "10",
}


class Zygote:
    """Where a run's processes are forked from. See `tests.acceptance.zygote`; `preload`: further modules."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._child = spawn(
            [sys.executable, "-m", "tests.acceptance.zygote", *preload],
            on_parent_death=signal.SIGKILL,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, what: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Fork a process, by an order of that sort; returns its id."""
        return int(self._ask({what: list(argv), "env": dict(environment), "log": str(log)})["pid"])

    def reap(self, pid: int) -> int:
        """The exit code of a process that has ended."""
        return int(self._ask({"reap": pid})["code"])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def close(self) -> None:
        """End it, and with it whatever it started."""
        stop(self._child, [(signal.SIGTERM, 5)])


@dataclass(slots=True)
class Process:
    """One `fermata` process. Its id is its own until `wait` or `end` has reaped it."""

    pid: int
    log: Path
    reap: Callable[[int], int]
    code: int | None = None

    @property
    def alive(self) -> bool:
        return self.code is None and is_alive(self.pid)

    @property
    def said(self) -> str:
        """What it logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> int:
        """As a crash would."""
        return self.end()

    @property
    def frozen(self) -> bool:
        """Whether it is stopped."""
        return "\nState:\tT" in Path(f"/proc/{self.pid}/status").read_text()

    async def ended(self, seconds: float = 30) -> int:
        """Wait until it has ended; its exit code, negative for a signal."""
        await until(lambda: not self.alive, f"process ended; it said:\n{self.said}", seconds)
        return self._reaped()

    def end(self) -> int:
        """Kill it if it is alive; its exit code."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while is_alive(self.pid) and time.monotonic() < deadline:
                time.sleep(0.005)
        return self._reaped()

    def _reaped(self) -> int:
        if self.code is None:
            self.code = self.reap(self.pid)
        return self.code


@dataclass(frozen=True, slots=True)
class JobSeen:
    """A job as its rows tell it."""

    state: str
    reason: str | None
    message: str | None
    quoted: int
    charged: int | None
    partial: bool
    attempt: int
    failures: int
    outputs: Sequence[str] | None
    #: How each attempt ended, in order.
    endings: Sequence[str]


@dataclass(slots=True)
class Stage:
    """A deployment under trial."""

    database: Database
    environment: Mapping[str, str]
    folder: Path
    settings: Settings
    client: Client
    store: Store
    zygote: Zygote
    rows: asyncpg.Connection
    processes: list[Process] = field(default_factory=list)

    # --- processes

    def worker(self, *queues: str, **settings: object) -> Process:
        """Start a worker. `settings` by their names in lower case; `failpoints` too."""
        return self._start(["worker", *queues], self._as_worker(settings))

    def scheduler(self, **settings: object) -> Process:
        """Start a scheduler."""
        return self._start(["scheduler"], self._as_worker(settings))

    def api(self, **settings: object) -> Process:
        """Start an API process, on a port that the test names."""
        return self._start(["api"], settings)

    def step(self, name: str, subject: str, **settings: object) -> Process:
        """Start a process that does one step of `crash_steps`."""
        return self._start([name, subject], {"database_url": dsn(self.database.url), **settings}, "step")

    def script(self, *argv: str, **settings: object) -> Process:
        """Start the installed script itself."""
        return self._spawned([Path(sys.executable).with_name("fermata"), *argv], argv[0], settings)

    def python(self, source: str, **settings: object) -> Process:
        """Start a Python program of the test's own, with our environment."""
        return self._spawned([sys.executable, "-c", source], "python", settings)

    def _spawned(self, argv: Sequence[str | Path], name: str, settings: Mapping[str, object]) -> Process:
        log = self._next_log(name)
        with log.open("wb") as output:
            child = spawn(
                argv,
                on_parent_death=signal.SIGKILL,
                cwd=ROOT,
                env=self._environment(settings),
                stdout=output,
                stderr=output,
            )
        return self._known(Process(child.pid, log, lambda _: child.wait(10)))

    def forked(self, *argv: str, **settings: object) -> Process:
        """Start a `fermata` verb with exactly these settings."""
        return self._start(argv, settings)

    def _start(self, argv: Sequence[str], settings: Mapping[str, object], what: str = "argv") -> Process:
        log = self._next_log(argv[0])
        pid = self.zygote.start(what, argv, self._environment(settings), log)
        return self._known(Process(pid, log, self.zygote.reap))

    def _as_worker(self, settings: Mapping[str, object]) -> Mapping[str, object]:
        """Unless the test leads it elsewhere, as the role that sets no prices."""
        return {"database_url": dsn(self.database.worker_url or self.database.url), **settings}

    def _environment(self, settings: Mapping[str, object]) -> dict[str, str]:
        return {**self.environment, **{f"FERMATA_{name.upper()}": str(value) for name, value in settings.items()}}

    def _next_log(self, name: str) -> Path:
        return self.folder / f"{len(self.processes)}-{name}.log"

    def _known(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    # --- the pipeline

    async def account(self, account_id: str = "ada", credits: int = 1000, **more: Any) -> str:  # noqa: A002
        """An account with that many granted credits."""
        await self.store.accounts.create(account_id, ACTOR)
        if credits:
            await self.store.accounts.grant(account_id, credits, f"start-{len(more)}", ACTOR, **more)
        return account_id

    async def submit(self, kind: str = "null", account_id: str = "ada", **more: Any) -> UUID:
        """Submit a job; what is no option of `JobRequest` is a parameter of its kind."""
        options = {name: more.pop(name) for name in list(more) if name in JobRequest.__dataclass_fields__}
        submitted = await self.client.submit(JobRequest(account_id, kind, more, **options), ACTOR)
        return UUID(str(submitted.job_id))

    async def submit_many(self, count: int, kind: str = "null", account_id: str = "ada", **params: Any) -> list[UUID]:
        """That many at once."""
        return list(await asyncio.gather(*(self.submit(kind, account_id, **params) for _ in range(count))))

    def gate(self, name: str = "gate") -> Path:
        """A gate's file, not there yet: `touch` opens it."""
        return self.folder / name

    # --- ops and fate

    @property
    def controls(self) -> Controls:
        """What ops pause and resume with."""
        return Controls(self.store.engine, self.client.kinds)

    async def end_cycle(self, account_id: str) -> None:
        """Bring forward the end of the account's running cycle to now, and of all that ends with it.

        The next one begins here, so here is its anchor.
        """
        async with self.database.connection(as_owner=True) as owner, owner.transaction():
            await owner.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE", account_id)
            now = await owner.fetchval("SELECT fermata_now()")
            for statement in (
                "UPDATE lots SET expires_at = $2 WHERE account_id = $1 AND expires_at > $2 AND (source = 'subscription'"
                "  OR expires_at = (SELECT cycle_ends_at FROM accounts WHERE account_id = $1))",
                "UPDATE subscriptions SET anchor = $2 WHERE account_id = $1"
                "  AND $2 < (SELECT max(ends_at) FROM cycles WHERE account_id = $1)",
                "UPDATE cycles SET ends_at = $2 WHERE account_id = $1 AND ends_at > $2",
                "UPDATE accounts SET cycle_ends_at = $2, look_at = $2 WHERE account_id = $1 AND cycle_ends_at > $2",
            ):
                await owner.execute(statement, account_id, now)

    async def end_lives(self) -> None:
        """Bring forward the `ends_by` of every job that is queued or waits to now."""
        async with self.database.connection(as_owner=True) as owner, owner.transaction():
            await owner.execute("SELECT 1 FROM accounts ORDER BY account_id FOR NO KEY UPDATE")
            for table in ("due", "parked"):
                await owner.execute(
                    f"WITH now AS (UPDATE {table} SET ends_by = LEAST(ends_by, fermata_now())"
                    f" RETURNING account_id, job_id, ends_by)"
                    " UPDATE jobs AS j SET ends_by = now.ends_by FROM now"
                    " WHERE j.account_id = now.account_id AND j.job_id = now.job_id"
                )

    # --- looking

    @property
    def artifacts(self) -> Path:
        """Where audio lies."""
        assert isinstance(self.client.artifacts, FolderStore)
        return self.client.artifacts.root

    def outputs(self, job_id: UUID) -> list[Path]:
        """The files of a job's outputs, whoever made them, sold or not."""
        return [path for path in self.artifacts.glob(f"outputs/{job_id}/*/*") if path.suffix != ".part"]

    def attempt_folders(self) -> list[Path]:
        """Every folder of an attempt."""
        return [*self.artifacts.glob("outputs/*/*"), *self.artifacts.glob("work/*")]

    async def job(self, job_id: UUID) -> JobSeen:
        """The job as it stands."""
        row = await self.rows.fetchrow(
            "SELECT state, reason, message, quoted, charged, partial, attempt, failures, "
            "  jsonb_path_query_array(outputs, '$[*].name') #>> '{}' AS outputs, "
            "  (SELECT coalesce(array_agg(ending ORDER BY a.attempt), '{}') FROM attempts AS a "
            "   WHERE a.job_id = jobs.job_id) AS endings "
            "FROM jobs WHERE job_id = $1",
            job_id,
        )
        values = dict(row)
        outputs = values.pop("outputs")
        return JobSeen(**values, outputs=None if outputs is None else json.loads(outputs))

    async def becomes(self, job_id: UUID, state: str, seconds: float = 30) -> JobSeen:
        """Wait until the job is in that state."""
        await self.until(lambda: self._is(job_id, state), f"job is {state}", seconds)
        return await self.job(job_id)

    async def _is(self, job_id: UUID, state: str) -> bool:
        return bool(await self.value("SELECT state = $2 FROM jobs WHERE job_id = $1", job_id, state))

    async def all_ended(self, job_ids: Sequence[UUID], seconds: float = 60) -> list[JobSeen]:
        """Wait until these jobs have ended."""
        await self.until(
            lambda: self.value(
                "SELECT count(*) = 0 FROM jobs WHERE job_id = ANY($1) AND ended_at IS NULL", list(job_ids)
            ),
            "all jobs ended",
            seconds,
        )
        return [await self.job(job_id) for job_id in job_ids]

    async def value(self, sql: str, *values: Any) -> Any:
        """One value, behind the store's back."""
        return await self.rows.fetchval(sql, *values)

    async def cut(self, which: str) -> int:
        """End those connections of our processes, as the role that they run as; returns how many there were."""
        connection = await asyncpg.connect(dsn(self.database.worker_url or self.database.url))
        try:
            count: int = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() AND {which}"
            )
        finally:
            await connection.close()
        return count

    async def reconnect(self) -> None:
        """Look again after PostgreSQL was away."""
        await self.rows.close(timeout=1)
        self.rows = await asyncpg.connect(dsn(self.database.url))

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
        """Wait until it holds; else fail with what all processes said."""
        try:
            await until(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._all_said()}") from None

    async def balance(self, account_id: str = "ada") -> dict[str, int]:
        """The sums of the account's five buckets."""
        row = await self.rows.fetchrow(
            "SELECT coalesce(sum(available), 0)::bigint AS available, coalesce(sum(held), 0)::bigint AS held, "
            "coalesce(sum(spent), 0)::bigint AS spent, coalesce(sum(expired), 0)::bigint AS expired "
            "FROM lots WHERE account_id = $1",
            account_id,
        )
        return dict(row)

    def _all_said(self) -> str:
        return "\n".join(f"--- {process.log.name}\n{process.said[-6000:]}" for process in self.processes)

    async def jobs(self) -> str:
        """All jobs in a line each, for people."""
        rows = await self.rows.fetch("SELECT job_id, kind, state, reason, attempt, failures FROM jobs ORDER BY 1")
        return "\n".join(str(tuple(row)) for row in rows)


async def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Wait until `condition()`, awaited if it can be, is true; fail with `what` when it isn't by then."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if held if not isinstance(held, Awaitable) else await held:
            return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def opened_stage(
    database: Database, environment: Mapping[str, str], folder: Path, zygote: Zygote
) -> AsyncIterator[Stage]:
    """A stage, its prices in force, an account `ada` with 1000 credits. Ends every process it started."""
    short = {f"FERMATA_{name}": value for name, value in SHORT_TIMES.items()}
    environment = {**short, "FERMATA_EXTRA_KINDS": kinds.ALL, **environment}
    settings = load({name: value for name, value in environment.items() if name.startswith("FERMATA_")})
    await put_prices_in_force(database)
    async with opened_client(settings) as (client, store):
        rows = await asyncpg.connect(dsn(database.url))
        stage = Stage(database, environment, folder, settings, client, store, zygote, rows)
        try:
            await stage.account()
            yield stage
        finally:
            for process in stage.processes:
                process.end()
            await stage.rows.close(timeout=1)


async def put_prices_in_force(database: Database, more: str = "", **replaced: str) -> int:
    """A book of the shipped prices and those of the test kinds, from now on; returns its number.

    `more`: further tables. `replaced`: kinds whose table gets another one.
    """
    shipped, ours = ROOT / "config" / "prices.toml", Path(__file__).with_name("prices.toml")
    document = shipped.read_text() + ours.read_text() + more
    for kind, base in replaced.items():
        document = document.replace(f"[{kind}.output]\nbase = 10\n", f"[{kind}.output]\nbase = {base}\n")
    return await _put_in_force(database, "price_books", document)


async def put_plans_in_force(database: Database, *kinds: str) -> int:
    """A book of the shipped plans, each with these test kinds beside its own, from now on; returns its number."""
    document = (ROOT / "config" / "plans.toml").read_text()
    more = "".join(f', "{kind}"' for kind in kinds)
    return await _put_in_force(database, "plan_books", document.replace('"stem_split"]', f'"stem_split"{more}]'))


async def _put_in_force(database: Database, shelf: str, document: str) -> int:
    async with database.connection() as connection:
        return int(
            await connection.fetchval(
                f"INSERT INTO {shelf} (document, digest, effective_at, author, note, created_at) "
                "VALUES ($1, $2, fermata_now(), 'test', 'test kinds', fermata_now()) RETURNING book_id",
                document,
                hashlib.sha256(document.encode()).hexdigest(),
            )
        )
