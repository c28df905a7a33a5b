"""The audit knows every guard of the database by its content: one that only keeps its name is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.debian import oldest_postgres
from tests.integration.books import opened
from tests.integration.guards import GUARDED, module_of
from tests.integration.test_audit import rules_of, tampered
from tests.servers import Database, Servers, fresh_database, scratch_folder
from worker.local.postgres import EmbeddedPostgres
from worker.local.waiting import finished
from worker.store.audit import audit_on
from worker.store.audit_guards import changed_guards, guards_of
from worker.store.doctoring import known_head
from worker.store.migrate import migrate


@pytest.fixture(scope="module")
def world(servers: Servers) -> Iterator[Database]:
    """A database that is migrated, and has nothing in it. Whoever changes it takes it back."""
    with asyncio.Runner() as runner:
        fresh = fresh_database(servers)
        yield runner.run(fresh.__aenter__())
        runner.run(fresh.__aexit__(None, None, None))


async def test_what_is_written_down_is_what_the_migrations_make(world: Database) -> None:
    """After a migration: `python -m tests.integration.guards`."""
    async with opened(world) as store, store.engine.connect() as connection:
        found = await guards_of(connection)
    assert module_of(found, known_head()) == GUARDED.read_text(encoding="utf-8")
    assert {"function", "trigger", "constraint", "unique"} == {name.split()[0] for name in found}


def test_the_oldest_postgresql_describes_them_alike() -> None:
    """Digests that were taken on the newest PostgreSQL hold on the oldest that we promise to run on."""
    binaries = oldest_postgres()
    if binaries is None:
        pytest.skip("Debian's PostgreSQL is not installed")

    async def changed(owner_url: str) -> list[tuple[str, str]]:
        await migrate(owner_url)
        engine = create_async_engine(owner_url, poolclass=NullPool)
        async with engine.connect() as connection:
            return await changed_guards(connection)

    with scratch_folder() as folder:
        postgres = EmbeddedPostgres(folder / "postgres", durable=False, binaries=binaries)
        try:
            postgres.start()
            assert [] == finished(changed(postgres.owner_url))
        finally:
            postgres.stop()


async def test_what_a_restore_reads_back_is_no_change(world: Database) -> None:
    """Each CHECK made again from its own words, as `pg_restore` does: some lose parentheses, none its sense."""
    async with tampered(world, "SELECT 1") as connection:
        before = await guards_of(connection)
        for name, (_, content) in before.items():
            if content.startswith("CHECK"):
                _, constraint, _, table = name.split()
                await connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
                await connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {content}")
        assert before != await guards_of(connection), "at least one is told otherwise"
        assert [] == await changed_guards(connection)


#: (which guard, what is done to it)
TAMPERINGS = [
    ("function fermata_append_only/0", "CREATE OR REPLACE FUNCTION fermata_append_only() RETURNS trigger LANGUAGE "
     "plpgsql AS $$ BEGIN RETURN COALESCE(NEW, OLD);END $$"),
    ("function fermata_withdrawal/0", "CREATE OR REPLACE FUNCTION fermata_withdrawal() RETURNS trigger LANGUAGE "
     "plpgsql AS $$ BEGIN RETURN NEW;END $$"),
    ("function fermata_kept_a_year/0", "ALTER FUNCTION fermata_kept_a_year() SET search_path = pg_temp"),
    ("function fermata_detach_month/1", "DROP FUNCTION fermata_detach_month(integer)"),
    ("trigger journal_append_only on journal", "DROP TRIGGER journal_append_only ON journal; CREATE TRIGGER "
     "journal_append_only BEFORE UPDATE OR DELETE ON journal FOR EACH ROW WHEN (false) "
     "EXECUTE FUNCTION fermata_append_only()"),
    ("trigger journal_append_only on journal", "DROP TRIGGER journal_append_only ON journal; CREATE TRIGGER "
     "journal_append_only BEFORE DELETE OR UPDATE OF actor ON journal FOR EACH ROW "
     "EXECUTE FUNCTION fermata_append_only()"),
    ("trigger price_books_withdrawal on price_books", "DROP TRIGGER price_books_withdrawal ON price_books"),
    ("trigger price_books_in_time on price_books", "ALTER TABLE price_books DISABLE TRIGGER USER"),
    ("trigger lots_audit on lots", "ALTER TABLE lots DISABLE TRIGGER lots_audit"),
    ("trigger lots_audit on lots", "ALTER TABLE lots ENABLE REPLICA TRIGGER lots_audit"),
    ("trigger audit_log_append_only on audit_log", "ALTER TABLE audit_log DISABLE TRIGGER USER"),
    ("trigger audit_log_no_truncate on audit_log", "DROP TRIGGER audit_log_no_truncate ON audit_log"),
    ("constraint lots_buckets_sum on lots", "ALTER TABLE lots DROP CONSTRAINT lots_buckets_sum; "
     "ALTER TABLE lots ADD CONSTRAINT lots_buckets_sum CHECK (true)"),
    ("constraint reservations_charged on reservations", "ALTER TABLE reservations DROP CONSTRAINT "
     "reservations_charged"),
    ("constraint jobs_account_id_idempotency_key_key on jobs",
     "ALTER TABLE jobs DROP CONSTRAINT jobs_account_id_idempotency_key_key"),
    ("constraint jobs_quoted on jobs", "ALTER TABLE jobs DROP CONSTRAINT jobs_quoted; "
     "ALTER TABLE jobs ADD CONSTRAINT jobs_quoted CHECK (quoted BETWEEN 0 AND 1000000000000) NOT VALID"),
    ("unique index lots_reference on lots", "DROP INDEX lots_reference"),
    ("unique index lots_reference on lots", "DROP INDEX lots_reference; CREATE UNIQUE INDEX lots_reference ON lots "
     "(account_id, source, reference) WHERE (reference IS NULL)"),
    ("unique index lots_make_good on lots", "DROP INDEX lots_make_good; CREATE INDEX lots_make_good ON lots "
     "(account_id, job_id) WHERE (reason = 'make_good')"),
]  # fmt: skip


@pytest.mark.parametrize(("guard", "sql"), TAMPERINGS)
async def test_a_guard_that_lost_its_sense_is_named(world: Database, guard: str, sql: str) -> None:
    """Gone, off, for fewer rows or of another body: it doesn't hold what it held, and the audit says which it is."""
    async with tampered(world, sql) as connection:
        found = await audit_on(connection)
    assert "guards_are_ours" in rules_of(found)
    assert any(violation.what.startswith(f"{guard} is ") for violation in found.violations), found.violations


