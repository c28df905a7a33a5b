"""Migrations run beside writers: nobody waits long behind one, and none takes a form that locks a table for long."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from structlog.testing import capture_logs

from config.settings import Settings
from tests.acceptance.stage import until
from tests.integration.cli_support import Fermata
from tests.integration.online import ENTRIES, statements, unsafe
from tests.integration.test_schema import empty_database
from tests.servers import Database, Servers
from worker.local.roles import dsn
from worker.store.errors import MigrationWaited
from worker.store.migrate import LOCK_MILLISECONDS, migrate, patiently, upgraded

VERSIONS = Path(__file__).parents[2] / "worker/store/migrations/versions"
#: Before turns, credits as sold, webhooks, checkpoints.
OLD = "0002"
WRITERS, JOBS = 3, 3000


async def as_it_was(owner_url: str) -> None:
    """The schema of an older release, with jobs in it."""
    await stepped(owner_url, OLD)
    owner = await asyncpg.connect(dsn(owner_url))
    for statement in _FILLED.split(";\n\n"):
        await owner.execute(statement.replace(":jobs", str(JOBS)))
    await owner.close()


@dataclass(slots=True)
class Written:
    """What writers did: how long each step took, and how many the database turned away."""

    stalls: list[float] = field(default_factory=list)
    refused: int = 0


async def writing(owner_url: str, number: int, stop: asyncio.Event, written: Written) -> int:
    """What every release does to an account, until told to stop: returns how often it tried.

    It waits for a lock as long as our own processes do, and is turned away then, by PostgreSQL's clock.
    """
    waits = {"lock_timeout": f"{round(1000 * Settings().lock_timeout_seconds)}"}
    connection = await asyncpg.connect(dsn(owner_url), command_timeout=60, server_settings=waits)
    done = 0
    while not stop.is_set():
        started = monotonic()
        try:
            for statement in _ONE_STEP.split(";\n\n"):
                await connection.execute(statement.replace(":number", str(number)))
        except asyncpg.LockNotAvailableError:
            await connection.execute("ROLLBACK")
            written.refused += 1
        else:
            written.stalls.append(monotonic() - started)
        done += 1
    await connection.close()
    return done


@asynccontextmanager
async def writers(owner_url: str) -> AsyncIterator[Written]:
    """Several of them for as long as the block."""
    stop, written = asyncio.Event(), Written()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(writing(owner_url, number, stop, written)) for number in range(WRITERS)]
        yield written
        stop.set()
    assert all(task.result() for task in tasks)


async def test_writers_go_on_while_the_schema_grows_up(servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    """From an old schema to this one beside writers, while somebody reads a table for long: it steps back till then.

    Nobody is turned away: who queues behind a migration goes on before a lock's time is up.
    """
    async with empty_database(servers) as url:
        await as_it_was(url)
        reader = await asyncpg.connect(dsn(url))
        async with writers(url) as written:
            stalls = written.stalls
            await reader.execute("BEGIN")
            await reader.execute("SELECT count(*) FROM accounts, due")
            with capture_logs() as logs:
                migrating = asyncio.create_task(migrate(url))
                await until(lambda: any("waits" in entry["event"] for entry in logs), "it was in somebody's way")
                before = len(stalls)
                await until(lambda: len(stalls) >= before + WRITERS, "it waits, they do not")
                assert not migrating.done()
                await reader.execute("ROLLBACK")
                await migrating
            after = len(stalls)
            await until(lambda: len(stalls) >= after + WRITERS, "they go on")
        await reader.close()
        owner = await asyncpg.connect(dsn(url))
        assert JOBS == await owner.fetchval("SELECT count(*) FROM due WHERE since IS NOT NULL")
        steps = await owner.fetchval("SELECT sum(spent) FROM lots")
        assert 0 == written.refused
        assert steps == len(stalls) == await owner.fetchval("SELECT count(*) FROM journal")
        await owner.close()
    with capsys.disabled():
        sys.stdout.write(f"\nlongest of {len(stalls):,} steps beside the migrations: {1000 * max(stalls):.0f} ms ")


#: After the heart, each on top of the one before.
SINCE = [revision for revision in sorted(path.stem[:4] for path in VERSIONS.glob("*.py")) if revision > OLD]


async def test_no_migration_waits_behind_a_long_transaction(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one that reads every table and does not end, each is through at once, or gives up and left nothing."""
    monkeypatch.setattr("worker.store.migrate.PATIENCE_SECONDS", 0.0)
    waited = []
    async with empty_database(servers) as url:
        await as_it_was(url)
        reader, owner = await asyncpg.connect(dsn(url)), await asyncpg.connect(dsn(url))
        for revision in SINCE:
            before = await owner.fetch(_CATALOGUE)
            await reader.execute("BEGIN")
            await reader.execute(await owner.fetchval(_READ_EVERY_TABLE))
            if (told := await why_not(url, revision)) is not None:
                assert f"at revision {int(revision) - 1:04}, and nothing of the next one was done" in told
                assert f"pid {reader.get_server_pid()} " in told
                assert before == await owner.fetch(_CATALOGUE)
                waited.append(revision)
            await reader.execute("ROLLBACK")
            await stepped(url, revision)
        await reader.close()
        await owner.close()
    assert {"0003", "0004", "0009"} <= set(waited) < set(SINCE)


