"""A past of many months, made by statements over whole sets: every row as the product would have left it.

Jobs of older months are pruned already, as the settings have it; their entries are still in the journal. Indexes are
made once all is in, the journal beside the other tables, and nothing is sorted: jobs come in the order of their time, a
month after the other, and so does the journal's `seq`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

#: Months of the past, the running one among them.
MONTHS = 10
#: Entries of one job: reserved, partly committed, the rest refunded.
ENTRIES_PER_JOB = 3
_PATIENCE_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is: entries about, and jobs that are kept."""

    entries: int
    jobs: int
    accounts: int

    @property
    def ever(self) -> int:
        """Jobs that there ever were. Each account has two more entries a month: credits come, and the rest expires."""
        return (self.entries - 2 * MONTHS * self.accounts) // ENTRIES_PER_JOB


async def past_made(superuser_dsn: str, size: Size) -> None:
    """Fill a fresh, migrated database. The audit finds nothing wrong in it."""
    values = {
        ":months": str(MONTHS),
        ":accounts": str(size.accounts),
        ":ever": str(size.ever),
        ":kept": str(size.jobs),
    }

    async def run(connection: asyncpg.Connection, statements: Iterable[str]) -> None:
        for statement in statements:
            for name, value in values.items():
                statement = statement.replace(name, value)
            await connection.execute(statement, timeout=_PATIENCE_SECONDS)

    async with _filling(superuser_dsn) as one, _filling(superuser_dsn) as other:
        await run(one, _WHILE_IT_IS_FILLED)
        await run(one, _PAST.split(";\n\n"))
        await asyncio.gather(_indexed_later(one, run, _JOURNAL, ("journal",)), _indexed_later(other, run, _JOBS, _KEPT))
        await run(one, ["DROP TABLE past", "DROP TABLE months"])
        await asyncio.gather(
            one.execute("VACUUM (ANALYZE) journal", timeout=_PATIENCE_SECONDS),
            run(other, [f"VACUUM (ANALYZE) {table}" for table in (*_KEPT, "lots", "accounts")]),
        )
        await run(one, _AFTERWARDS)


