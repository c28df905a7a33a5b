"""Through PgBouncer in session mode, as people put it before PostgreSQL: nothing that we promise gets lost in it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from config.settings import load
from tests.integration.books import Store, opened
from tests.integration.queue_support import until
from tests.servers import Database, scratch_folder
from worker.credits.operations import Claimed, Ended
from worker.local.ports import HOST, free_port
from worker.local.processes import spawn, unprivileged_user
from worker.local.roles import dsn
from worker.store.database import make_engine, reading
from worker.store.driver import driver_of
from worker.store.errors import LedgerUnavailable
from worker.store.listening import listen

_CONFIG = """
[databases]
{name} = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = session
default_pool_size = 8
"""


@pytest.fixture
def pooled(database: Database) -> Iterator[Database]:
    """The same database behind a PgBouncer that is told no more than it must be."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    url, own, user = make_url(database.url), free_port(), unprivileged_user()
    with scratch_folder() as folder:
        users, config = folder / "users.txt", folder / "pgbouncer.ini"
        users.write_text(f'"{url.username}" "{url.password}"\n')
        config.write_text(_CONFIG.format(name=url.database, host=url.host, port=url.port, own=own, users=users))
        with (folder / "log").open("wb") as log:
            server = spawn(
                [binary, config], on_parent_death=signal.SIGTERM, user=user, cwd=Path("/"), stdout=log, stderr=log
            )
        try:
            until(lambda: _takes_connections(own) or server.poll() is not None)
            assert server.poll() is None, (folder / "log").read_text()
            yield replace(database, url=url.set(host=HOST, port=own).render_as_string(hide_password=False))
        finally:
            server.terminate()
            server.wait(10)


def _takes_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


async def test_the_limits_of_a_connection_hold_behind_a_pooler(pooled: Database) -> None:
    """Above all how long a frozen worker holds its accounts: told as it connects, it would be refused or forgotten."""
    engine = make_engine(
        load({}, database_url=pooled.url, environment="test", idle_transaction_seconds=7, lock_timeout_seconds=2),
        name="a worker",
    )
    named = "statement_timeout lock_timeout idle_in_transaction_session_timeout jit timezone application_name"
    async with reading(engine) as connection:
        told = [await connection.scalar(text(f"SHOW {name}")) for name in named.split()]
    await engine.dispose()
    assert ["15s", "2s", "7s", "off", "UTC", "a worker"] == told


async def test_a_transaction_that_freezes_is_cut_behind_a_pooler(pooled: Database) -> None:
    """Whoever waits for its account goes on."""
    async with opened(pooled, idle_transaction_seconds=0.5) as store:
        await store.account("ada", 20)
        with pytest.raises(LedgerUnavailable):
            await _frozen(store)
        assert isinstance(await store.claim("ada", await store.queued("ada", 10)), Claimed)


async def _frozen(store: Store) -> None:
    """A transaction that holds an account and says nothing until it has been cut, or for 10 seconds."""
    gone = asyncio.Event()
    async with store.books.page("ada") as (connection, _):
        driver_of(connection).add_termination_listener(lambda _: gone.set())
        await asyncio.wait_for(gone.wait(), 10)
        await connection.scalar(text("SELECT 1"))


async def test_jobs_are_claimed_settled_and_told_of_through_a_pooler(pooled: Database) -> None:
    """Many at once, over more connections than the pooler has, and whoever listens hears."""
    heard = asyncio.Event()
    listener = asyncio.create_task(listen(dsn(pooled.url), {"fermata_due": lambda told: heard.set()}))
    async with opened(pooled) as store:
        await store.account("ada", 1000)
        await asyncio.wait_for(heard.wait(), 10)  # as it begins to listen
        heard.clear()
        claimed = await asyncio.gather(*(store.running("ada", 10) for _ in range(50)))
        ended = await asyncio.gather(*(store.settle("ada", one) for one in claimed))
        assert all(isinstance(answer, Ended) for answer in ended)
        await asyncio.wait_for(heard.wait(), 10)
        assert {"available": 500, "held": 0, "spent": 500, "expired": 0, "revoked": 0} == await store.buckets("ada")
    listener.cancel()
