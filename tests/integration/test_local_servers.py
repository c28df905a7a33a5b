"""Our own PostgreSQL and Valkey: started, stopped, killed and found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis

from config.settings import Settings
from tests.proc import family_of, told_to, user_of
from tests.servers import scratch_folder
from tests.waiting import wait_until
from worker.local.postgres import OPEN_FOLDERS, EmbeddedPostgres
from worker.local.processes import ProcessError, is_alive
from worker.local.roles import APP_ROLE, OWNER_ROLE, ROLES, dsn, ensure_roles
from worker.local.system import environment_for, local_servers, migrated
from worker.local.valkey import EmbeddedValkey

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's PostgreSQL lies in the user's own folder")


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as path:
        yield path


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    yield server
    server.stop()


@pytest.fixture
def valkey(folder: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(folder / "valkey")
    yield server
    server.stop()


async def answer(url: str, sql: str) -> object:
    """One value from a database."""
    connection = await asyncpg.connect(dsn(url))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_postgres_keeps_data_passwords_and_port_over_a_kill(postgres: EmbeddedPostgres) -> None:
    """After SIGKILL the next start recovers, and who knew the old address needs no new one."""
    postgres.start()
    url = postgres.owner_url
    await answer(url, "CREATE TABLE kept (id int)")
    postgres.kill()
    assert (postgres.pid, postgres.exit_code) == (None, -signal.SIGKILL)
    postgres.start()
    assert postgres.owner_url == url
    assert await answer(url, "SELECT count(*) FROM kept") == 0


async def test_another_run_in_the_same_folder_finds_the_same_server(postgres: EmbeddedPostgres, folder: Path) -> None:
    """Data, passwords and, if it is free, the port."""
    postgres.start()
    url = postgres.app_url
    postgres.stop()
    again = EmbeddedPostgres(folder / "postgres", durable=False)
    again.start()
    assert again.app_url == url
    assert await answer(url, "SELECT current_user") == "fermata_app"
    again.stop()


async def test_the_app_role_owns_nothing(postgres: EmbeddedPostgres) -> None:
    """It may connect, and may not make a table, a role or a database."""
    postgres.start()
    for sql in ("CREATE TABLE t (id int)", "CREATE ROLE r", "CREATE DATABASE d", "CREATE SCHEMA s"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await answer(postgres.app_url, sql)
    assert await answer(postgres.owner_url, "CREATE TABLE t (id int)") is None
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await answer(postgres.app_url, "SELECT count(*) FROM t")


async def test_roles_can_be_made_by_who_is_no_superuser(postgres: EmbeddedPostgres) -> None:
    """A hosted PostgreSQL gives out a role that may create roles and databases, no more; repeating changes nothing."""
    postgres.start()
    await answer(postgres.superuser_url, "DROP DATABASE fermata")
    for role in ROLES:
        await answer(postgres.superuser_url, f"DROP ROLE {role}")
    await answer(postgres.superuser_url, "CREATE ROLE admin LOGIN CREATEROLE CREATEDB PASSWORD 'admin'")
    admin_url = f"postgresql+asyncpg://admin:admin@127.0.0.1:{postgres.port}/postgres"
    for _ in range(2):
        await ensure_roles(admin_url, {OWNER_ROLE: "it's owner's", APP_ROLE: "it's app's"})
    address = f"127.0.0.1:{postgres.port}/fermata"
    assert await answer(f"postgresql://fermata_app:it's app's@{address}", "SELECT current_user") == "fermata_app"
    await answer(f"postgresql://fermata_owner:it's owner's@{address}", "CREATE TABLE t (id int)")


async def test_a_password_never_reaches_the_servers_log(postgres: EmbeddedPostgres) -> None:
    """PostgreSQL writes down a statement that it refuses, whole: it must hold nothing that opens a door."""
    postgres.start()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ensure_roles(postgres.app_url, {APP_ROLE: "canary-of-a-password"})
    said = postgres.log.read_text(errors="replace")
    assert f"ALTER ROLE {APP_ROLE} LOGIN PASSWORD" in said
    assert "canary-of-a-password" not in said


async def test_a_password_that_can_be_written_in_two_ways_is_refused(postgres: EmbeddedPostgres) -> None:
    """Before anything is made."""
    with pytest.raises(ValueError, match="printable ASCII"):
        await ensure_roles(postgres.superuser_url, {APP_ROLE: "Lied-ü"})


async def test_a_wrong_password_is_refused(postgres: EmbeddedPostgres) -> None:
    """Everybody on the machine can reach 127.0.0.1."""
    postgres.start()
    wrong = f"postgresql://fermata_app:wrong@127.0.0.1:{postgres.port}/fermata"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await answer(wrong, "SELECT 1")


def test_the_password_stands_in_no_process_list(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    """Neither command line nor environment of the servers tells it."""
    postgres.start()
    valkey.start()
    passwords = [url.split("@")[0].rpartition(":")[2] for url in (postgres.superuser_url, valkey.url())]
    for pid in (postgres.pid, valkey.pid):
        assert pid is not None
        assert [password for password in passwords if password in told_to(pid)] == []


async def test_a_stale_lock_with_a_strangers_pid_does_not_stop_a_start(postgres: EmbeddedPostgres) -> None:
    """After a reboot the pid in `postmaster.pid` may be anybody's."""
    postgres.start()
    postgres.kill()
    lock = postgres.data / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    postgres.start()
    assert await answer(postgres.app_url, "SELECT 1") == 1


