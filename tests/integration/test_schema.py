"""The schema by itself: built two ways it is one, it refuses illegal rows, and the app's role can rewrite nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.debian import oldest_postgres
from tests.integration.books import Store, opened, statement
from tests.servers import Database, Servers, drop_database, scratch_folder
from worker.credits.lots import LotSource, Move
from worker.credits.states import JobState, ReservationState
from worker.local.postgres import EmbeddedPostgres
from worker.local.roles import APP_ROLE, dsn
from worker.local.waiting import finished
from worker.store.migrate import migrate
from worker.store.tables import metadata

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
JOB = UUID(int=1)
CLIP = UUID(int=77)

#: Ours alone: what belongs to Alembic and to the tests' clock is not part of the schema.
TABLES = """
    SELECT c.oid, c.relname
    FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND c.relname NOT IN ('alembic_version', 'test_clock')
"""
CATALOGUE = {
    "tables": f"""
        SELECT t.relname, c.relkind::text, c.reloptions::text, pg_get_partkeydef(c.oid), obj_description(c.oid)
        FROM ({TABLES}) AS t JOIN pg_class AS c USING (oid)
    """,
    "columns": f"""
        SELECT t.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
               pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        FROM ({TABLES}) AS t
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    """,
    "constraints": f"""
        SELECT t.relname, c.conname, pg_get_constraintdef(c.oid)
        FROM ({TABLES}) AS t JOIN pg_constraint AS c ON c.conrelid = t.oid
    """,
    "indexes": f"""
        SELECT t.relname, i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
        FROM ({TABLES}) AS t JOIN pg_index AS i ON i.indrelid = t.oid
    """,
    "sequences": """
        SELECT s.seqrelid::regclass::text, s.seqtypid::regtype::text, s.seqincrement, s.seqcache
        FROM pg_sequence AS s
    """,
}


@asynccontextmanager
async def empty_database(servers: Servers) -> AsyncIterator[str]:
    """The owner's URL of a database in which nothing is."""
    name = f"{servers.template}_{token_hex(4)}"
    await statement(servers.owner_url, f"CREATE DATABASE {name}")
    try:
        yield make_url(servers.owner_url).set(database=name).render_as_string(hide_password=False)
    finally:
        await drop_database(servers.owner_url, name)


async def rows(url: str, sql: str, *values: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn(url))
    try:
        return [tuple(row) for row in await connection.fetch(sql, *values)]
    finally:
        await connection.close()


# --- two ways to the same schema -------------------------------------------------------------------------------


async def test_the_migrations_build_what_tables_py_says(servers: Servers, database: Database) -> None:
    """Tables, columns, defaults, constraints, indexes, sequences and comments are the same, one by one."""
    async with empty_database(servers) as built_url:
        engine = create_async_engine(built_url)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()
        for what, sql in CATALOGUE.items():
            told, migrated = await rows(built_url, sql), await rows(database.owner_url, sql)
            assert sorted(told, key=str) == sorted(migrated, key=str), what
            assert told, what


async def test_several_migrators_at_once_build_it_once(servers: Servers) -> None:
    """All end at the same revision, and the shipped books are book 1, once."""
    async with empty_database(servers) as url:
        revisions = await asyncio.gather(*(migrate(url) for _ in range(3)))
        assert 1 == len(set(revisions))
        for table in ("price_books", "plan_books"):
            assert [(1, "migrate")] == await rows(url, f"SELECT book_id, author FROM {table}")
        # Migrating again is safe, and books that were changed meanwhile stay as they are.
        await statement(url, "UPDATE price_books SET note = 'changed'")
        assert revisions[0] == await migrate(url)
        assert [(1, "changed")] == await rows(url, "SELECT book_id, note FROM price_books")
        # Outside of tests the clock is PostgreSQL's own, whatever a session's zone.
        (body,) = await rows(url, "SELECT btrim(prosrc), provolatile::text FROM pg_proc WHERE proname = 'fermata_now'")
        assert ("SELECT clock_timestamp()", "v") == body


