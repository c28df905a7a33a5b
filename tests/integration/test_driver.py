"""The hot path's way past SQLAlchemy: what travels arrives as it was, and errors are still ours."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import uuid_utils.compat as uuids
from sqlalchemy import text

from config.settings import load
from tests.integration.books import Store, opened
from tests.servers import Database
from worker.store.database import Transient, patient, transaction, translated
from worker.store.driver import Statement, driver_of, rows_of, run
from worker.store.errors import LedgerUnavailable, RefusedByDatabase
from worker.store.listening import listen
from worker.store.migrate import migrate

_BEGIN = text("SELECT 1")

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
        await connection.execute(_BEGIN)
        driver = await driver_of(connection)
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
        driver = await driver_of(connection)
        assert 3 == await run(driver, Statement("INSERT INTO counted SELECT generate_series(1, 3)"))
        both = "WITH gone AS (DELETE FROM counted RETURNING x) INSERT INTO counted SELECT x FROM gone WHERE x > 1"
        assert 2 == await run(driver, Statement(both))
        assert 0 == await run(driver, Statement("DELETE FROM counted WHERE x > 5"))


async def _in_a_transaction(store: Store, sql: str) -> None:
    async with transaction(store.engine, "test") as connection:
        await connection.execute(_BEGIN)
        await run(await driver_of(connection), Statement(sql))


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("INSERT INTO accounts (account_id, created_at, actor) VALUES ('?', now(), 'test')", RefusedByDatabase),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '55P03'; END $$", Transient),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53200'; END $$", LedgerUnavailable),
        ("SELECT pg_terminate_backend(pg_backend_pid())", LedgerUnavailable),
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
            assert 1 == await connection.scalar(_BEGIN)


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
                assert await connection.scalar(_BEGIN) == 1
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
                await connection.execute(_BEGIN)
