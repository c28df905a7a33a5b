"""The hot path's way past SQLAlchemy: what travels arrives as it was, and errors are still ours."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import uuid_utils.compat as uuids
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from config.settings import load
from tests.integration.books import Store, opened
from tests.integration.proxy import wired
from tests.servers import Database
from worker.store.database import Transient, patient, reading, transaction, translated
from worker.store.driver import Driver, Statement, driver_of, rows_of, run
from worker.store.errors import LedgerUnavailable, LedgerUnfit, OutcomeUnknown, RefusedByDatabase
from worker.store.listening import listen
from worker.store.migrate import migrate
from worker.store.snapshots import snapshot

_ONE = text("SELECT 1")
_ACCOUNTS = text("SELECT count(*) FROM accounts")

COLUMNS: list[tuple[str, list[Any]]] = [
    ("text", ["ada", "", "ÄÖÜ 𝄐", None, "a,b{}\"'\\"]),
    ("bigint", [0, -1, 10**12, None]),
    ("smallint", [3, None, 7]),
    ("uuid", [uuids.uuid7(), None, uuids.uuid7()]),
    ("boolean", [True, None, False]),
    ("timestamptz", [datetime(2026, 11, 25, 12, tzinfo=UTC), None]),
    ("bytea", [b"", bytes(32), None]),
    ("text", []),
    ("text", [None, None]),
]


@pytest.mark.parametrize(("kind", "values"), COLUMNS)
async def test_a_column_arrives_as_it_was_sent(database: Database, kind: str, values: list[Any]) -> None:
    """asyncpg walks each column twice, and only the second walk counts: also when it has to prepare again."""
    statement = Statement(f"SELECT u.x FROM unnest(CAST(:column AS {kind}[])) WITH ORDINALITY AS u (x, n) ORDER BY n")
    async with opened(database) as store, transaction(store.engine, "test") as connection:
        driver = driver_of(connection)
        for _ in range(3):
            assert values == [row[0] for row in await rows_of(driver, statement, {"column": values})]
            assert values == [row[0] for row in await rows_of(driver, statement, {"column": tuple(values)})]


async def test_a_statement_has_a_place_for_each_name() -> None:
    """The same name is the same place; casts are no names."""
    statement = Statement("SELECT :b, CAST(:a AS text), :b, x::int FROM y")
    assert ("b", "a") == statement.names
    assert "SELECT $1, CAST($2 AS text), $1, x::int FROM y" == statement.sql


async def test_the_rows_of_the_outermost_part_are_counted(database: Database) -> None:
    """Whatever the parts before it wrote."""
    async with opened(database) as store, transaction(store.engine, "test") as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE counted (x int) ON COMMIT DROP"))
        driver = driver_of(connection)
        assert 3 == await run(driver, Statement("INSERT INTO counted SELECT generate_series(1, 3)"))
        both = "WITH gone AS (DELETE FROM counted RETURNING x) INSERT INTO counted SELECT x FROM gone WHERE x > 1"
        assert 2 == await run(driver, Statement(both))
        assert 0 == await run(driver, Statement("DELETE FROM counted WHERE x > 5"))


async def _in_a_transaction(store: Store, sql: str) -> None:
    async with transaction(store.engine, "test") as connection:
        await run(driver_of(connection), Statement(sql))


#: A failed disk, a damaged page, no right, no table, a pooler that lost a statement: none is about what was asked.
UNFIT = ("58030", "XX001", "XX000", "42501", "42P01", "42703", "26000", "0A000", "55000")


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("INSERT INTO accounts (account_id, created_at, actor) VALUES ('?', now(), 'test')", RefusedByDatabase),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '55P03'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53200'; END $$", LedgerUnavailable),
        ("SELECT pg_terminate_backend(pg_backend_pid())", LedgerUnavailable),
        *((f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$", LedgerUnfit) for code in UNFIT),
    ],
)
async def test_its_errors_are_ours(database: Database, sql: str, error: type[Exception]) -> None:
    """None of the driver's own leaves the store, and the next transaction goes on."""
    async with opened(database) as store:
        with pytest.raises(error) as raised:
            await _in_a_transaction(store, sql)
        assert error is type(raised.value)
        if error is RefusedByDatabase:
            assert "the database refused it: accounts_account_id" == str(raised.value)
        async with transaction(store.engine, "test") as connection:
            assert 1 == await connection.scalar(_ONE)


async def _drivers(store: Store, connections: int) -> list[Driver]:
    """So many connections lie in the pool afterwards."""
    all_begun = asyncio.Barrier(connections)

    async def begin() -> Driver:
        async with transaction(store.engine, "test") as connection:
            await all_begun.wait()
            return driver_of(connection)

    return await asyncio.gather(*(begin() for _ in range(connections)))


async def _backends(store: Store, connections: int) -> set[int]:
    """The same, as the server names them."""
    return {driver.get_server_pid() for driver in await _drivers(store, connections)}