async def why_not(url: str, revision: str) -> str | None:
    """Try that migration; what is said if it gives up."""
    try:
        await stepped(url, revision)
    except MigrationWaited as error:
        return str(error)
    return None


async def stepped(url: str, revision: str) -> None:
    """One migration, as `migrate` does all of them."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await patiently(connection, lambda open_one: open_one.run_sync(upgraded, revision))
    finally:
        await engine.dispose()


async def test_who_is_in_the_way_is_told_in_one_line(
    fermata: Fermata, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command gives up in time, says what to do, and the schema stays as it was."""
    monkeypatch.setattr("worker.store.migrate.PATIENCE_SECONDS", 0.0)
    async with database.connection(as_owner=True) as reader:
        await reader.execute("UPDATE alembic_version SET version_num = '0019'")
        await reader.execute("DROP FUNCTION fermata_book_in_time() CASCADE")
        await reader.execute("BEGIN")
        await reader.execute("LOCK TABLE price_books IN ROW EXCLUSIVE MODE")
        monkeypatch.setenv("FERMATA_OWNER_DATABASE_URL", dsn(database.owner_url))
        answer = await asyncio.to_thread(fermata, "migrate")
        await reader.execute("ROLLBACK")
        assert (3, True) == (answer.code, f"pid {reader.get_server_pid()} " in answer.complaint), answer.err
        assert "stays at revision 0019" in answer.complaint
        assert "run `fermata migrate` again" in answer.complaint
        assert "0019" == await reader.fetchval("SELECT version_num FROM alembic_version")


# --- what a migration may do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("*.py")), ids=lambda path: path.stem)
def test_a_migration_takes_no_lock_for_long(path: Path) -> None:
    """Each statement is of a form that is known to be safe, or stands in the list with its reason."""
    entries = [begins for revision, begins in ENTRIES if revision == path.stem[:4]]
    found = unsafe(path)
    assert [] == [why for statement, why in found if not statement.startswith(tuple(entries))]
    assert [] == [begins for begins in entries if not any(statement.startswith(begins) for statement, _ in found)]


def test_each_entry_is_of_a_migration_that_there_is() -> None:
    """With a reason; and nothing of a migration escapes: each sends something that is looked at."""
    paths = {path.stem[:4]: path for path in VERSIONS.glob("*.py")}
    assert {revision for revision, _ in ENTRIES} <= paths.keys()
    assert all(ENTRIES.values())
    assert [] == [revision for revision, path in paths.items() if not statements(path)]


def next_one(folder: Path, *lines: str) -> Path:
    """A migration after the newest, that does this."""
    path = folder / "0099_next.py"
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\n\n\ndef upgrade() -> None:\n{body}\n\n"
        "def downgrade() -> None:\n    ...\n"
    )
    return path