async def test_the_schema_knows_the_words_of_the_code(database: Database) -> None:
    """A state, move or source that is added to one must be added to the other."""
    checks = dict(await rows(database.owner_url, "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"))
    for constraint, words in (
        ("jobs_state", JobState),
        ("reservations_state", ReservationState),
        ("lots_source", LotSource),
        ("journal_move", Move),
    ):
        assert {word.value for word in words} == set(re.findall(r"'(\w+)'", checks[constraint])), constraint


# --- what every key and index may hold -------------------------------------------------------------------------

#: These say nothing of an account.
MACHINERY = {
    "processes",
    "journal_months",
    *("queue_turns", "workers", "controls", "duty_runs", "price_books", "plan_books", "rehearsals"),
    *("api_keys", "sessions", "creations", "audit_log", "webhooks", "webhook_secrets", "voices"),
}

#: Asked for by their job, never by their account alone; jobs' ids grow with age (decision 0018).
BY_JOB = {"reservations", "attempts"}


def test_the_account_stands_in_every_key() -> None:
    """In the primary key and every unique constraint of ledger and job tables, so they can be distributed.

    First in the primary key, but for tables whose rows are only ever asked for by their job: those have the job first.
    """
    for table in metadata.sorted_tables:
        if table.name in MACHINERY:
            continue
        first, *_ = key = [column.name for column in table.primary_key.columns]
        assert first == ("job_id" if table.name in BY_JOB else "account_id"), table.name
        assert "account_id" in key, table.name
        for constraint in table.constraints:
            if type(constraint).__name__ == "UniqueConstraint":
                assert "account_id" in constraint.columns, constraint.name  # type: ignore[attr-defined]
        for index in table.indexes:
            assert not index.unique or "account_id" in index.columns, index.name


async def test_no_index_holds_what_claim_and_settle_change(database: Database) -> None:
    """Neither as a key nor in a predicate: their updates stay heap-only. `closed` is set once, by its duty."""
    changed = await rows(
        database.owner_url,
        "SELECT table_name, column_name FROM information_schema.column_privileges "
        "WHERE grantee = $1 AND privilege_type = 'UPDATE' AND table_name IN ('jobs', 'lots', 'reservations')",
        APP_ROLE,
    )
    assert {"state", "available", "charged"} <= {column for _, column in changed}
    indexes = await rows(database.owner_url, "SELECT tablename, indexname, indexdef FROM pg_indexes")
    for table, name, definition in indexes:
        words = set(re.findall(r"\w+", definition.partition(" USING ")[2]))
        held = {column for where, column in changed if where == table} & words - {"closed"}
        assert not held, name


async def _slot(store: Store, todo: Iterator[tuple[str, UUID]]) -> None:
    for account, job in todo:
        await store.settle(account, await store.claim(account, job))


async def _updated(database: Database) -> dict[str, tuple[int, int]]:
    """The updates of each table so far: all, and those heap-only."""
    counted = await rows(
        database.owner_url,
        "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = ANY($1)",
        ["jobs", "lots", "reservations"],
    )
    return {name: (updated, in_place) for name, updated, in_place in counted}


