"""The control: metering as it is usually built, under the same faults. Kept here only, to be measured beside ours.

dramatiq as it comes, its retries on; a middleware reserves before a message is processed and commits or refunds after
it, as its hooks invite to. Credits are two columns, changed by single atomic UPDATEs: nothing here is careless but the
design. `python -m tests.chaos.control` with CONTROL_REDIS and CONTROL_POSTGRES is one of its workers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Retries, ShutdownNotifications, TimeLimit

from tests.chaos.adversary import Act
from tests.servers import own_servers, scratch_folder
from worker.local.processes import spawn, stop
from worker.local.roles import dsn
from worker.local.system import LocalServers

PRICE = 10
GRANTED = 100_000
TABLES = """
    CREATE TABLE balance (available bigint NOT NULL, held bigint NOT NULL DEFAULT 0, spent bigint NOT NULL DEFAULT 0);
    INSERT INTO balance (available) VALUES (100000);
    CREATE TABLE naive_jobs (job_id bigint PRIMARY KEY, state text NOT NULL DEFAULT 'queued');
    CREATE TABLE charges (job_id bigint NOT NULL, at timestamptz NOT NULL DEFAULT now());
    GRANT ALL ON balance, naive_jobs, charges TO PUBLIC;
"""
RESERVE = "UPDATE balance SET available = available - 10, held = held + 10"
REFUND = "UPDATE balance SET available = available + 10, held = held - 10"
COMMIT = "UPDATE balance SET held = held - 10, spent = spent + 10"
#: As in our own run: jobs of 20 to 400 ms.
MILLISECONDS = (20, 60, 150, 400)


class Metering(dramatiq.Middleware):
    """Reserve before, commit or refund after."""

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        _do(RESERVE)

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None:
            _do(COMMIT, f"INSERT INTO charges (job_id) VALUES ({int(message.args[0])})")
        else:
            _do(REFUND)


def _do(*statements: str) -> None:
    """In one transaction, on a connection of its own: hooks are not told on which loop."""

    async def done() -> None:
        connection = await asyncpg.connect(os.environ["CONTROL_POSTGRES"], timeout=3)
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
        finally:
            await connection.close(timeout=1)

    asyncio.run(done())


def the_broker() -> tuple[RedisBroker, dramatiq.Actor[[int, int], None]]:
    """With the middleware that dramatiq brings for all this, heartbeats that lapse within seconds, and ours."""
    broker = RedisBroker(  # type: ignore[no-untyped-call]
        url=os.environ["CONTROL_REDIS"],
        middleware=[AgeLimit(), TimeLimit(), ShutdownNotifications(), Retries(min_backoff=100, max_backoff=400)],
        maintenance_chance=1_000_000,
        heartbeat_timeout=2_000,
    )
    broker.add_middleware(Metering())

    @dramatiq.actor(broker=broker, actor_name="sing")
    def sing(job_id: int, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)
        _do(f"UPDATE naive_jobs SET state = 'succeeded' WHERE job_id = {job_id}")

    return broker, sing


def main() -> None:
    """One worker process, until SIGTERM."""
    broker, _ = the_broker()
    worker = dramatiq.Worker(broker, worker_threads=4)
    worker.start()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    worker.stop()


@dataclass(slots=True)
class Losses:
    """What the control has lost."""

    jobs: int = 0
    lost_jobs: int = 0
    refused_submits: int = 0
    credits_granted: int = GRANTED
    credits_gone: int = 0
    charged_twice: int = 0
    charged_without_result: int = 0
    results_without_charge: int = 0
    faults: dict[str, int] = field(default_factory=dict)


#: What of the adversary's plan applies to it: its workers, Redis and PostgreSQL.
APPLIES = frozenset(
    {
        "kill_worker",
        "freeze_worker",
        "term_worker",
        "flush",
        "restart_redis",
        "redis_away",
        "fill_redis",
        "freeze_redis",
        "cut_connections",
        "restart_postgres",
        "postgres_away",
    }
)


def control(seed: int, acts: Sequence[Act], jobs: int) -> Losses:
    """The same plan, as far as it applies, while so many jobs are submitted."""
    with scratch_folder() as folder, own_servers() as local:
        return asyncio.run(_Control(local, folder, random.Random(f"control {seed}")).run(acts, jobs))


class _Control:
    def __init__(self, local: LocalServers, folder: Path, dice: random.Random) -> None:
        assert local.postgres is not None
        assert local.valkey is not None
        self._postgres, self._valkey, self._folder, self._dice = local.postgres, local.valkey, folder, dice
        os.environ["CONTROL_REDIS"], os.environ["CONTROL_POSTGRES"] = local.redis_url, dsn(local.database_url)
        self._owner = dsn(local.owner_database_url)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._losses = Losses()

    async def run(self, acts: Sequence[Act], jobs: int) -> Losses:
        owner = await asyncpg.connect(self._owner)
        await owner.execute(TABLES)
        await owner.close()
        for _ in range(3):
            self._workers.append(self._worker())
        keeping = asyncio.create_task(self._keep())
        submitting = asyncio.create_task(self._submit(jobs))
        try:
            for act in acts:
                if act.what in APPLIES:
                    await getattr(self, f"_{act.what}")()
                    self._losses.faults[act.what] = self._losses.faults.get(act.what, 0) + 1
                    await asyncio.sleep(max(act.gap_seconds, 0.3))
            await submitting
            await self._drain()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            for worker in self._workers:
                stop(worker, [(signal.SIGTERM, 3)])
        return await self._counted()

    def _worker(self) -> subprocess.Popen[bytes]:
        with (self._folder / "control.log").open("ab") as log:
            argv = [sys.executable, "-m", "tests.chaos.control"]
            return spawn(argv, on_parent_death=signal.SIGKILL, stdout=log, stderr=log)

    async def _keep(self) -> None:
        while True:
            for place, worker in enumerate(self._workers):
                if worker.poll() is not None:
                    self._workers[place] = self._worker()
            await asyncio.sleep(0.1)

    async def _submit(self, jobs: int) -> None:
        """The row first, then the message: a submit that fails at either is told so, and not counted as lost."""
        _, sing = the_broker()
        for job_id in range(jobs):
            try:
                await asyncio.to_thread(_do, f"INSERT INTO naive_jobs (job_id) VALUES ({job_id})")
                await asyncio.to_thread(sing.send, job_id, self._dice.choice(MILLISECONDS))
                self._losses.jobs += 1
            except Exception:  # whatever a driver calls it: the caller is told that it failed
                self._losses.refused_submits += 1
                await self._sql(f"DELETE FROM naive_jobs WHERE job_id = {job_id} AND state = 'queued'")
            await asyncio.sleep(0.1)

    async def _drain(self, seconds: float = 60) -> None:
        """Until nothing has changed for ten seconds: no job, no credit."""
        last, since, deadline = None, monotonic(), monotonic() + seconds
        while monotonic() < deadline and monotonic() - since < 10:
            now = await self._sql(
                "SELECT (SELECT count(*) FROM naive_jobs WHERE state = 'queued'), available FROM balance"
            )
            if now != last:
                last, since = now, monotonic()
            await asyncio.sleep(0.5)

    async def _counted(self) -> Losses:
        losses = self._losses
        ((queued,),) = await self._sql("SELECT count(*) FROM naive_jobs WHERE state = 'queued'")
        ((available,),) = await self._sql("SELECT available FROM balance")
        ((twice, without_result),) = await self._sql(
            "SELECT count(*) FILTER (WHERE times > 1), count(*) FILTER (WHERE state <> 'succeeded') "
            "FROM (SELECT job_id, count(*) AS times FROM charges GROUP BY 1) AS c JOIN naive_jobs USING (job_id)"
        )
        ((without_charge, succeeded),) = await self._sql(
            "SELECT count(*) FILTER (WHERE NOT EXISTS (SELECT FROM charges AS c WHERE c.job_id = j.job_id)), count(*) "
            "FROM naive_jobs AS j WHERE state = 'succeeded'"
        )
        losses.lost_jobs = queued
        losses.credits_gone = GRANTED - available - PRICE * succeeded
        losses.charged_twice, losses.charged_without_result = twice, without_result
        losses.results_without_charge = without_charge
        return losses

    async def _sql(self, sql: str) -> list[tuple[Any, ...]]:
        for _ in range(200):
            try:
                connection = await asyncpg.connect(os.environ["CONTROL_POSTGRES"], timeout=3)
                try:
                    return [tuple(row) for row in await connection.fetch(sql)]
                finally:
                    await connection.close(timeout=1)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await asyncio.sleep(0.1)
        raise TimeoutError("PostgreSQL does not come back")

    # --- the faults, each as `faults` does it

    async def _kill_worker(self) -> None:
        self._dice.choice(self._workers).kill()

    async def _freeze_worker(self) -> None:
        worker = self._dice.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(3)
        worker.send_signal(signal.SIGCONT)

    async def _term_worker(self) -> None:
        self._dice.choice(self._workers).terminate()

    async def _flush(self) -> None:
        with redis.Redis.from_url(self._valkey.url()) as client:
            client.flushall()

    async def _restart_redis(self) -> None:
        await self._away(self._valkey, 0)

    async def _redis_away(self) -> None:
        await self._away(self._valkey, 3)

    async def _away(self, server: Any, seconds: float) -> None:
        server.kill()
        await asyncio.sleep(seconds)
        server.launch()
        while not server.is_ready():
            if server.pid is None:
                server.launch()
            await asyncio.sleep(0.05)

    async def _fill_redis(self) -> None:
        with redis.Redis.from_url(self._valkey.url()) as client:
            client.config_set("maxmemory", 1)
            await asyncio.sleep(2)
            client.config_set("maxmemory", 0)

    async def _freeze_redis(self) -> None:
        pid = self._valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(3)
        os.kill(pid, signal.SIGCONT)

    async def _cut_connections(self) -> None:
        await self._sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE usename = current_user AND pid <> pg_backend_pid()"
        )

    async def _restart_postgres(self) -> None:
        await self._away(self._postgres, 0)

    async def _postgres_away(self) -> None:
        await self._away(self._postgres, 3)


if __name__ == "__main__":
    main()