@pytest.mark.parametrize(
    ("sql", "wrong"),
    [
        ("CREATE INDEX x ON jobs (kind)", "locks writers out"),
        ("CREATE UNIQUE INDEX x ON jobs (kind)", "locks writers out"),
        ("CREATE INDEX IF NOT EXISTS x ON jobs (kind)", "locks writers out"),
        ("CREATE INDEX ON jobs (kind)", "locks writers out"),
        ("create index x on jobs (kind)", "locks writers out"),
        ("CREATE INDEX x ON public.jobs (kind)", "locks writers out"),
        ('CREATE INDEX x ON "public"."jobs" (kind)', "locks writers out"),
        ("CREATE INDEX x ON ONLY jobs (kind)", "locks writers out"),
        ("CREATE\n  INDEX\tx\nON jobs (kind)", "locks writers out"),
        ("CREATE /* CONCURRENTLY */ INDEX x -- beside\n ON jobs (kind)", "locks writers out"),
        ("REINDEX TABLE jobs", "locks writers out"),
        ("CLUSTER jobs USING jobs_pkey", "locks writers out"),
        ("ALTER TABLE jobs ADD CONSTRAINT c CHECK (quoted > 0)", "NOT VALID"),
        ("alter table jobs add constraint c check (note <> 'NOT VALID')", "NOT VALID"),
        ("ALTER TABLE jobs ADD CHECK (quoted > 0)", "NOT VALID"),
        ("ALTER TABLE jobs ADD FOREIGN KEY (book_id) REFERENCES price_books", "NOT VALID"),
        ("ALTER TABLE jobs ADD CONSTRAINT u UNIQUE (idempotency_key)", "locks everybody out"),
        ("ALTER TABLE jobs ADD UNIQUE (kind)", "locks everybody out"),
        ("ALTER TABLE jobs ADD PRIMARY KEY (job_id)", "locks everybody out"),
        ("ALTER TABLE jobs ADD CONSTRAINT e EXCLUDE USING btree (kind WITH =)", "locks everybody out"),
        ("ALTER TABLE lots ALTER COLUMN note SET NOT NULL", "reading the whole table"),
        ("ALTER TABLE jobs ALTER kind SET NOT NULL", "reading the whole table"),
        ("ALTER TABLE IF EXISTS jobs ALTER COLUMN kind SET NOT NULL", "reading the whole table"),
        ("ALTER TABLE jobs ADD COLUMN x INT, ALTER COLUMN kind SET NOT NULL", "reading the whole table"),
        ("ALTER TABLE lots ALTER COLUMN granted TYPE numeric", "rewrites"),
        ("ALTER TABLE lots ALTER granted SET DATA TYPE numeric", "rewrites"),
        ("ALTER TABLE lots ADD COLUMN colour TEXT NOT NULL", "without a default"),
        ("ALTER TABLE lots ADD colour TEXT NOT NULL", "without a default"),
        ("ALTER TABLE jobs ADD COLUMN x TEXT DEFAULT gen_random_uuid()::text", "same constant"),
        ("ALTER TABLE jobs ADD COLUMN x TIMESTAMPTZ DEFAULT clock_timestamp()", "same constant"),
        ("ALTER TABLE jobs ADD COLUMN x BIGSERIAL", "same constant"),
        ("ALTER TABLE jobs ADD COLUMN x INT GENERATED ALWAYS AS (quoted * 2) STORED", "same constant"),
        ("ALTER TABLE jobs ADD COLUMN x INT CHECK (x > 0) REFERENCES price_books (book_id)", "same constant"),
        ("ALTER TABLE jobs ADD COLUMN x INT UNIQUE", "same constant"),
        ("UPDATE jobs SET plan = 'x'", "one transaction"),
        ("update only jobs as j set plan = 'x'", "one transaction"),
        ("WITH x AS (SELECT 1) UPDATE jobs SET plan = 'x'", "nobody knows"),
        ("DELETE FROM jobs WHERE state = 'failed'", "one transaction"),
        ("INSERT INTO told SELECT account_id FROM accounts", "one transaction"),
        ("DO $$ BEGIN UPDATE jobs SET plan='x'; END $$", "nobody knows"),
        ("SELECT fermata_prune_jobs(0, NULL, 1000000)", "nobody knows"),
        ("ALTER TABLE jobs DROP COLUMN traceparent", "the release before"),
        ("ALTER TABLE jobs DROP traceparent", "the release before"),
        ("ALTER TABLE workers DROP COLUMN lacks", "the release before"),
        ("ALTER TABLE jobs RENAME COLUMN kind TO sort", "the release before"),
        ("ALTER TABLE jobs RENAME TO works", "the release before"),
        ("DROP TABLE jobs", "the release before"),
        ("DROP FUNCTION fermata_now()", "the release before"),
        ("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE", "locks everybody out"),
        ("TRUNCATE jobs", "locks everybody out"),
        ("VACUUM FULL jobs", "locks everybody out"),
        ("ALTER TABLE jobs SET LOGGED", "nobody knows"),
        ("ALTER TABLE jobs SET TABLESPACE fast", "nobody knows"),
        ("ALTER TABLE events ATTACH PARTITION jobs DEFAULT", "nobody knows"),
        ("CREATE TABLE mine PARTITION OF events DEFAULT", "nobody knows"),
        ("CREATE TABLE mine AS SELECT * FROM jobs; CREATE INDEX x ON mine (kind)", "nobody knows"),
        ("CREATE TABLE IF NOT EXISTS jobs (a integer); CREATE INDEX x ON jobs (kind)", "nobody knows"),
        ("CREATE MATERIALIZED VIEW mine AS SELECT * FROM jobs", "nobody knows"),
        ("REFRESH MATERIALIZED VIEW mine", "nobody knows"),
        ("SET LOCAL lock_timeout = 0", "nobody knows"),
    ],
)
def test_an_unsafe_form_is_seen(tmp_path: Path, sql: str, wrong: str) -> None:
    """However it is written, wherever it stands; what is of no form that we know is refused too."""
    found = unsafe(next_one(tmp_path, f"op.execute({sql!r})"))
    assert found, "it passed"
    assert wrong in found[0][1]
    assert found == unsafe(next_one(tmp_path, f"op.get_bind().exec_driver_sql({'SELECT 1; ' + sql!r})"))[1:]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("op.create_primary_key('jobs_pkey', 'jobs', ['job_id'])", "locks everybody out"),
        ("op.create_unique_constraint('u', 'jobs', ['kind'])", "locks everybody out"),
        ("op.create_check_constraint('c', 'jobs', 'quoted > 0')", "NOT VALID"),
        ("op.create_foreign_key('f', 'jobs', 'accounts', ['account_id'], ['account_id'])", "NOT VALID"),
        ("op.create_index('x', 'jobs', ['kind'])", "locks writers out"),
        ("op.alter_column('jobs', 'kind', nullable=False)", "reading the whole table"),
        ("op.alter_column('jobs', 'kind', type_=sa.Integer())", "rewrites"),
        ("op.alter_column('jobs', 'kind', new_column_name='sort')", "the release before"),
        ("op.drop_column('jobs', 'kind')", "the release before"),
        ("op.rename_table('jobs', 'works')", "the release before"),
        ("[op.execute(f'UPDATE {table} SET x = 1') for table in ('jobs',)]", "one transaction"),
    ],
)
def test_alembics_own_forms_are_seen(tmp_path: Path, line: str, wrong: str) -> None:
    """By the SQL that they send."""
    assert wrong in unsafe(next_one(tmp_path, line))[0][1]