def _end(backends: Collection[int]) -> None:
    """End them before the event loop reads anything more."""
    for backend in backends:
        process = os.pidfd_open(backend)
        signal.pidfd_send_signal(process, signal.SIGTERM)
        assert select.select([process], [], [], 10)[0]
        os.close(process)


@pytest.mark.parametrize("heard", [True, False])
async def test_connections_that_were_cut_in_the_pool_fail_nobody(database: Database, heard: bool) -> None:
    """Whether the driver has heard of it by then or not. One that is cut after it has begun is an outage."""
    async with opened(database) as store, database.connection() as other:
        lying = await _backends(store, 3)
        assert 3 == len(lying)
        _end(lying)
        if heard:
            await other.execute("SELECT")
        async with transaction(store.engine, "test") as connection:
            backend = driver_of(connection).get_server_pid()
            assert backend not in lying
            assert 1 == await connection.scalar(_ONE)
        with pytest.raises(LedgerUnavailable):
            await _cut_under_way(store)


@pytest.mark.parametrize("begin", [transaction, reading])
async def test_nor_do_they_fail_who_sends_no_begin(database: Database, begin: Callable[..., Any]) -> None:
    """A submit, or the look-up of a session: once the driver has heard that a connection was cut it is passed over."""
    async with opened(database) as store, database.connection() as other:
        lying = await _drivers(store, 3)
        _end({driver.get_server_pid() for driver in lying})
        while not all(driver.is_closed() for driver in lying):
            await other.execute("SELECT")
        named = {"step": "test"} if begin is transaction else {}
        async with begin(store.engine, at_once=True, **named) as connection:
            assert 1 == await connection.scalar(_ONE)


async def test_what_was_read_before_the_cut_was_read(database: Database) -> None:
    """Of whoever only reads a COMMIT decides nothing: only of one that wrote is the outcome unknown."""
    async with opened(database) as store:
        for begun in (reading(store.engine), reading(store.engine, by_key=True), snapshot(store.engine)):
            async with begun as connection:
                assert 1 == await connection.scalar(_ONE)
                _end([driver_of(connection).get_server_pid()])
        with pytest.raises(OutcomeUnknown):
            await _cut_before_its_commit(store)


async def test_a_farewell_without_an_end_is_an_outage_at_most(database: Database) -> None:
    """A server that has said why it goes, and is not gone: whoever meets such a connection has an outage, and no other
    error, or goes on with the next; and each of them is met once."""
    async with (
        wired(database) as wire,
        opened(wire.database, statement_timeout_seconds=1, lock_timeout_seconds=0.5) as store,
        database.connection() as other,
    ):
        wire.holds_ends = True
        _end(await _backends(store, 2))
        await other.execute("SELECT")
        for at_once in (True, False):
            with suppress(LedgerUnavailable):
                async with transaction(store.engine, "test", at_once=at_once) as connection:
                    await connection.scalar(_ONE)
        async with transaction(store.engine, "test") as connection:
            assert 1 == await connection.scalar(_ONE)


async def test_who_listens_outlives_a_farewell_without_an_end(database: Database) -> None:
    """It is one of the tasks whose death ends the process."""
    async with wired(database) as wire:
        wire.holds_ends = True
        connected: asyncio.Queue[str] = asyncio.Queue()
        listening = asyncio.create_task(listen(wire.database.url, {"test": connected.put_nowait}, check_seconds=0.05))
        async with asyncio.timeout(20), database.connection() as other:
            await connected.get()
            _end([row[0] for row in await other.fetch(_LISTENERS)])
            again = asyncio.create_task(connected.get())
            await asyncio.wait({again, listening}, return_when=asyncio.FIRST_COMPLETED)
        assert again.done(), listening.exception()
        listening.cancel()


_LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def _cut_before_its_commit(store: Store) -> None:
    async with transaction(store.engine, "test") as connection:
        _end([driver_of(connection).get_server_pid()])


async def _cut_under_way(store: Store) -> None:
    async with transaction(store.engine, "test") as connection:
        _end([driver_of(connection).get_server_pid()])
        await connection.scalar(_ONE)


async def test_a_transaction_of_which_a_statement_failed_is_not_taken_for_committed(database: Database) -> None:
    """Even where the error was swallowed: PostgreSQL answers such a COMMIT with ROLLBACK, and calls it no error."""
    async with opened(database) as store:
        with pytest.raises(LedgerUnavailable, match="answered a COMMIT with ROLLBACK"):
            await _failed_and_went_on(store)
        async with reading(store.engine) as connection:
            assert 0 == await connection.scalar(_ACCOUNTS)


async def _failed_and_went_on(store: Store) -> None:
    async with transaction(store.engine, "test") as connection:
        await _lot_less_account(connection)
        with suppress(asyncpg.DivisionByZeroError):
            await run(driver_of(connection), Statement("SELECT 1 / 0"))