@pytest.fixture(params=["ours", "oldest"])
def alone(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of a server that nobody else uses, not even autovacuum.

    Whoever writes in any database of a server, or analyzes a table of this one, keeps every old version of every row
    from being cleared away meanwhile.
    """
    binaries = None if request.param == "ours" else oldest_postgres()
    if binaries is None and request.param == "oldest":
        pytest.skip("Debian's PostgreSQL is not installed")
    with scratch_folder() as folder:
        server = EmbeddedPostgres(folder, durable=False, binaries=binaries, options={"autovacuum": "off"})
        try:
            server.start()
            finished(migrate(server.owner_url))
            yield Database("fermata", server.app_url, server.owner_url)
        finally:
            server.stop()


async def test_claims_and_settles_update_in_place(alone: Database) -> None:
    """At least nine of ten updates of jobs, lots and reservations touch no index."""
    async with opened(alone) as store:
        accounts = [await store.account(f"a{number}", 100_000) for number in range(20)]
        queued = await asyncio.gather(*((store.submitted(accounts[n % 20], quoted=3)) for n in range(1200)))
        todo = iter(queued)
        await asyncio.gather(*(_slot(store, todo) for _ in range(64)))
    updated = await _updated(alone)  # by a session of its own: those before have told theirs
    for table, least in (("jobs", 2400), ("lots", 40), ("reservations", 1200)):
        count, in_place = updated[table]
        assert count >= least, f"{table}: not so many updates seen"
        assert 0.9 <= in_place / count <= 1, f"{table}: {in_place} of {count}"


# --- illegal rows ----------------------------------------------------------------------------------------------

#: A legal row of each table that has a CHECK.
LEGAL: dict[str, dict[str, Any]] = {
    **{
        table: {"document": "", "digest": "", "effective_at": NOW, "author": "t", "note": "n", "created_at": NOW}
        for table in ("price_books", "plan_books")
    },
    "journal_months": {"starts_at": NOW, "ends_at": NOW},
    "accounts": {"account_id": "bob", "created_at": NOW, "actor": "t"},
    "subscriptions": {"account_id": "ada", "anchor": NOW, "updated_at": NOW},
    "cycles": {
        "account_id": "ada",
        "starts_at": NOW,
        "ends_at": NOW + timedelta(days=30),
        "plan": "p",
        "granted_total": 5,
        "at": NOW,
    },
    "lots": {
        "account_id": "ada",
        "source": "grant",
        "granted": 10,
        "available": 10,
        "created_at": NOW,
        "reason": "r",
    },
    "reservations": {
        "account_id": "ada",
        "job_id": JOB,
        "amount": 10,
        "state": "held",
        "draw_lots": [1],
        "draw_amounts": [10],
        "reserved_at": NOW,
    },
    "journal": {
        "account_id": "ada",
        "at": NOW,
        "lot_id": 1,
        "move": "grant",
        "amount": 1,
        "reason": "r",
        "actor": "t",
    },
    "purchases": {"account_id": "ada", "reference": "r", "credits": 5, "at": NOW, "actor": "t"},
    "debts": {"account_id": "ada", "amount": 5, "cause": "c", "at": NOW, "actor": "t"},
    "jobs": {
        "account_id": "ada",
        "job_id": JOB,
        "idempotency_key": "k",
        "body_hash": bytes(32),
        "kind": "k",
        "queue": "q",
        "state": "queued",
        "request": "{}",
        "inputs": "{}",
        "metadata": "{}",
        "quoted": 10,
        "book_id": 1,
        "on_insufficient": "wait",
        "ends_by": NOW,
        "actor": "t",
        "created_at": NOW,
        "failures_max": 3,
    },
    "deliveries": {
        "account_id": "ada",
        "seq": 1,
        "webhook_id": JOB,
        "at": NOW,
        "what": "ended",
        "state": "pending",
        "next_at": NOW,
    },
    "due": {
        "account_id": "ada",
        "job_id": JOB,
        "queue": "q",
        "kind": "k",
        "priority": 0,
        "since": NOW,
        "not_before": NOW,
        "ends_by": NOW,
    },
    "live": {
        "account_id": "ada",
        "job_id": JOB,
        "token": JOB,
        "queue": "q",
        "kind": "k",
        "worker_id": "w",
        "started_at": NOW,
        "lease_until": NOW,
        "ends_by": NOW,
        "attempt": 1,
    },
    "parked": {
        "account_id": "ada",
        "job_id": JOB,
        "queue": "q",
        "kind": "k",
        "parked_at": NOW,
        "needed": 5,
        "ends_by": NOW,
    },
    "attempts": {
        "account_id": "ada",
        "job_id": JOB,
        "attempt": 1,
        "token": JOB,
        "worker_id": "w",
        "started_at": NOW,
        "ended_at": NOW,
        "ending": "e",
    },
    "artifacts": {
        "account_id": "ada",
        "artifact_id": JOB,
        "name": "n",
        "media_type": "m",
        "storage_key": "s",
        "sha256": bytes(32),
        "frames": 1,
        "sample_rate": 1,
        "channels": 1,
        "bytes": 1,
        "created_at": NOW,
        "actor": "t",
    },
    "api_keys": {
        "key_id": JOB,
        "prefix": "fmt_12345678",
        "hash": bytes(32),
        "role": "ops",
        "label": "l",
        "created_at": NOW,
        "actor": "t",
    },
    "voices": {
        "name": "alto",
        "account_id": "ada",
        "artifact_id": CLIP,
        "licence": "l",
        "consent": "c",
        "statistics": "{}",
        "created_at": NOW,
        "actor": "t",
    },
    "sessions": {"hash": bytes(32), "key_id": JOB, "created_at": NOW, "expires_at": NOW},
    "creations": {
        "key_id": JOB,
        "what": "keys",
        "reference": "k",
        "body_hash": bytes(32),
        "made": "m",
        "salt": bytes(32),
        "at": NOW,
    },
    "workers": {
        "worker_id": "w",
        "host": "h",
        "pid": 1,
        "version": "v",
        "queues": ["q"],
        "slots": 1,
        "started_at": NOW,
        "seen_at": NOW,
    },
    "processes": {
        "process_id": "p",
        "process": "api",
        "host": "h",
        "pid": 1,
        "version": "v",
        "started_at": NOW,
        "seen_at": NOW,
    },
    "controls": {"scope": "queue", "name": "q", "at": NOW, "actor": "t"},
}
ENDED = {"ended_at": NOW, "charged": 0}
TOO_MUCH = 10**12 + 1
#: What the driver makes `infinity` and `-infinity` of.
NEVER, EVER = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
#: What a worker reads and compares with its clock.
COMPARED = {
    "accounts": ("active_until", "cycle_ends_at"),
    "lots": ("expires_at",),
    "jobs": ("run_at", "ends_by"),
    "due": ("not_before", "ends_by"),
    "live": ("lease_until", "ends_by"),
    "parked": ("ends_by",),
    "api_keys": ("expires_at",),
}
#: constraint, what is different from the legal row
ILLEGAL: list[tuple[str, dict[str, Any]]] = [
    ("price_books_withdrawn", {"withdrawn_by": "eve"}),
    ("plan_books_withdrawn", {"withdrawn_by": "eve"}),
    ("accounts_account_id", {"account_id": ""}),
    ("accounts_account_id", {"account_id": "a b"}),
    ("accounts_account_id", {"account_id": "-a"}),
    ("accounts_account_id", {"account_id": "a\n"}),
    ("accounts_account_id", {"account_id": "a" * 129}),
    ("accounts_running_max", {"running_max": 0}),
    ("accounts_own_running_max", {"own_running_max": 0}),
    ("accounts_warn_below", {"warn_below": -1}),
    ("accounts_warn_below", {"own_warn_below": TOO_MUCH}),
    ("accounts_subscription", {"active_until": NOW}),
    ("accounts_subscription", {"cycle_ends_at": NOW}),
    ("subscriptions_renewal", {"renewal": "never"}),
    ("subscriptions_grace", {"grace_seconds": 60}),
    ("subscriptions_grace", {"renewal": "external", "grace_seconds": -1}),
    ("cycles_order", {"ends_at": NOW}),
    ("cycles_granted_total", {"granted_total": -1}),
    ("cycles_granted_total", {"granted_total": TOO_MUCH}),
    ("cycles_skipped_is_not_granted", {"skipped": True}),
    ("lots_source", {"source": "gift"}),
    ("lots_granted", {"granted": 0, "available": 0}),
    ("lots_granted", {"granted": TOO_MUCH, "available": TOO_MUCH}),
    *(
        ("lots_no_bucket_below_zero", {"granted": 10, "available": 11, bucket: -1})
        for bucket in ("held", "spent", "expired", "revoked")
    ),
    ("lots_no_bucket_below_zero", {"available": -1, "spent": 11}),
    ("lots_buckets_sum", {"available": 9}),
    ("lots_buckets_sum", {"held": 1}),
    ("lots_closed_is_empty", {"closed": True}),
    ("lots_closed_is_empty", {"closed": True, "available": 0, "held": 10}),
    ("lots_subscription_has_cycle", {"source": "subscription"}),
    ("lots_subscription_has_cycle", {"cycle_starts_at": NOW}),
    ("reservations_state", {"state": "expired", "settled_at": NOW}),
    ("reservations_amount", {"amount": -1, "charged": -1, "state": "committed", "settled_at": NOW}),
    ("reservations_amount", {"amount": TOO_MUCH}),
    ("reservations_charged", {"charged": 11, "state": "committed", "settled_at": NOW}),
    ("reservations_charged", {"charged": -1, "state": "committed", "settled_at": NOW}),
    ("reservations_only_commits_charge", {"charged": 1}),
    ("reservations_only_commits_charge", {"charged": 1, "state": "refunded", "settled_at": NOW}),
    ("reservations_settled", {"settled_at": NOW}),
    ("reservations_settled", {"state": "refunded"}),
    ("reservations_draws", {"draw_amounts": [5, 5]}),
    ("journal_move", {"move": "give"}),
    ("journal_amount", {"amount": 0}),
    ("journal_amount", {"amount": -1}),
    ("journal_amount", {"amount": TOO_MUCH}),
    ("purchases_credits", {"credits": 0}),
    ("purchases_credits", {"credits": TOO_MUCH}),
    ("debts_amount", {"amount": 0}),
    ("debts_amount", {"amount": TOO_MUCH}),
    ("debts_amount", {"amount": -TOO_MUCH}),
    ("jobs_idempotency_key", {"idempotency_key": ""}),
    ("jobs_idempotency_key", {"idempotency_key": "k" * 256}),
    ("jobs_state", {"state": "paused"}),
    ("jobs_ended_at", {"ended_at": NOW, "charged": 0}),
    ("jobs_ended_at", {"state": "failed"}),
    ("jobs_charged_when_ended", {"charged": 0}),
    ("jobs_charged_when_ended", {"state": "failed", "ended_at": NOW}),
    ("jobs_charged", {**ENDED, "state": "failed", "charged": -1}),
    ("jobs_charged", {**ENDED, "state": "succeeded", "outputs": "[]", "charged": 11}),
    ("jobs_outputs_when_succeeded", {**ENDED, "state": "succeeded"}),
    ("jobs_outputs_when_succeeded", {**ENDED, "state": "failed", "outputs": "[]"}),
    ("jobs_partial", {**ENDED, "state": "failed", "partial": True}),
    ("jobs_running_has_attempt", {"state": "running"}),
    ("jobs_quoted", {"quoted": -1}),
    ("jobs_quoted", {"quoted": TOO_MUCH}),
    ("jobs_failures", {"failures": 4}),
    ("jobs_failures", {"failures": -1}),
    ("jobs_on_insufficient", {"on_insufficient": "borrow"}),
    ("due_hint_mark", {"hinted_at": NOW}),
    ("due_hint_mark", {"hint_again_at": NOW}),
    ("live_progress", {"progress": 1.01}),
    ("live_progress", {"progress": -0.01}),
    ("live_progress", {"progress": float("nan")}),
    ("parked_needed", {"needed": -1}),
    ("attempts_attempt", {"attempt": 0}),
    *(("artifacts_measured", {name: 0}) for name in ("frames", "sample_rate", "channels", "bytes")),
    ("artifacts_sha256", {"sha256": bytes(31)}),
    ("api_keys_hash", {"hash": bytes(31)}),
    ("sessions_hash", {"hash": bytes(31)}),
    ("creations_hashes", {"body_hash": bytes(31)}),
    ("creations_hashes", {"salt": bytes(31)}),
    ("api_keys_role", {"role": "god"}),
    ("api_keys_customer_has_account", {"role": "customer", "expires_at": NOW}),
    ("api_keys_customer_has_account", {"account_id": "ada"}),
    ("api_keys_customer_expires", {"role": "customer", "account_id": "ada"}),
    ("api_keys_bound_once", {"role": "customer", "account_id": "ada", "expires_at": NOW, "account_prefix": "a"}),
    ("deliveries_state", {"state": "lost"}),
    ("deliveries_ended", {"ended_at": NOW}),
    ("deliveries_ended", {"state": "dead"}),
    ("deliveries_attempts", {"attempts": -1}),
    ("journal_months_closed_before_detached", {"detached_at": NOW}),
    *(("voices_rights", {name: ""}) for name in ("licence", "consent")),
    ("workers_slots", {"slots": 0}),
    ("processes_process", {"process": "worker"}),
    ("controls_scope", {"scope": "account"}),
    ("controls_running_max", {"running_max": 0}),
    *(
        (f"{table}_finite_times", {name: time, **({"plan": "p"} if table == "accounts" else {})})
        for table, names in COMPARED.items()
        for name in names
        for time in (NEVER, EVER)
    ),
]


async def insert(connection: asyncpg.Connection, table: str, row: dict[str, Any]) -> None:
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())


async def test_every_check_refuses_its_illegal_rows(database: Database) -> None:
    """Also from the owner: the database repeats the rules, so that a bug can't break the books."""
    async with database.connection(as_owner=True) as connection:
        await insert(connection, "accounts", {**LEGAL["accounts"], "account_id": "ada"})
        await insert(connection, "artifacts", {**LEGAL["artifacts"], "artifact_id": CLIP})
        for table, legal in LEGAL.items():
            transaction = connection.transaction()
            await transaction.start()
            await insert(connection, table, legal)
            await transaction.rollback()
        for constraint, different in ILLEGAL:
            table = next(name for name in sorted(LEGAL, key=len, reverse=True) if constraint.startswith(f"{name}_"))
            with pytest.raises(asyncpg.CheckViolationError) as refused:
                await insert(connection, table, {**LEGAL[table], **different})
            # A row that breaks several rules is refused by the first of them.
            assert refused.value.constraint_name.startswith(table), constraint
        checks = await connection.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conparentid = 0 AND coninhcount = 0 "
            "AND connamespace = 'public'::regnamespace"
        )
        assert {row["conname"] for row in checks} == {constraint for constraint, _ in ILLEGAL}