@pytest.mark.parametrize(
    "line",
    [
        "op.execute('CREATE INDEX CONCURRENTLY x ON jobs (kind)')",
        "op.execute('create unique index concurrently if not exists x on public.jobs (kind)')",
        "op.execute('DROP INDEX CONCURRENTLY jobs_job_id')",
        "op.execute('ALTER TABLE jobs ADD CONSTRAINT c CHECK (quoted > 0) NOT VALID')",
        "op.execute('ALTER TABLE jobs VALIDATE CONSTRAINT c')",
        "op.execute('ALTER TABLE jobs ADD CONSTRAINT u UNIQUE USING INDEX x')",
        "op.execute('ALTER TABLE lots ADD COLUMN colour TEXT')",
        "op.execute('ALTER TABLE lots ADD COLUMN at TIMESTAMP WITH TIME ZONE, ADD COLUMN n NUMERIC(10, 2)')",
        "op.execute(\"ALTER TABLE lots ADD COLUMN colour TEXT DEFAULT 'red' NOT NULL\")",
        "op.execute(\"ALTER TABLE workers ADD COLUMN x TEXT[] NOT NULL DEFAULT '{}'\")",
        "op.execute('ALTER TABLE jobs ALTER COLUMN kind DROP NOT NULL')",
        "op.execute('ALTER TABLE jobs SET (fillfactor = 50)')",
        "op.execute('CREATE TABLE mine (a integer); CREATE INDEX x ON mine (a); UPDATE mine SET a = 1')",
        "op.execute('ALTER TABLE workers ALTER COLUMN lacks SET NOT NULL')",
        "op.execute('CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ DELETE FROM jobs; SELECT 1 $$')",
        "op.execute(\"COMMENT ON TABLE jobs IS 'what; UPDATE jobs SET x'\")",
        "op.add_column('jobs', sa.Column('x', sa.Text()))",
    ],
)
def test_the_safe_way_to_the_same_end_passes(tmp_path: Path, line: str) -> None:
    """Beside writers, in an instant."""
    assert [] == unsafe(next_one(tmp_path, line))


