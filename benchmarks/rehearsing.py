"""How fast a draft price book is tried out on past jobs: a million of them, a month of a busy service."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from statistics import median

import asyncpg

from benchmarks.report import Figure, at_least
from config.settings import Settings
from worker import collector
from worker.boot import opened_store, price_desk
from worker.local.roles import dsn
from worker.local.system import LocalServers

JOBS = 1_000_000
ACCOUNTS = 20_000
#: What was promised of a million jobs.
SECONDS_MAX = 60


@dataclass(frozen=True, slots=True)
class Run:
    """One rehearsal: how long, and by how many bytes this process had grown at the end."""

    seconds: float
    jobs: int
    grown_mb: float


def measured(servers: LocalServers, rounds: int) -> list[Figure]:
    """A million jobs so many times, and a tenth of them before it, to see whether memory grows with them."""
    small, large, *more = asyncio.run(_measured(servers, rounds))
    seconds = median(run.seconds for run in (large, *more))
    promise = f"{JOBS:,} jobs in {seconds:.0f} s; promised: {SECONDS_MAX} s"
    return [
        at_least("rehearse_jobs_per_s", JOBS / seconds, "jobs/s", JOBS / SECONDS_MAX, promise),
        Figure(
            "rehearse_grown_mb",
            large.grown_mb,
            "MB",
            small.grown_mb,
            None,
            f"of {large.jobs:,} jobs beside {small.jobs:,}",
        ),
    ]


async def _measured(servers: LocalServers, rounds: int) -> list[Run]:
    await past_made(dsn(servers.owner_database_url), JOBS, ACCOUNTS)
    settings = Settings(database_url=servers.database_url)
    document = resources.files("config").joinpath("prices.toml").read_text(encoding="utf-8")
    draft = document.replace("base = 4", "base = 6").replace("step_seconds = 60", "step_seconds = 30")
    async with opened_store(settings, "fermata-bench") as store:
        desk = price_desk(settings, store.engine, store.books)
        collector.calm()  # as the command does
        runs = []
        # The jobs ended evenly over 30 days.
        for length in (timedelta(days=3), *[timedelta(days=31)] * rounds):
            before, start = _rss_mb(), time.monotonic()
            found = await desk.rehearse(draft, length, "bench")
            runs.append(Run(time.monotonic() - start, found.outcome.jobs, _rss_mb() - before))
    assert all(run.jobs == JOBS for run in runs[1:])
    return runs


def _rss_mb() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def past_made(owner_dsn: str, jobs: int, accounts: int, days: int = 30) -> None:
    """Ended jobs of three kinds, with their attempts, lots and commits; lengths that hardly ever repeat."""
    connection = await asyncpg.connect(owner_dsn, server_settings={"synchronous_commit": "off", "jit": "off"})
    try:
        for statement in _PAST.split(";\n\n"):
            await connection.execute(
                statement.replace(":jobs", str(jobs)).replace(":accounts", str(accounts)).replace(":days", str(days)),
                timeout=600,
            )
    finally:
        await connection.close()


_PAST = """
INSERT INTO accounts (account_id, created_at, actor, plan)
SELECT 'account-' || n, fermata_now() - interval '90 days', 'bench', (ARRAY['starter', 'creator', 'label'])[1 + n % 3]
FROM generate_series(1, :accounts) AS n;

CREATE TEMPORARY TABLE past AS
SELECT 'account-' || (1 + n % :accounts) AS account_id,
       gen_random_uuid() AS job_id,
       (ARRAY['starter', 'creator', 'label'])[1 + (1 + n % :accounts) % 3] AS plan,
       (ARRAY['generation', 'vocal_conversion', 'stem_split'])[1 + n % 3] AS kind,
       (ARRAY['draft', 'standard', 'studio'])[1 + n / 3 % 3] AS model,
       n % 20 <> 0 AS succeeded,
       round((10 + random() * 230)::numeric, 3) AS seconds,
       fermata_now() - :days * interval '1 day' * n / :jobs - interval '1 hour' AS started_at,
       5 + (n % 40) AS charged
FROM generate_series(1, :jobs) AS n;

INSERT INTO jobs (account_id, job_id, idempotency_key, body_hash, kind, queue, state, request, inputs, metadata, quoted,
    book_id, plan, on_insufficient, ends_by, actor, created_at, failures_max, attempt, started_at, ended_at, reason,
    charged, outputs)
SELECT account_id, job_id, job_id::text, '\\x00', kind, kind, CASE WHEN succeeded THEN 'succeeded' ELSE 'failed' END,
       jsonb_build_object('prompt', 'a song about the sea and what it takes', 'model', model, 'seconds', 240),
       '{}', '{}', 100, 1, plan, 'refuse', started_at + interval '1 day', 'bench', started_at, 3, 1, started_at,
       started_at + interval '1 minute', CASE WHEN succeeded THEN 'succeeded' ELSE 'engine_error' END,
       CASE WHEN succeeded THEN charged ELSE 0 END, CASE WHEN succeeded THEN '[]'::jsonb END
FROM past;

INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending, usage)
SELECT account_id, job_id, 1, gen_random_uuid(), 'w1', started_at, started_at + interval '1 minute', 'succeeded',
       CASE WHEN succeeded THEN jsonb_build_array(
           jsonb_build_object('output', 'song', 'seconds_in', seconds::text, 'seconds_out', seconds::text)
       ) END
FROM past;

INSERT INTO lots (account_id, source, granted, available, spent, created_at, reason)
SELECT account_id, 'topup', sum(charged) + 20, 20, sum(charged), min(started_at) - interval '1 day', 'bench'
FROM past
WHERE succeeded
GROUP BY account_id;

INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
SELECT p.account_id, p.started_at + interval '1 minute', l.lot_id, 'commit', p.charged, p.job_id, 'succeeded', 'w1'
FROM past AS p
JOIN lots AS l USING (account_id)
WHERE p.succeeded;

DROP TABLE past;

ANALYZE
"""