@asynccontextmanager
async def _filling(superuser_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    # As a replica, foreign keys and the webhooks' trigger cost nothing: what they ask for is true by construction.
    fast = {"synchronous_commit": "off", "jit": "off", "session_replication_role": "replica", "work_mem": "256MB"}
    # Beside another's scan one may begin in the middle of a table, and `seq` would not grow with time.
    fast |= {"maintenance_work_mem": "512MB", "synchronize_seqscans": "off"}
    connection = await asyncpg.connect(superuser_dsn, server_settings=fast)
    try:
        yield connection
    finally:
        await connection.close()


async def _indexed_later(connection: asyncpg.Connection, run: Any, statements: str, tables: Iterable[str]) -> None:
    """Do the statements while the tables' indexes, as far as nothing leans on them, are not there.

    Afterwards each is back and valid, in every partition: without one a figure would be of another schema.
    """
    there, rows = [await connection.fetch(indexes, list(tables)) for indexes in (_EVERY_INDEX, _INDEXES)]
    await run(connection, [row["away"] for row in rows])
    await run(connection, statements.split(";\n\n"))
    await run(connection, [row["again"] for row in rows])
    left = await connection.fetch(_EVERY_INDEX, list(tables))
    assert there == left, f"not as they were: {set(there) ^ set(left)}"
    assert all(row["indisvalid"] for row in left), left


#: Only the server that is measured is set so, and only meanwhile: what is written here is never to be recovered.
_WHILE_IT_IS_FILLED = (
    "ALTER SYSTEM SET max_wal_size = '32GB'",
    "ALTER SYSTEM SET checkpoint_timeout = '1h'",
    "ALTER SYSTEM SET full_page_writes = off",
    "ALTER SYSTEM SET autovacuum = off",
    "SELECT pg_reload_conf()",
)
_AFTERWARDS = ("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()", "CHECKPOINT")

#: Tables of kept jobs. An index that a foreign key leans on stays.
_KEPT = ("jobs", "reservations", "attempts", "artifacts", "events")

#: A partitioned table's own definition says ONLY: then no partition would have the index.
_INDEXES = """
    SELECT CASE WHEN k.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
                ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, k.conname) END AS away,
           CASE WHEN k.oid IS NULL THEN replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ')
                ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, k.conname,
                            pg_get_constraintdef(k.oid)) END AS again
    FROM pg_index AS i
    LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u')
    WHERE i.indrelid = ANY (CAST($1::text[] AS regclass[]))
      AND NOT EXISTS (SELECT FROM pg_constraint AS f WHERE f.conindid = i.indexrelid AND f.contype = 'f')
"""

#: Of the tables and of each of their partitions, whatever its name is.
_EVERY_INDEX = """
    WITH named AS (
        SELECT name::regclass AS relid FROM unnest($1::text[]) AS name
    )
    SELECT i.indrelid::regclass::text, regexp_replace(pg_get_indexdef(i.indexrelid), ' INDEX \\S+ ', ' INDEX ') AS made,
           i.indisvalid
    FROM pg_index AS i
    WHERE i.indrelid IN (
        SELECT relid FROM named UNION ALL SELECT inhrelid FROM pg_inherits JOIN named ON relid = inhparent
    )
    ORDER BY 1, 2
"""

_PAST = """
CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT clock_timestamp() - (:months - 1) * interval '1 month' $$;

SELECT fermata_make_partitions(:months - 1);

CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT clock_timestamp() $$;

CREATE UNLOGGED TABLE months AS
SELECT m, starts_at, LEAST(starts_at + interval '1 month', now() - interval '1 hour') AS ends_at,
       starts_at + interval '1 month' AS expires_at, starts_at + interval '1 month' < now() AS is_over,
       -- Jobs of a month, by their numbers.
       (m * CAST(:ever AS bigint) + :months - 1) / :months + 1 AS first,
       ((m + 1) * CAST(:ever AS bigint) + :months - 1) / :months AS last
FROM generate_series(0, :months - 1) AS m
CROSS JOIN LATERAL (
    SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - (:months - 1 - m) * interval '1 month') AT TIME ZONE 'UTC'
) AS s (starts_at);

INSERT INTO accounts (account_id, created_at, actor)
SELECT 'account-' || n, (SELECT min(starts_at) FROM months), 'bench'
FROM generate_series(1, :accounts) AS n;

-- A job's id grows with its age, as those of the product do: its milliseconds, then its number.
CREATE UNLOGGED TABLE past AS
SELECT m.m, n, 'account-' || (1 + n % :accounts) AS account_id, j.at, 10 AS quoted, 6 AS charged,
       CAST(lpad(to_hex(CAST(extract(epoch FROM j.at) * 1000 AS bigint)), 12, '0') || '7000' || 'a'
            || lpad(to_hex(n), 15, '0') AS uuid) AS job_id,
       CAST(1 + n % :accounts + m.m * :accounts AS bigint) AS lot_id
FROM months AS m
CROSS JOIN LATERAL generate_series(m.first, m.last) AS n
CROSS JOIN LATERAL (
    SELECT m.starts_at + interval '1 hour'
           + (m.ends_at - m.starts_at - interval '2 hours') * ((n - m.first) / (m.last - m.first + 1)::float)
) AS j (at)
ORDER BY m.m, n;

ANALYZE past;

INSERT INTO lots (account_id, lot_id, source, granted, available, spent, expired, created_at, expires_at, reason,
    reference, closed)
SELECT 'account-' || a, a + m.m * :accounts, 'grant', 1000000,
       CASE WHEN m.is_over THEN 0 ELSE 1000000 - COALESCE(p.spent, 0) END, COALESCE(p.spent, 0),
       CASE WHEN m.is_over THEN 1000000 - COALESCE(p.spent, 0) ELSE 0 END, m.starts_at, m.expires_at, 'grant',
       'month-' || m.m, m.is_over
FROM generate_series(1, :accounts) AS a
CROSS JOIN months AS m
LEFT JOIN (SELECT lot_id, sum(charged) AS spent FROM past GROUP BY lot_id) AS p ON p.lot_id = a + m.m * :accounts
ORDER BY m.m, a;

SELECT setval('lot_ids', (SELECT max(lot_id) FROM lots))
"""

#: Month after month: the last one's rest expires, credits come, jobs are paid.
_JOURNAL = """
DO $$
DECLARE
    month months%ROWTYPE;
BEGIN
    FOR month IN SELECT * FROM months ORDER BY m LOOP
        INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor)
        SELECT account_id, expires_at + interval '1 second', lot_id, 'expire', expired, 'expired', 'bench'
        FROM lots
        WHERE expired > 0 AND expires_at = month.starts_at;
        INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor)
        SELECT account_id, created_at + interval '1 minute', lot_id, 'grant', granted, 'grant', 'bench'
        FROM lots
        WHERE created_at = month.starts_at;
        INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
        SELECT p.account_id, e.at, p.lot_id, e.move, e.amount, p.job_id, e.reason, 'bench'
        FROM past AS p
        CROSS JOIN LATERAL (
            VALUES (p.at, 'reserve', p.quoted, 'reserve'),
                   (p.at + interval '1 minute', 'commit', p.charged, 'succeeded'),
                   (p.at + interval '1 minute', 'refund', p.quoted - p.charged, 'succeeded')
        ) AS e (at, move, amount, reason)
        WHERE p.m = month.m;
    END LOOP;
END
$$
"""

_JOBS = """
CREATE UNLOGGED TABLE kept AS
SELECT account_id, job_id, lot_id, at, quoted, charged, gen_random_uuid() AS token, gen_random_uuid() AS artifact_id
FROM past
WHERE n > :ever - :kept;

INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, metadata, quoted,
    book_id, plan, on_insufficient, ends_by, actor, created_at, failures_max, attempt, started_at, ended_at, reason,
    charged, outputs)
SELECT account_id, job_id, job_id::text, '\\x00', 'generation', 'generation', 'succeeded',
       '{"prompt": "a song about the sea and what it takes", "model": "standard", "seconds": 30}',
       '{}', '{}', quoted, 1, NULL, 'refuse', at + interval '1 day', 'bench', at - interval '1 minute', 3, 1, at,
       at + interval '1 minute', 'succeeded', charged,
       jsonb_build_array(jsonb_build_object('artifact', artifact_id, 'name', 'song', 'seconds', '10'))
FROM kept;

INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at, settled_at,
    reason)
SELECT account_id, job_id, quoted, 'committed', charged, ARRAY[lot_id], ARRAY[quoted], at, at + interval '1 minute',
       'succeeded'
FROM kept;

INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending, usage)
SELECT account_id, job_id, 1, token, 'w1', at, at + interval '1 minute', 'succeeded',
       '[{"output": "song", "seconds_in": "0", "seconds_out": "10"}]'
FROM kept;

INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate, channels,
    bytes, created_at, job_id, token, actor)
SELECT account_id, artifact_id, 'song', 'audio/wav', 'outputs/' || job_id || '/' || token || '/song',
       sha256(uuid_send(artifact_id)), 441000, 44100, 2, 1764044, at + interval '1 minute', job_id, token, 'settle'
FROM kept;

INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged)
SELECT account_id, at + interval '1 minute', 'ended', job_id, 'succeeded', 'generation', 'generation', 'succeeded',
       charged
FROM kept;

DROP TABLE kept
"""
