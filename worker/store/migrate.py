"""Bring a database to the newest schema, grant the roles their rights, and load the shipped books."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

#: One migrator at a time, any number started. Taken before Alembic looks at the version.
MIGRATION_LOCK = 4_607_182_418

_MIGRATIONS = Path(__file__).parent / "migrations"

#: In this order: the worker's rights are read off the app's.
_GRANTS = {
    "fermata_app": "grants.sql",
    "fermata_worker": "grants_worker.sql",
    "fermata_product": "grants_product.sql",
}


async def migrate(owner_url: str) -> str:
    """Migrate the database at `owner_url` (postgresql+asyncpg://…); returns the revision it is at now.

    Safe to run by several at once and again. Loads config/prices.toml and config/plans.toml as book 1 into
    empty tables only.
    """
    engine = create_async_engine(owner_url, poolclass=NullPool, connect_args={"command_timeout": 120})
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            await connection.run_sync(_upgrade)
            await _grant(connection)
            await _load_books(connection)
            return str(await connection.scalar(text("SELECT version_num FROM alembic_version")))
    finally:
        await engine.dispose()


def alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def _upgrade(connection: Connection) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


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
