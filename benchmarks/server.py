"""The server that is measured: our own, as `fermata up` starts it, waiting for the disk, its data on one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg

from config.settings import Settings
from worker.local.roles import OWNER_ROLE, dsn
from worker.local.system import DATA_DIR, LocalServers, local_servers, migrated
from worker.local.waiting import finished

#: Thrown away at the end.
FOLDER = DATA_DIR / "benchmarks"
DATABASE = "benchmark"


@contextmanager
def measured_servers() -> Iterator[LocalServers]:
    """Servers with a fresh, migrated database, whatever an earlier run left behind."""
    folder = FOLDER.resolve()
    with local_servers(Settings(data_dir=folder), durable=True) as servers:
        postgres = servers.postgres
        assert postgres is not None, "benchmarks measure a server of their own"
        assert file_system_of(postgres.data) not in ("tmpfs", "ramfs"), f"{postgres.data} lies in memory: no disk waits"
        finished(made_database(postgres.superuser_url, DATABASE, OWNER_ROLE))
        yield migrated(replace(servers, database_url=_at(postgres.app_url), owner_database_url=_at(postgres.owner_url)))
    postgres.remove()
    shutil.rmtree(folder, ignore_errors=True)


def file_system_of(path: Path) -> str:
    """The type of the file system that a path lies on."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"


def _at(url: str) -> str:
    return f"{url.rpartition('/')[0]}/{DATABASE}"


async def made_database(superuser_url: str, name: str, owner: str = "postgres") -> None:
    """Make an empty database of that name, whatever an earlier run left behind."""
    connection = await asyncpg.connect(dsn(superuser_url))
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name} OWNER {owner}")
    finally:
        await connection.close()