def test_a_half_made_data_folder_is_made_anew(postgres: EmbeddedPostgres) -> None:
    """Only a whole one gets the final name."""
    draft = postgres.data.with_name(f"{postgres.data.name}.new")
    draft.mkdir()
    (draft / "PG_VERSION").write_text("half")
    postgres.start()
    assert postgres.data.exists()
    assert not draft.exists()


def test_a_server_that_can_not_start_points_at_its_log(folder: Path) -> None:
    """The error names the file in which PostgreSQL said why."""
    server = EmbeddedPostgres(folder / "postgres", durable=False, options={"shared_buffers": "nonsense"})
    with pytest.raises(ProcessError, match=r"postgres\.log"):
        server.start()
    assert "nonsense" in server.log.read_text()


@as_root
def test_as_root_postgres_runs_as_nobody_even_for_a_closed_folder(folder: Path) -> None:
    """A checkout below /root keeps its data in a folder of the system, with a link that leads there."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "postgres", durable=False)
    try:
        server.start()
        assert server.home.parent in OPEN_FOLDERS
        assert (closed / "postgres" / "elsewhere").resolve() == server.home
        assert server.pid is not None
        assert user_of(server.pid) == "nobody"
    finally:
        server.remove()
    assert not server.home.exists()


def test_valkey_keeps_what_was_written_over_a_stop(valkey: EmbeddedValkey) -> None:
    """Hints are written to disk, and never dropped for want of memory."""
    valkey.start()
    with redis.Redis.from_url(valkey.url()) as client:
        client.set("hint", "1")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    url = valkey.url()
    valkey.restart()
    assert valkey.url() == url
    with redis.Redis.from_url(url) as client:
        assert client.get("hint") == b"1"


def test_valkey_refuses_who_has_no_password(valkey: EmbeddedValkey) -> None:
    """Everybody on the machine can reach 127.0.0.1."""
    valkey.start()
    with redis.Redis.from_url(f"redis://127.0.0.1:{valkey.port}") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_given_urls_start_nothing(folder: Path) -> None:
    """Who has servers gets no children."""
    settings = Settings(
        data_dir=folder,
        database_url="postgresql://app:secret@db/fermata",
        redis_url="redis://cache/0",
    )
    before = family_of(os.getpid())
    with local_servers(settings) as servers:
        assert (servers.postgres, servers.valkey) == (None, None)
        assert family_of(os.getpid()) == before
        assert environment_for(servers)["FERMATA_DATABASE_URL"] == "postgresql://app:secret@db/fermata"
        assert "secret" not in repr(servers)


def test_a_shell_that_still_names_an_earlier_run_is_told_so(folder: Path) -> None:
    """Which variables say where, and how to be rid of them."""
    gone = "postgresql://app:secret@127.0.0.1:1/fermata"
    settings = Settings(data_dir=folder, database_url=gone, redis_url="redis://127.0.0.1:1/0")
    with local_servers(settings) as servers, pytest.raises(ProcessError) as told:
        migrated(servers)
    assert "FERMATA_DATABASE_URL of this shell names does not answer" in str(told.value)
    assert "unset FERMATA_DATABASE_URL FERMATA_OWNER_DATABASE_URL FERMATA_REDIS_URL" in str(told.value)
    assert "secret" not in str(told.value)


def test_a_second_run_on_one_folder_is_told_so(folder: Path) -> None:
    """The message names the folder, who has it, and what to do."""
    settings = Settings(
        data_dir=folder,
        database_url="postgresql://db/fermata",
        redis_url="redis://cache/0",
    )
    with (
        local_servers(settings),
        pytest.raises(ProcessError, match=rf"{folder}.*pid {os.getpid()}.*FERMATA_DATA_DIR"),
        local_servers(settings),
    ):
        pass
    with local_servers(settings):
        pass


def test_a_killed_runs_servers_end_and_the_next_run_finds_their_data(folder: Path) -> None:
    """`kill -9` leaves no process; the next start waits for the old servers to end, then takes over their ports."""
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal\n"
            "from pathlib import Path\n"
            "from config.settings import Settings\n"
            "from worker.local.system import local_servers\n"
            f"with local_servers(Settings(data_dir=Path({str(folder)!r})), durable=False) as servers:\n"
            "    print(servers.postgres.pid, servers.valkey.pid, servers.postgres.port, flush=True)\n"
            "    signal.pause()\n",
        ],
        stdout=subprocess.PIPE,
    )
    assert run.stdout is not None
    postgres_pid, valkey_pid, port = map(int, run.stdout.readline().split())
    family = family_of(run.pid)
    assert {postgres_pid, valkey_pid} <= set(family)
    run.kill()
    run.wait()
    run.stdout.close()
    with local_servers(Settings(data_dir=folder), durable=False) as servers:
        assert servers.postgres is not None
        assert servers.postgres.port == port
        wait_until(lambda: not any(map(is_alive, family)), "the old servers have ended")


def test_a_leftover_that_does_not_end_by_itself_is_ended(valkey: EmbeddedValkey, folder: Path) -> None:
    """Even one whose death signal got lost: two servers on one folder would destroy its data."""
    valkey.start()
    old = valkey.pid
    assert old is not None
    again = EmbeddedValkey(folder / "valkey")
    again.start()
    assert (is_alive(old), again.pid is not None) == (False, True)
    again.stop()