async def test_a_partition_is_guarded_for_every_row_and_column(world: Database) -> None:
    """Its triggers can be taken one by one, whatever its parent has."""
    for when in ("UPDATE OR DELETE ON {} FOR EACH ROW WHEN (false)", "DELETE OR UPDATE OF actor ON {} FOR EACH ROW"):
        async with tampered(
            world,
            "ALTER TABLE journal DETACH PARTITION journal_default; "
            "DROP TRIGGER IF EXISTS journal_append_only ON journal_default; "
            f"CREATE TRIGGER mine BEFORE {when.format('journal_default')} EXECUTE FUNCTION fermata_append_only(); "
            "ALTER TABLE journal DISABLE TRIGGER journal_append_only; "
            "DROP TRIGGER journal_append_only ON journal; "
            f"CREATE TRIGGER journal_append_only BEFORE {when.format('journal')} "
            "EXECUTE FUNCTION fermata_append_only(); "
            "ALTER TABLE journal ATTACH PARTITION journal_default DEFAULT",
        ) as connection:
            found = await audit_on(connection)
        assert any("journal_default can be changed" in violation.what for violation in found.violations), when


async def test_a_schema_of_another_release_is_not_compared(world: Database) -> None:
    """While a release is rolled out, the migrations of the new one are nothing that the old one could judge."""
    async with tampered(world, "DROP INDEX lots_reference; UPDATE alembic_version SET version_num = '9999'") as old:
        assert "guards_are_ours" not in rules_of(await audit_on(old))