@pytest.mark.parametrize("past_sqlalchemy", [True, False])
async def test_whoever_is_cancelled_twice_leaves_no_open_transaction(database: Database, past_sqlalchemy: bool) -> None:
    """The second time while its statement is being cancelled, before its ROLLBACK can be sent."""
    async with opened(database) as store:
        written = asyncio.Event()

        async def write() -> None:
            async with transaction(store.engine, "test") as connection:
                await _lot_less_account(connection)
                written.set()
                if past_sqlalchemy:
                    await run(driver_of(connection), Statement("SELECT pg_sleep(600)"))
                await connection.execute(text("SELECT pg_sleep(600)"))

        for second in (False, True):
            written.clear()
            writing = asyncio.create_task(write())
            await written.wait()
            await asyncio.sleep(0)  # its statement is sent
            writing.cancel()
            if second:
                await asyncio.sleep(0)  # one turn of the loop
                writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            async with transaction(store.engine, "test") as connection:
                assert 0 == await connection.scalar(_ACCOUNTS)


async def test_each_of_its_ways_to_begin_is_what_it_says(database: Database) -> None:
    """Isolation, whether it may write, how it plans; and nothing of it is left for the next one."""
    shown = Statement(
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('enable_seqscan'), current_setting('plan_cache_mode')"
    )
    plain, by_key = ("on", "auto"), ("off", "force_generic_plan")
    async with opened(database) as store:
        engine = store.engine
        for begun, isolation, read_only, planning in (
            (transaction(engine, "test"), "read committed", "off", plain),
            (transaction(engine, "test", by_key=True), "read committed", "off", by_key),
            (transaction(engine, "test", at_once=True), "read committed", "off", plain),
            (reading(engine), "read committed", "on", plain),
            (reading(engine, by_key=True), "read committed", "on", by_key),
            (reading(engine, one_instant=True), "repeatable read", "on", plain),
            (snapshot(engine), "repeatable read", "on", plain),
        ):
            async with begun as connection:
                assert [(isolation, read_only, *planning)] == await rows_of(driver_of(connection), shown)
        async with transaction(engine, "test", at_once=True) as connection:
            assert not driver_of(connection).is_in_transaction()
            await _lot_less_account(connection)
        async with reading(engine) as connection:
            assert 1 == await connection.scalar(_ACCOUNTS)


async def _lot_less_account(connection: AsyncConnection) -> None:
    await connection.execute(
        text("INSERT INTO accounts (account_id, created_at, actor) VALUES ('nobody', fermata_now(), 'test')")
    )


@pytest.mark.parametrize("error", [asyncpg.InternalClientError, asyncpg.ProtocolError, asyncpg.InterfaceError])
def test_what_the_driver_itself_gives_up_on_is_an_outage(error: type[Exception]) -> None:
    """A cut connection is no bug of ours: whoever settles tries again, and no failure is counted."""
    with pytest.raises(LedgerUnavailable, match=f"^PostgreSQL is out of reach \\({error.__name__}\\)$"), translated():
        raise error("cannot switch to state 12; another operation (2) is in progress")


@pytest.mark.parametrize("query", ["sslmode=disable", "ssl=disable", "sslmode=prefer"])
async def test_every_connection_encrypts_as_its_url_says(database: Database, query: str) -> None:
    """The pool's, those of long statements, who listens and who migrates read the same words."""
    url, owner = (
        secret.get_secret_value()
        for secret in (
            load({}, database_url=f"{database.url}?{query}").database_url,
            load({}, database_url=f"{database.owner_url}?{query}").database_url,
        )
        if secret is not None
    )
    async with opened(replace(database, url=url)) as store, patient(store.engine, "test", 5) as long:
        for engine in (store.engine, long):
            async with transaction(engine, "test") as connection:
                assert await connection.scalar(_ONE) == 1
        heard = asyncio.Event()
        listener = asyncio.create_task(listen(url, {"test": lambda _: heard.set()}))
        async with asyncio.timeout(10):
            await heard.wait()
        listener.cancel()
    assert await migrate(owner)


@pytest.mark.parametrize("query", ["sslmode=require", "ssl=require", "sslmode=verify-full"])
async def test_a_server_that_does_not_encrypt_is_not_spoken_to(database: Database, query: str) -> None:
    """Where the URL asks for it: the server that the tests start has no certificate."""
    async with opened(database) as plain, transaction(plain.engine, "test") as connection:
        if await connection.scalar(text("SHOW ssl")) == "on":
            pytest.skip("this server has a certificate")
    url = load({}, database_url=f"{database.url}?{query}").database_url
    assert url is not None
    async with opened(replace(database, url=url.get_secret_value())) as store:
        with pytest.raises(LedgerUnavailable):
            async with transaction(store.engine, "test") as connection:
                await connection.execute(_ONE)
