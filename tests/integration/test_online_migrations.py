"""Migrations run beside writers: nobody waits long behind one, and none takes a form that locks a table for long."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
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

#: What holds a lock for as long as a table is large, or takes from the release before what it needs.
UNSAFE = {
    "an index made without CONCURRENTLY locks writers out": r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON (\w+)",
    "a constraint that is checked at once reads the whole table: NOT VALID, then VALIDATE": (
        r"ALTER TABLE (\w+)(?:(?!;)[\s\S])*?ADD CONSTRAINT \w+\s+(?:CHECK|FOREIGN KEY)(?!(?:(?!;)[\s\S])*NOT VALID)"
    ),
    "a column becomes NOT NULL by reading the whole table": r"ALTER TABLE (\w+) ALTER COLUMN \w+ SET NOT NULL",
    "another type rewrites the table": r"ALTER TABLE (\w+) ALTER COLUMN \w+ (?:SET DATA )?TYPE",
    "a new column without a default can't be NOT NULL": (
        r"ALTER TABLE (\w+)\s+ADD COLUMN (?![^,;]*DEFAULT)\w+ [^,;]*NOT NULL"
    ),
    "every row is written in one transaction": r"\bUPDATE (\w+) (?:AS \w+ )?SET",
    "Alembic's own form of it locks as long": (
        r"op\.(create_primary_key|create_unique_constraint|create_check_constraint|create_foreign_key|alter_column)\("
    ),
    "the release before still reads it": r"(?:ALTER TABLE (\w+)[^;]*DROP COLUMN|DROP TABLE (\w+))",
}
#: Tables that stay small, whatever grows.
SMALL = {
    "price_books",
    "plan_books",
    "rehearsals",
    "workers",
    "controls",
    "processes",
    "webhooks",
    "voices",
    "api_keys",
}
#: Those of before the first release that had anything to lose, each with what it does.
BEFORE_THE_FIRST_RELEASE = {
    "0003": "ages of what is queued, three indexes over `due`, which holds unfinished jobs only",
    "0004": "accounts get `look_at`, its index and three constraints",
    "0009": "accounts get limits, their constraints and an index",
    "0014": "the index over the references of lots is made anew",
    "0018": "the primary keys of reservations and attempts are made anew",
}


def statements_of(path: Path) -> str:
    """The SQL of a migration, of whichever of its two files."""
    beside = path.with_suffix(".sql")
    forwards = re.sub(r"\ndef downgrade.*?(?=\n\S(?<!\n[)])|\Z)", "", path.read_text(), flags=re.DOTALL)
    source = forwards + (beside.read_text() if beside.exists() else "")
    joined = re.sub(r'"\s*\n\s*"', "", source)  # literals that go on in the next line
    return re.sub(r"AS \$\$.*?\$\$", "", joined, flags=re.DOTALL)  # bodies of functions run later


def unsafe(path: Path) -> Iterator[str]:
    """What is wrong with a migration, as sentences."""
    sql = statements_of(path)
    new = set(re.findall(r"CREATE (?:UNLOGGED )?TABLE (\w+)", sql))
    for reason, form in UNSAFE.items():
        for found in re.finditer(form, sql):
            table = next(name for name in found.groups() if name)
            if table not in new | SMALL:
                yield f"{table}: {reason}"


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("*.py")), ids=lambda path: path.stem)
def test_a_migration_takes_no_lock_for_long(path: Path) -> None:
    """Each is of safe forms only, or is one of the old ones."""
    found = list(unsafe(path))
    assert bool(found) is (path.stem[:4] in BEFORE_THE_FIRST_RELEASE), f"{path.name}: {'; '.join(found) or 'is safe'}"


@pytest.mark.parametrize(
    ("sql", "wrong"),
    [
        ("CREATE INDEX x ON jobs (kind)", "locks writers out"),
        ("CREATE INDEX CONCURRENTLY x ON jobs (kind)", None),
        ("ALTER TABLE jobs ADD CONSTRAINT c CHECK (quoted > 0)", "NOT VALID"),
        ("ALTER TABLE jobs ADD CONSTRAINT c CHECK (quoted > 0) NOT VALID", None),
        ("ALTER TABLE lots ALTER COLUMN note SET NOT NULL", "reading the whole table"),
        ("ALTER TABLE lots ALTER COLUMN granted TYPE numeric", "rewrites"),
        ("ALTER TABLE lots ADD COLUMN colour TEXT NOT NULL", "without a default"),
        ("ALTER TABLE lots ADD COLUMN colour TEXT DEFAULT 'red' NOT NULL", None),
        ("ALTER TABLE lots ADD COLUMN colour TEXT", None),
        ("UPDATE jobs SET plan = 'x'", "one transaction"),
        ("ALTER TABLE jobs DROP COLUMN traceparent", "the release before"),
        ("never'); op.create_primary_key('jobs_pkey', 'jobs', ['job_id'])  # ('", "Alembic"),
        ("CREATE TABLE mine (a integer); CREATE INDEX x ON mine (a)", None),
    ],
)
def test_an_unsafe_form_is_seen(tmp_path: Path, sql: str, wrong: str | None) -> None:
    """The rules find what they are for, and let the safe way to the same end pass."""
    path = tmp_path / "0099_next.py"
    path.write_text(f'def upgrade() -> None:\n    op.execute("{sql}")\n\n\ndef downgrade() -> None:\n    ...\n')
    found = list(unsafe(path))
    assert bool(found) is (wrong is not None), found
    assert wrong is None or wrong in found[0]


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