async def test_a_bucket_cannot_be_overdrawn_by_an_update_either(database: Database) -> None:
    """The last wall under every bug: two holds on the same credits end in an error, not below zero."""
    async with opened(database) as store, database.connection() as connection:
        account = await store.account("ada", 10)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE lots SET available = available - 11, held = held + 11")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute("UPDATE lots SET available = available - 5")
        assert 10 == (await store.buckets(account))["available"]


@pytest.mark.parametrize(
    ("table", "different"),
    [
        ("reservations", {"amount": 5, "draw_amounts": [5]}),
        ("jobs", {"job_id": UUID(int=2)}),  # the same key
        ("purchases", {"credits": 7}),
        ("cycles", {"granted_total": 6}),
        ("lots", {"reference": "once", "granted": 5, "available": 5}),
        ("lots", {"reason": "make_good", "job_id": JOB}),
        ("attempts", {"token": UUID(int=2)}),
        ("live", {"token": UUID(int=2)}),
    ],
)
async def test_what_happens_once_cannot_happen_twice(database: Database, table: str, different: dict[str, Any]) -> None:
    """One reservation a job, one job a key, one lot a purchase or a make-good, one attempt a number."""
    async with database.connection(as_owner=True) as connection:
        await insert(connection, "accounts", {**LEGAL["accounts"], "account_id": "ada"})
        shared = {name: value for name, value in different.items() if table == "lots"}
        await insert(connection, table, {**LEGAL[table], **shared})
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(connection, table, {**LEGAL[table], **different})