def test_a_statement_outside_a_transaction_is_seen(tmp_path: Path) -> None:
    """Alembic's block for it hides nothing."""
    block = "with op.get_context().autocommit_block():"
    assert [] == unsafe(next_one(tmp_path, block, "    op.execute('CREATE INDEX CONCURRENTLY x ON jobs (kind)')"))
    assert "one transaction" in unsafe(next_one(tmp_path, block, "    op.execute('DELETE FROM jobs')"))[0][1]


def test_a_migration_waits_only_so_long() -> None:
    """What a customer may feel at most, each time that it tries."""
    assert LOCK_MILLISECONDS <= 500


_FILLED = """
INSERT INTO accounts (account_id, created_at, actor) SELECT 'a' || n, now(), 't' FROM generate_series(0, 9) AS n;

INSERT INTO lots (account_id, lot_id, source, granted, available, created_at, reason)
SELECT account_id, 1, 'grant', 1000000, 1000000, now(), 'grant' FROM accounts;

INSERT INTO price_books (document, digest, effective_at, author, note, created_at)
VALUES ('', '', now(), '', '', now());

INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, metadata, quoted,
    book_id, on_insufficient, ends_by, actor, created_at, failures_max)
SELECT 'a' || n % 10, gen_random_uuid(), n::text, '', 'k', 'q', 'queued', '{}', '{}', '{}', 1, 1, 'refuse',
       now() + interval '1 day', 't', now(), 3
FROM generate_series(1, :jobs) AS n;

INSERT INTO due (account_id, job_id, queue, kind, priority, not_before, ends_by)
SELECT account_id, job_id, queue, kind, 0, now(), ends_by FROM jobs
"""

#: Everything that a migration could leave behind.
_CATALOGUE = """
    SELECT 'relation' AS what, c.relname::text AS name, c.relkind::text AS more FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'column', a.attrelid::regclass || '.' || a.attname, a.atttypid::regtype::text FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid AND c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', p.proname, p.prosrc FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'trigger', t.tgrelid::regclass || '.' || t.tgname, '' FROM pg_trigger AS t
    UNION ALL
    SELECT 'constraint', k.conrelid::regclass || '.' || k.conname, k.convalidated::text FROM pg_constraint AS k
    UNION ALL
    SELECT 'revision', version_num, '' FROM alembic_version
    ORDER BY 1, 2, 3
"""

_READ_EVERY_TABLE = """
    SELECT string_agg(format('SELECT count(*) FROM %I', tablename), ' UNION ALL ')
    FROM pg_tables
    WHERE schemaname = 'public'
"""

#: Each in a transaction of its own would not be one step; the driver sends several statements as one.
_ONE_STEP = """
BEGIN;
SELECT 1 FROM accounts WHERE account_id = 'a:number' FOR NO KEY UPDATE;
UPDATE lots SET available = available - 1, spent = spent + 1 WHERE account_id = 'a:number' AND lot_id = 1;
INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor)
VALUES ('a:number', fermata_now(), 1, 'commit', 1, '', '');
INSERT INTO events (account_id, at, what) VALUES ('a:number', fermata_now(), 'x');
UPDATE due SET hints = hints + 1 WHERE account_id = 'a:number' AND job_id = (SELECT min(job_id::text)::uuid FROM due);
COMMIT
"""
