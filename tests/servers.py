"""Servers for tests: one PostgreSQL and one Valkey for the whole run, a fresh database for each test that asks.

Given by FERMATA_DATABASE_URL, FERMATA_OWNER_DATABASE_URL (a role that may create databases) and FERMATA_REDIS_URL,
else started here. Either way the databases are clones of a template that was migrated once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from time import monotonic

import asyncpg
from sqlalchemy import make_url

from config.settings import Settings, load
from worker.local.postgres import EmbeddedPostgres
from worker.local.processes import is_alive
from worker.local.roles import APP_ROLE, OWNER_ROLE, PRODUCT_ROLE, WORKER_ROLE, dsn
from worker.local.system import LocalServers, local_servers, migrated
from worker.local.waiting import finished

#: In the template the database's clock can be set ahead. Production refuses any other `fermata_now` than its own.
TEST_CLOCK = f"""
    CREATE TABLE public.test_clock (ahead interval NOT NULL);
    INSERT INTO public.test_clock VALUES ('0');
    GRANT SELECT ON public.test_clock TO PUBLIC;
    GRANT UPDATE ON public.test_clock TO {APP_ROLE};
    CREATE OR REPLACE FUNCTION public.fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        $$ SELECT clock_timestamp() + coalesce((SELECT ahead FROM public.test_clock), interval '0') $$;
"""

MEMORY = Path("/dev/shm")
#: Containers often have 64 MB there, too little for a PostgreSQL.
MEMORY_BYTES_MIN = 2 * 1024**3
SCRATCH = "fermata-test-"


@dataclass(frozen=True, slots=True)
class Servers:
    """What a test process needs to know. Plain text throughout, since xdist carries it to its workers."""

    #: Both name the server's own database; `Database` names a clone.
    app_url: str = field(repr=False)
    owner_url: str = field(repr=False)
    #: The app role's, where the servers were given by URL and there are no such roles.
    worker_url: str = field(repr=False)
    product_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    template: str


@dataclass(frozen=True, slots=True)
class Database:
    """One fresh, migrated database."""

    name: str
    #: As the app role, like everything that runs in production.
    url: str = field(repr=False)
    owner_url: str = field(repr=False)
    #: Empty where a test made the database without these roles.
    worker_url: str = field(default="", repr=False)
    product_url: str = field(default="", repr=False)

    @asynccontextmanager
    async def connection(self, *, as_owner: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """A plain asyncpg connection: what a test looks and meddles with behind the store's back."""
        connection = await asyncpg.connect(dsn(self.owner_url if as_owner else self.url))
        try:
            yield connection
        finally:
            await connection.close()

    async def advance(self, ahead: timedelta) -> None:
        """Let `fermata_now()` tell a time that much later than it did."""
        async with self.connection() as connection:
            await connection.execute("UPDATE test_clock SET ahead = ahead + $1", ahead)


def taken_from(environ: os._Environ[str]) -> dict[str, str]:
    """Every FERMATA_* variable, removed from the environment: what steers the suite must not steer what it tests."""
    return {name: environ.pop(name) for name in list(environ) if name.startswith("FERMATA_")}


@contextmanager
def running_servers(given: dict[str, str]) -> Iterator[Servers]:
    """The servers of one run, with the template made. `given` are the variables above, or nothing."""
    with scratch_folder() as folder:
        urls = {name: value for name, value in given.items() if name.endswith("_URL")}
        settings = load(urls, environment="test", data_dir=folder)
        # Without waiting for disks: each test's data are thrown away. Benchmarks and `up` do wait.
        with local_servers(settings, durable=False) as local:
            if local.postgres is not None:
                may_create_databases(local.postgres)
            servers = Servers(
                app_url=local.database_url,
                owner_url=local.owner_database_url,
                worker_url=_url_of(local, WORKER_ROLE),
                product_url=_url_of(local, PRODUCT_ROLE),
                redis_url=local.redis_url,
                template=f"fermata_test_{token_hex(4)}",
            )
            finished(_make_template(servers, local))
            try:
                yield servers
            finally:
                if local.postgres is None:
                    finished(_drop_all(servers))


def _url_of(local: LocalServers, role: str) -> str:
    return local.postgres.url(role) if local.postgres is not None else local.database_url


def may_create_databases(postgres: EmbeddedPostgres) -> None:
    """Let the owner clone templates, as whoever gives us URLs must."""
    finished(_statements(postgres.superuser_url, f"ALTER ROLE {OWNER_ROLE} CREATEDB"))


@contextmanager
def own_servers() -> Iterator[LocalServers]:
    """Servers that a test may kill, migrated, for itself alone."""
    with scratch_folder() as folder, local_servers(Settings(data_dir=folder), durable=False) as local:
        yield migrated(local)


@asynccontextmanager
async def fresh_database(servers: Servers) -> AsyncIterator[Database]:
    """A clone of the template, dropped afterwards whoever is still connected."""
    name = f"{servers.template}_{token_hex(4)}"
    # FILE_COPY: 15 ms a clone, WAL_LOG 20 to 28 ms (PostgreSQL 18 in memory, 40 tables, medians of 12).
    await _statements(servers.owner_url, f"CREATE DATABASE {name} TEMPLATE {servers.template} STRATEGY file_copy")
    try:
        urls = (servers.app_url, servers.owner_url, servers.worker_url, servers.product_url)
        yield Database(name, *(_at(url, name) for url in urls))
    finally:
        await drop_database(servers.owner_url, name)


async def drop_database(owner_url: str, name: str) -> None:
    """Drop it whoever is still connected; only autovacuum, which is nobody's to end, is waited for."""
    deadline = monotonic() + 20
    while True:
        try:
            return await _statements(owner_url, f"DROP DATABASE {name} WITH (FORCE)")
        except asyncpg.InsufficientPrivilegeError:
            if monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that goes with the block, in memory where there is room. The server's own user can walk into it.

    In memory a clone takes 15 ms and a first start 0.6 s whatever the neighbours do; on a busy disk 600 ms and 2.4 s.
    """
    parent = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN else tempfile.gettempdir()
    _remove_orphans(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=parent))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(parent: Path) -> None:
    """Delete what runs that were killed left in memory."""
    for folder in parent.glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        with suppress(FileNotFoundError):  # two runs may clean up at once
            if folder.stat().st_uid == os.geteuid() and pid.isdigit() and not is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


async def _make_template(servers: Servers, local: LocalServers) -> None:
    await _statements(servers.owner_url, f"CREATE DATABASE {servers.template}")
    template_url = _at(servers.owner_url, servers.template)
    migrated(replace(local, owner_database_url=template_url))
    await _statements(template_url, TEST_CLOCK)


async def _drop_all(servers: Servers) -> None:
    connection = await asyncpg.connect(dsn(servers.owner_url))
    try:
        names = await connection.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", servers.template
        )
        for (name,) in names:
            await drop_database(servers.owner_url, name)
    finally:
        await connection.close()


async def _statements(url: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def _at(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