# --- what nobody can rewrite -----------------------------------------------------------------------------------

REWRITING = ("UPDATE {} SET amount = 1", "DELETE FROM {}", "TRUNCATE {}")


async def test_the_journal_is_append_only_for_everybody(database: Database) -> None:
    """For the app by privilege, for the owner by trigger; parent and partitions, the default one included."""
    async with database.connection(as_owner=True) as owner:
        await insert(owner, "accounts", {**LEGAL["accounts"], "account_id": "ada"})
        now = await owner.fetchval("SELECT fermata_now()")
        for at in (now, now + timedelta(days=40), datetime(2020, 1, 1, tzinfo=UTC)):
            await insert(owner, "journal", {**LEGAL["journal"], "at": at})
        await insert(owner, "debts", LEGAL["debts"])
        partitions = [
            row[0]
            for row in await owner.fetch(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'journal'::regclass"
            )
        ]
        assert "journal_default" in partitions
        filled = [name for name in partitions if await owner.fetchval(f"SELECT count(*) FROM {name}")]
        assert 3 == len(filled)
        for role_is_owner in (True, False):
            async with database.connection(as_owner=role_is_owner) as connection:
                for table in ["journal", "debts", *partitions]:
                    for rewriting in REWRITING:
                        if table in partitions and table not in filled and "TRUNCATE" not in rewriting:
                            continue  # a row trigger needs a row
                        with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
                            await connection.execute(rewriting.format(table))
                        assert role_is_owner is ("is append-only" in str(refused.value)), (table, rewriting)
        assert 3 == await owner.fetchval("SELECT count(*) FROM journal")


