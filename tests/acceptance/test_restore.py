"""A restore is tried, not hoped for: a dump of a running system is put into an empty database, and its jobs go on."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import redis
from sqlalchemy import make_url

from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import Stage
from tests.integration.books import statement
from tests.servers import Database, Servers, drop_database
from worker.local.binaries import find_postgres
from worker.local.roles import dsn


@asynccontextmanager
async def restored(servers: Servers, database: Database, dump: Path) -> AsyncIterator[Database]:
    """An empty database, and in it what the dump has."""
    name = f"{database.name}_restored"
    await statement(servers.owner_url, f"CREATE DATABASE {name} TEMPLATE template0")

    def at(url: str) -> str:
        return make_url(url).set(database=name).render_as_string(hide_password=False) if url else url

    try:
        there = Database(name, *(at(url) for url in (database.url, database.owner_url, database.worker_url)))
        run("pg_restore", "--exit-on-error", f"--dbname={dsn(there.owner_url)}", str(dump))
        yield there
    finally:
        await drop_database(servers.owner_url, name)


def run(tool: str, *arguments: str) -> None:
    """One of PostgreSQL's own tools."""
    found = find_postgres().path(tool)
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def test_jobs_go_on_from_a_dump(stage: Stage, servers: Servers, tmp_path: Path) -> None:
    """Given a job that ended, one that runs and one that is queued, then in the restored database all have ended."""
    worker, scheduler = stage.worker("null", "gated", slots=1), stage.scheduler()
    ended = await stage.submit()
    await stage.becomes(ended, "succeeded")
    running = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(running, "running")
    queued = await stage.submit()
    dump = tmp_path / "fermata.dump"
    run("pg_dump", "--format=custom", f"--file={dump}", dsn(stage.database.owner_url))
    lost = await stage.submit()  # after the dump
    for process in (worker, scheduler):
        process.kill()
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        client.flushdb()
    async with restored(servers, stage.database, dump) as there:
        url = dsn(there.worker_url or there.url)
        stage.gate().touch()
        stage.worker("null", "gated", database_url=url)
        stage.scheduler(database_url=url)
        async with there.connection() as connection:
            await stage.until(
                lambda: connection.fetchval("SELECT bool_and(ended_at IS NOT NULL) FROM jobs"), "all jobs ended", 60
            )
            rows = await connection.fetch("SELECT job_id, state, charged FROM jobs")
        assert {ended, running, queued} == {row["job_id"] for row in rows}
        assert {("succeeded", 10)} == {(row["state"], row["charged"]) for row in rows}
        await assert_books_exact(there)
        for process in stage.processes:
            process.end()
    assert lost not in {row["job_id"] for row in rows}
