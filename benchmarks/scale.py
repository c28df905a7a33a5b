"""What one job leaves behind, and what so many a day would take: `python -m benchmarks.scale` prints docs/SCALE.md's.

The arithmetic uses measured figures only, as results.json has them; what is assumed beside them stands in `ASSUMED`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import asyncpg

from benchmarks.crew import Desk
from benchmarks.ledger import pairs_with_output
from benchmarks.report import RESULTS, Figure
from benchmarks.stock import accounts_made, jobs_queued
from worker.local.roles import dsn
from worker.local.system import LocalServers

JOBS, ACCOUNTS, IN_FLIGHT = 6_000, 500, 500
#: Entries of the journal that a job leaves, and jobs a day that are looked at.
ENTRIES, DAYS = 2, (10**6, 10**7, 10**8, 10**9)


@dataclass(frozen=True, slots=True)
class Assumed:
    """What nobody measured."""

    #: The busiest hour against the mean of a day.
    peak: float = 3.0
    #: How much of what a machine can do is asked of it at that hour.
    load: float = 0.5
    #: Days that jobs and that the journal are kept online.
    jobs_kept: int = 30
    journal_kept: int = 60


ASSUMED = Assumed()


def measured(servers: LocalServers) -> list[Figure]:
    """Bytes of WAL and of tables and indexes that one job leaves: submitted, claimed, settled with one output."""
    wal, kept, entry = asyncio.run(_measured(servers))
    note = f"of {JOBS:,} jobs with one output each"
    return [
        Figure("job_wal_bytes", wal, "bytes", None, None, note),
        Figure("job_kept_bytes", kept, "bytes", None, None, f"{note}, tables and indexes"),
        Figure("entry_kept_bytes", entry, "bytes", None, None, "one entry of the journal with its index"),
    ]


async def _measured(servers: LocalServers) -> tuple[float, float, float]:
    assert servers.postgres is not None
    name = dsn(servers.database_url).rpartition("/")[2]
    superuser = await asyncpg.connect(f"{dsn(servers.postgres.superuser_url).rpartition('/')[0]}/{name}")
    accounts = await accounts_made(servers.database_url, ACCOUNTS)
    # A first round, so that the images of pages after the checkpoint are not counted as a job's own.
    await _done(servers.database_url, accounts, JOBS // 3)
    before = await superuser.fetchrow(_STANDING)
    await _done(servers.database_url, accounts, JOBS)
    after = await superuser.fetchrow(_STANDING)
    journal = await superuser.fetchrow(_JOURNAL)
    await superuser.close()
    wal, kept = (float(after[place] - before[place]) / JOBS for place in (0, 1))
    return wal, kept, float(journal[0]) / float(journal[1])


async def _done(url: str, accounts: list[str], count: int) -> None:
    jobs = await jobs_queued(url, accounts, count)
    desk = Desk.opened(url)
    await pairs_with_output(desk, (jobs, IN_FLIGHT))
    await desk.close()


_STANDING = """
    SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'),
           (SELECT sum(pg_total_relation_size(oid)) FROM pg_class
            WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
"""

_JOURNAL = """
    SELECT sum(pg_total_relation_size(inhrelid)), (SELECT count(*) FROM journal)
    FROM pg_inherits
    WHERE inhparent = 'journal'::regclass
"""


def rows(figures: Mapping[str, float], assumed: Assumed = ASSUMED) -> Iterator[tuple[str, ...]]:
    """For each number of jobs a day: what the books, the disks, the log and Redis would have to bear."""
    pairs, path, wal = figures["ledger_pairs_output"], figures["null_job"], figures["job_wal_bytes"]
    for jobs in DAYS:
        at_peak = jobs / 86_400 * assumed.peak
        kept_tb = jobs * assumed.jobs_kept * figures["job_kept_bytes"] / 1e12
        older = assumed.journal_kept - assumed.jobs_kept
        journal_tb = jobs * older * ENTRIES * figures["entry_kept_bytes"] / 1e12
        yield (
            f"{jobs:,}",
            f"{jobs / 86_400:,.0f} / {at_peak:,.0f}",
            str(ceil(at_peak / (pairs * assumed.load))),
            f"{at_peak * wal / 1e6:,.1f} MB/s, {jobs * wal / 1e9:,.0f} GB/day",
            f"{kept_tb:,.2f} + {journal_tb:,.2f} TB",
            f"{at_peak * figures['hints_per_job']:,.0f}/s",
            str(ceil(at_peak / (path * assumed.load))),
        )


HEAD = ("jobs a day", "a second, mean / peak", "books", "log", "disk: jobs + older journal", "hints", "whole path")


def table(figures: Mapping[str, float]) -> str:
    """The table of docs/SCALE.md."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows(figures)]
    return "\n".join(lines)


def figures_kept() -> dict[str, float]:
    """The values in results.json."""
    return {name: float(found["value"]) for name, found in json.loads(RESULTS.read_text()).items()}


if __name__ == "__main__":
    print(table(figures_kept()))