#: What a bug or a stolen password of the app could try.
FORBIDDEN = [
    "CREATE TABLE mine (a integer)",
    "ALTER TABLE lots DROP CONSTRAINT lots_buckets_sum",
    "ALTER TABLE journal DISABLE TRIGGER ALL",
    "DROP TABLE jobs",
    "CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
    "CREATE SCHEMA mine",
    "UPDATE price_books SET document = ''",
    "UPDATE price_books SET effective_at = now()",
    "DELETE FROM price_books",
    "UPDATE plan_books SET document = ''",
    "UPDATE lots SET granted = granted + 1",
    "UPDATE lots SET expires_at = NULL",
    "UPDATE lots SET account_id = 'eve'",
    "DELETE FROM lots",
    "UPDATE reservations SET amount = 0",
    "UPDATE reservations SET draw_amounts = '{0}'",
    "DELETE FROM reservations",
    "UPDATE jobs SET quoted = 0",
    "UPDATE jobs SET book_id = 2",
    "UPDATE jobs SET account_id = 'eve'",
    "DELETE FROM jobs",
    "UPDATE purchases SET credits = 1",
    "DELETE FROM purchases",
    "UPDATE debts SET amount = 1",
    "DELETE FROM debts",
    "UPDATE attempts SET ending = 'succeeded'",
    "DELETE FROM attempts",
    "UPDATE events SET charged = 0",
    "DELETE FROM events",
    "UPDATE webhooks SET url = 'https://eve.example'",
    "UPDATE webhook_secrets SET secret = ''",
    "TRUNCATE events",
    "UPDATE artifacts SET sha256 = ''",
    "UPDATE accounts SET account_id = 'eve'",
    "DELETE FROM accounts",
    "UPDATE cycles SET starts_at = now()",
    "DELETE FROM cycles",
    "UPDATE subscription_changes SET body = '{}'",
    "UPDATE api_keys SET role = 'admin'",
    "UPDATE voices SET consent = 'none'",
    "DELETE FROM voices",
    "UPDATE api_keys SET hash = ''",
    "UPDATE sessions SET expires_at = now() + interval '1 year'",
    "UPDATE audit_log SET actor = 'eve'",
    "DELETE FROM audit_log",
    "TRUNCATE audit_log",
    "UPDATE alembic_version SET version_num = '0'",
    "SELECT setval('journal_seq', 1)",
    "SET ROLE fermata_owner",
]


