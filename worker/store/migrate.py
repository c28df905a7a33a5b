"""Bring a database to the newest schema, grant the roles their rights, and load the shipped books."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from time import monotonic

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from worker.store.database import engine_at
from worker.store.errors import MigrationWaited

log = structlog.get_logger(__name__)

#: One migrator at a time, any number started. Taken before Alembic looks at the version.
MIGRATION_LOCK = 4_607_182_418

#: The longest that a migration waits for a table, and so the longest that it makes others wait there.
LOCK_MILLISECONDS = 200
#: How long it is tried again, and how long it leaves others alone in between.
PATIENCE_SECONDS = 120.0
_AGAIN_SECONDS = 0.5
_STATEMENT_SECONDS = 1800
_LOCK_NOT_AVAILABLE = "55P03"

_MIGRATIONS = Path(__file__).parent / "migrations"

#: In this order: the worker's rights are read off the app's.
_GRANTS = {
    "fermata_app": "grants.sql",
    "fermata_worker": "grants_worker.sql",
    "fermata_product": "grants_product.sql",
}


async def migrate(owner_url: str) -> str:
    """Migrate the database at `owner_url` (postgresql+asyncpg://…); returns the revision it is at now.

    Safe to run by several at once and again, and beside whatever works there: each migration is a transaction of its
    own, no statement of one waits longer than `LOCK_MILLISECONDS` for a table that others use, with everybody else
    behind it, and one that waited in vain is tried again until `PATIENCE_SECONDS` are over; then `MigrationWaited` says
    who was in the way. Loads config/prices.toml and config/plans.toml as book 1 into empty tables only.
    """
    engine = engine_at(owner_url, poolclass=NullPool, connect_args={"command_timeout": _STATEMENT_SECONDS})
    try:
        async with engine.connect() as connection:
            await _alone(connection)
            await patiently(connection, _brought_up)
            revision = str(await connection.scalar(_REVISION))
            await connection.commit()
            return revision
    finally:
        await engine.dispose()


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


async def _alone(connection: AsyncConnection) -> None:
    """Become the only migrator. Asked again and again: who waits in PostgreSQL holds up an index that is being made."""
    while not await connection.scalar(_TRY_LOCK, {"lock": MIGRATION_LOCK}):
        await connection.rollback()
        await asyncio.sleep(0.1)


async def patiently(connection: AsyncConnection, step: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Do it, in which no statement waits longer than `LOCK_MILLISECONDS`; again for as long as a table is in use.

    Raises `MigrationWaited` once `PATIENCE_SECONDS` are over.
    """
    deadline = monotonic() + PATIENCE_SECONDS
    await connection.execute(_LOCK_TIMEOUT, {"milliseconds": str(LOCK_MILLISECONDS)})
    await connection.commit()
    while True:
        try:
            await step(connection)
            return await connection.commit()
        except DBAPIError as error:
            await connection.rollback()
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            if monotonic() > deadline:
                raise await _waited_for(connection) from error
            log.info("migration waits: a table is in use")
            await asyncio.sleep(_AGAIN_SECONDS)


async def _brought_up(connection: AsyncConnection) -> None:
    await connection.run_sync(upgraded)
    await _grant(connection)
    await _load_books(connection)


async def _waited_for(connection: AsyncConnection) -> MigrationWaited:
    """Who is in the way, as far as the owner may know."""
    others = [f"pid {row.pid} ({row.name or 'no name'})" for row in await connection.execute(_IN_THE_WAY)]
    revision = await connection.scalar(_REVISION)
    await connection.rollback()
    return MigrationWaited(
        f"migrations: a table was in use for {PATIENCE_SECONDS:g} s, and nobody was to wait behind us: "
        f"the schema stays at revision {revision}, and nothing of the next one was done. "
        f"In the way: {', '.join(others) or 'nobody any more'}. "
        "Let these transactions end, or end them with pg_terminate_backend, and run `fermata migrate` again"
    )


def upgraded(connection: Connection, revision: str = "head") -> None:
    """Every migration up to that one, each in a transaction of its own."""
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def _grant(connection: AsyncConnection) -> None:
    """Give each role that is there its rights. A database without any is the owner's alone, who runs the app."""
    for role, file in _GRANTS.items():
        if await connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
            for statement in (_MIGRATIONS / file).read_text(encoding="utf-8").split(";\n\n"):
                await connection.exec_driver_sql(statement.rstrip().rstrip(";"))


async def _load_books(connection: AsyncConnection) -> None:
    for statement, count, name in (
        (_INSERT_PRICE_BOOK, _COUNT_PRICE_BOOKS, "prices.toml"),
        (_INSERT_PLAN_BOOK, _COUNT_PLAN_BOOKS, "plans.toml"),
    ):
        if await connection.scalar(count) == 0:
            document = resources.files("config").joinpath(name).read_text(encoding="utf-8")
            digest = hashlib.sha256(document.encode()).hexdigest()
            await connection.execute(statement, {"document": document, "digest": digest})


_TRY_LOCK = text("SELECT pg_try_advisory_lock(:lock)")
_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :milliseconds, false)")
_REVISION = text("SELECT version_num FROM alembic_version")
#: Whoever holds a lock on a table of ours: readers too are in a migration's way.
_IN_THE_WAY = text("""
    SELECT DISTINCT l.pid, a.application_name AS name
    FROM pg_locks AS l
    JOIN pg_class AS c ON c.oid = l.relation
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relnamespace = 'public'::regnamespace
      AND l.pid <> pg_backend_pid()
    ORDER BY l.pid
    LIMIT 5
""")
_COUNT_PRICE_BOOKS = text("SELECT count(*) FROM price_books")
_COUNT_PLAN_BOOKS = text("SELECT count(*) FROM plan_books")
_INSERT_PRICE_BOOK = text("""
    INSERT INTO price_books (document, digest, effective_at, author, note, created_at)
    VALUES (:document, :digest, fermata_now(), 'migrate', 'as shipped', fermata_now())
""")
_INSERT_PLAN_BOOK = text("""
    INSERT INTO plan_books (document, digest, effective_at, author, note, created_at)
    VALUES (:document, :digest, fermata_now(), 'migrate', 'as shipped', fermata_now())
""")
