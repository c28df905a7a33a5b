"""A past of many months, made by statements over whole sets: every row as the product would have left it.

Jobs of older months are pruned already, as the settings have it; their entries are still in the journal.
"""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

#: Months of the past, the running one among them.
MONTHS = 10
#: Entries of one job: reserved, partly committed, the rest refunded.
ENTRIES_PER_JOB = 3


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
    # As a replica, foreign keys and the webhooks' trigger cost nothing: what they ask for is true by construction.
    fast = {"synchronous_commit": "off", "jit": "off", "session_replication_role": "replica", "work_mem": "256MB"}
    connection = await asyncpg.connect(superuser_dsn, server_settings={**fast, "maintenance_work_mem": "512MB"})
    values = {
        ":months": str(MONTHS),
        ":accounts": str(size.accounts),
        ":ever": str(size.ever),
        ":kept": str(size.jobs),
    }
    try:
        for statement in _PAST.split(";\n\n"):
            for name, value in values.items():
                statement = statement.replace(name, value)
            await connection.execute(statement, timeout=900)
        await connection.execute("VACUUM (ANALYZE)", timeout=900)
    finally:
        await connection.close()


_PAST = """
CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT clock_timestamp() - (:months - 1) * interval '1 month' $$;

SELECT fermata_make_partitions(:months - 1);

CREATE OR REPLACE FUNCTION fermata_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT clock_timestamp() $$;

CREATE TEMPORARY TABLE months AS
SELECT m, starts_at, LEAST(starts_at + interval '1 month', now() - interval '1 hour') AS ends_at,
       starts_at + interval '1 month' AS expires_at, starts_at + interval '1 month' < now() AS is_over
FROM generate_series(0, :months - 1) AS m
CROSS JOIN LATERAL (
    SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') - (:months - 1 - m) * interval '1 month') AT TIME ZONE 'UTC'
) AS s (starts_at);

INSERT INTO accounts (account_id, created_at, actor)
SELECT 'account-' || n, (SELECT min(starts_at) FROM months), 'bench'
FROM generate_series(1, :accounts) AS n;

CREATE TEMPORARY TABLE past AS
SELECT n, 'account-' || (1 + n % :accounts) AS account_id, gen_random_uuid() AS job_id, gen_random_uuid() AS token,
       gen_random_uuid() AS artifact_id, CAST(1 + n % :accounts + m.m * :accounts AS bigint) AS lot_id,
       m.starts_at + interval '1 hour'
           + (m.ends_at - m.starts_at - interval '2 hours') * (((n - 1) * :months % :ever) / :ever::float) AS at,
       10 AS quoted, 6 AS charged
FROM generate_series(1, :ever) AS n
JOIN months AS m ON m.m = (n - 1) * :months / :ever;

INSERT INTO lots (account_id, lot_id, source, granted, available, spent, expired, created_at, expires_at, reason,
    reference, closed)
SELECT 'account-' || a, a + m.m * :accounts, 'grant', 1000000,
       CASE WHEN m.is_over THEN 0 ELSE 1000000 - COALESCE(p.spent, 0) END, COALESCE(p.spent, 0),
       CASE WHEN m.is_over THEN 1000000 - COALESCE(p.spent, 0) ELSE 0 END, m.starts_at, m.expires_at, 'grant',
       'month-' || m.m, m.is_over
FROM generate_series(1, :accounts) AS a
CROSS JOIN months AS m
LEFT JOIN (SELECT lot_id, sum(charged) AS spent FROM past GROUP BY lot_id) AS p ON p.lot_id = a + m.m * :accounts;

SELECT setval('lot_ids', (SELECT max(lot_id) FROM lots));

INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
SELECT account_id, at, lot_id, move, amount, job_id, reason, 'bench'
FROM (
    SELECT account_id, created_at + interval '1 minute' AS at, 0 AS place, lot_id, 'grant' AS move, granted AS amount,
           NULL::uuid AS job_id, 'grant' AS reason
    FROM lots
    UNION ALL
    SELECT account_id, at, 1, lot_id, 'reserve', quoted, job_id, 'reserve' FROM past
    UNION ALL
    SELECT account_id, at + interval '1 minute', 2, lot_id, 'commit', charged, job_id, 'succeeded' FROM past
    UNION ALL
    SELECT account_id, at + interval '1 minute', 3, lot_id, 'refund', quoted - charged, job_id, 'succeeded' FROM past
    UNION ALL
    SELECT account_id, expires_at + interval '1 second', 4, lot_id, 'expire', expired, NULL, 'expired'
    FROM lots
    WHERE expired > 0
) AS entries
ORDER BY at, place;

DELETE FROM past WHERE n <= :ever - :kept;

INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, metadata, quoted,
    book_id, plan, on_insufficient, ends_by, actor, created_at, failures_max, attempt, started_at, ended_at, reason,
    charged, outputs)
SELECT account_id, job_id, job_id::text, '\\x00', 'generation', 'generation', 'succeeded',
       '{"prompt": "a song about the sea and what it takes", "model": "standard", "seconds": 240}',
       '{}', '{}', quoted, 1, NULL, 'refuse', at + interval '1 day', 'bench', at - interval '1 minute', 3, 1, at,
       at + interval '1 minute', 'succeeded', charged,
       jsonb_build_array(jsonb_build_object('artifact', artifact_id, 'name', 'song', 'seconds', '240'))
FROM past;

INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at, settled_at,
    reason)
SELECT account_id, job_id, quoted, 'committed', charged, ARRAY[lot_id], ARRAY[quoted], at, at + interval '1 minute',
       'succeeded'
FROM past;

INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending, usage)
SELECT account_id, job_id, 1, token, 'w1', at, at + interval '1 minute', 'succeeded',
       '[{"output": "song", "seconds_in": "0", "seconds_out": "240"}]'
FROM past;

INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate, channels,
    bytes, created_at, job_id, token, actor)
SELECT account_id, artifact_id, 'song', 'audio/wav', 'outputs/' || job_id || '/' || token || '/song',
       sha256(uuid_send(artifact_id)), 10584000, 44100, 2, 42336044, at + interval '1 minute', job_id, token, 'settle'
FROM past;

INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged)
SELECT account_id, at + interval '1 minute', 'ended', job_id, 'succeeded', 'generation', 'generation', 'succeeded',
       charged
FROM past
ORDER BY at;

DROP TABLE past
"""