async def test_the_app_cannot_rewrite_history_prices_or_the_schema(database: Database) -> None:
    """Each of these is refused by PostgreSQL itself."""
    async with database.connection() as connection:
        for forbidden in FORBIDDEN:
            try:
                await connection.execute(forbidden)
            except asyncpg.InsufficientPrivilegeError:
                continue
            pytest.fail(f"the app may: {forbidden}")


async def test_the_app_can_read_every_table_and_view(database: Database) -> None:
    """A migration that adds a table must grant it. Every sequence can be drawn from, too."""
    found = await rows(
        database.owner_url,
        "SELECT c.relname, has_table_privilege($1, c.oid, 'SELECT') FROM pg_class AS c "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition",
        APP_ROLE,
    )
    assert set(metadata.tables) < {name for name, _ in found}
    assert [] == [name for name, readable in found if not readable]
    drawn = await rows(
        database.owner_url,
        "SELECT sequencename FROM pg_sequences "
        "WHERE schemaname = 'public' AND NOT has_sequence_privilege($1, sequencename::text, 'USAGE')",
        APP_ROLE,
    )
    assert [] == drawn


# --- partitions ------------------------------------------------------------------------------------------------

MONTHS = """
    SELECT parent || to_char(date_trunc('month', fermata_now() AT TIME ZONE 'UTC') + make_interval(months => month),
                             '_YYYY_MM')
    FROM unnest(ARRAY['journal', 'events']) AS parent, generate_series(0, $1::integer) AS month
"""
PARTITIONS = """
    SELECT inhrelid::regclass::text FROM pg_inherits
    WHERE inhparent IN ('journal'::regclass, 'events'::regclass) AND inhrelid::regclass::text !~ 'default'
"""


