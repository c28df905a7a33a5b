"""The roles of every Fermata database, for `migrate --roles` and for our own servers.

`fermata_owner` owns the database and its tables: migrations run as it. The others are what processes and people
connect as; the migrations grant each what it needs and no more, so that not even a bug can rewrite the journal:

    fermata_app      the API and the command: accounts, jobs, credits, books
    fermata_worker   workers and schedulers: jobs and credits, but no price and no plan
    fermata_product  product people: price and plan books, but no credit
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from worker.local.passwords import scram_verifier

DATABASE = "fermata"
OWNER_ROLE = "fermata_owner"
APP_ROLE = "fermata_app"
WORKER_ROLE = "fermata_worker"
PRODUCT_ROLE = "fermata_product"

#: Each with a password of its own.
ROLES = (OWNER_ROLE, APP_ROLE, WORKER_ROLE, PRODUCT_ROLE)


def dsn(url: str) -> str:
    """An SQLAlchemy URL as asyncpg, psql and pgbench want it."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)


async def ensure_roles(superuser_url: str, passwords: Mapping[str, str], *, database: str = DATABASE) -> None:
    """Make the roles and the database where they are missing, and set the passwords by role. Safe to repeat.

    `superuser_url` is of a role that may create roles and databases; it need not be a superuser. PostgreSQL is told
    what it would keep of each password, never the password: a statement that it refuses stands in its log. Raises
    `ValueError` for a password that is not of printable ASCII.
    """
    verifiers = {role: scram_verifier(password) for role, password in passwords.items()}
    connection = await asyncpg.connect(dsn(superuser_url))
    try:
        for role, verifier in verifiers.items():
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
            verb = "ALTER" if exists else "CREATE"
            await _execute(connection, f"{verb} ROLE %I LOGIN PASSWORD %L", role, verifier)
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            if not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
                await _execute(connection, "GRANT %I TO CURRENT_USER", OWNER_ROLE)
            await _execute(
                connection, "CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING UTF8", database, OWNER_ROLE
            )
        await _execute(connection, "REVOKE ALL ON DATABASE %I FROM PUBLIC", database)
        for role in passwords:
            await _execute(connection, "GRANT CONNECT ON DATABASE %I TO %I", database, role)
    finally:
        await connection.close()


async def _execute(connection: asyncpg.Connection, template: str, *values: str) -> None:
    """A statement that takes no parameters: PostgreSQL's own `format` quotes the names (%I) and literals (%L)."""
    places = ", ".join(f"${place}::text" for place in range(2, len(values) + 2))
    await connection.execute(await connection.fetchval(f"SELECT format($1, {places})", template, *values))