async def test_partitions_are_three_months_ahead_and_the_app_makes_more(database: Database) -> None:
    """Made again they are none; made further they are refused to be emptied like the first."""
    async with database.connection() as app:
        assert set(await app.fetch(MONTHS, 3)) == set(await app.fetch(PARTITIONS))
        assert 0 == await app.fetchval("SELECT fermata_make_partitions(3)")
        assert 4 == await app.fetchval("SELECT fermata_make_partitions(5)")
        made = sorted(row[0] for row in await app.fetch(MONTHS, 5))
        assert made == sorted(row[0] for row in await app.fetch(PARTITIONS))
        async with database.connection(as_owner=True) as owner:
            for name in made:
                if name.startswith("journal"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                        await owner.execute(f"TRUNCATE {name}")


async def test_each_entry_lies_in_the_partition_of_its_month(database: Database) -> None:
    """By UTC, to the microsecond, whatever zone the session has."""
    async with database.connection(as_owner=True) as owner:
        await owner.execute("SET timezone = 'Pacific/Auckland'")
        first = await owner.fetchval(
            "SELECT (date_trunc('month', fermata_now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC'"
        )
        for at, shift in ((first - timedelta(microseconds=1), 0), (first, 1)):
            await insert(owner, "journal", {**LEGAL["journal"], "at": at})
            expected = (await owner.fetch(MONTHS, 3))[shift][0]
            found = await owner.fetchval("SELECT tableoid::regclass::text FROM journal WHERE at = $1", at)
            assert expected == found
        assert 0 == await owner.fetchval("SELECT fermata_make_partitions(3)")


async def test_a_month_that_went_to_the_default_partition_stops_no_other_month(database: Database) -> None:
    """After a scheduler's long absence its entries stay where they are; the months to come get their partitions."""
    await database.advance(timedelta(days=150))
    async with database.connection() as app:
        await insert(app, "journal", {**LEGAL["journal"], "at": await app.fetchval("SELECT fermata_now()")})
        assert 1 == await app.fetchval("SELECT count(*) FROM journal_default")
        assert 7 == await app.fetchval("SELECT fermata_make_partitions(3)")
        assert 0 == await app.fetchval("SELECT fermata_make_partitions(3)")


async def test_migrating_as_two_roles_leaves_the_app_its_rights(servers: Servers) -> None:
    """A fresh database is usable by the app at once, without any statement of an administrator."""
    async with empty_database(servers) as url:
        await migrate(url)
        app_url = make_url(servers.app_url).set(database=make_url(url).database).render_as_string(hide_password=False)
        fresh = Database(str(make_url(url).database), app_url, url)
        async with opened(fresh) as store:
            account = await store.account("ada", 10)
            ended = await store.settle(account, await store.running(account))
            assert 10 == ended.charged
