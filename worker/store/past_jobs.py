"""Jobs that ended, page by page, with all that their price came from: for whoever prices them once more.

What has ended never changes, so each page is a transaction of its own: an hour of reading holds up nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.outcomes import Ending
from worker.credits.prices import Usage
from worker.credits.purse import PurseLot
from worker.credits.rehearsal import PastJob
from worker.store.database import reading
from worker.store.reads_receipts import QuotedUsage, no_usage
from worker.store.submits import read_artifacts

#: Jobs of one page: some megabytes, read within a blink.
PAGE_JOBS = 5_000


@dataclass(frozen=True, slots=True)
class Period:
    """From when until when jobs ended; `book`: only those that this book priced."""

    since: datetime
    until: datetime
    book: int | None = None


@dataclass(frozen=True, slots=True)
class PastPage:
    """Some jobs, in order of account and id, and what their accounts could spend in the period."""

    jobs: Sequence[PastJob]
    lots: Mapping[str, Sequence[PurseLot]]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Jobs that have not ended, and what they were quoted in sum."""

    jobs: int
    quoted: int


class _Part(msgspec.Struct):
    """What one output used, as the attempt's row has it; `rejected` is set of one that was not good enough."""

    seconds_in: str
    seconds_out: str
    rejected: str | None = None


#: By its word: looking it up takes a tenth of `Ending(word)`.
_ENDINGS = {ending.value: ending for ending in Ending}

_request = msgspec.json.Decoder(dict[str, Any])
_parts = msgspec.json.Decoder(list[_Part])


class PastJobs:
    """Reads of what was used and charged."""

    def __init__(self, engine: AsyncEngine, quoted_usage: QuotedUsage = no_usage) -> None:
        self._engine = engine
        self._quoted_usage = quoted_usage

    async def period(self, length: timedelta | None = None, book: int | None = None) -> Period:
        """The time until now, by the database's clock, of this length or from the beginning."""
        async with reading(self._engine) as connection:
            now: datetime = (await connection.execute(_NOW)).scalar_one()
        return Period(now - length if length is not None else _BEGINNING, now, book)

    async def unfinished(self, book: int) -> Unfinished:
        """The jobs that this book priced and that have not ended: queued, running or waiting for credits."""
        async with reading(self._engine) as connection:
            return Unfinished(*(await connection.execute(_UNFINISHED, {"book": book})).one())

    async def pages(
        self, period: Period, most_for: Collection[Ending] = (), *, with_lots: bool = True
    ) -> AsyncIterator[PastPage]:
        """Every job that started and ended in the period.

        `most_for`: for jobs that ended so, also the most that they could have used, where their kind still knows.
        While one page is worked on, the next is read.
        """
        pages = self._pages(period, most_for, with_lots)
        coming = asyncio.ensure_future(anext(pages, None))
        try:
            while (page := await coming) is not None:
                coming = asyncio.ensure_future(anext(pages, None))
                yield page
        finally:
            coming.cancel()

    async def _pages(self, period: Period, most_for: Collection[Ending], with_lots: bool) -> AsyncIterator[PastPage]:
        after: tuple[str, UUID] = ("", UUID(int=0))
        known: Mapping[str, Sequence[PurseLot]] = {}
        while True:
            async with reading(self._engine) as connection:
                rows = await self._rows(connection, period, after)
                jobs = [_past_job(row) for row in rows]
                if most_for:
                    jobs = await self._with_most(connection, jobs, rows, most_for)
                accounts = {job.account_id for job in jobs}
                # An account that goes on from the page before has its purse already.
                known = await _lots(connection, accounts - known.keys(), period) if jobs and with_lots else {}
            if jobs:
                yield PastPage(jobs, known)
            if len(jobs) < PAGE_JOBS:
                return
            after = jobs[-1].account_id, jobs[-1].job_id

    async def _rows(self, connection: AsyncConnection, period: Period, after: tuple[str, UUID]) -> Sequence[Any]:
        values = {
            "since": period.since,
            "until": period.until,
            "book": period.book,
            "account": after[0],
            "job": after[1],
            "page": PAGE_JOBS,
        }
        return (await connection.execute(_PAST_JOBS, values)).all()

    async def _with_most(
        self, connection: AsyncConnection, jobs: Sequence[PastJob], rows: Sequence[Any], endings: Collection[Ending]
    ) -> list[PastJob]:
        wanted = {
            job.job_id: {name: UUID(artifact) for name, artifact in _request.decode(row.inputs).items()}
            for job, row in zip(jobs, rows, strict=True)
            if job.ending in endings
        }
        pairs = [(job.account_id, artifact) for job in jobs for artifact in wanted.get(job.job_id, {}).values()]
        found = await read_artifacts(connection, pairs)
        return [
            replace(job, most=self._most(job, wanted[job.job_id], found)) if job.job_id in wanted else job
            for job in jobs
        ]

    def _most(
        self, job: PastJob, wanted: Mapping[str, UUID], found: Mapping[str, Mapping[UUID, Any]]
    ) -> Sequence[Usage] | None:
        facts = found.get(job.account_id, {})
        if any(artifact not in facts for artifact in wanted.values()):
            return None
        return self._quoted_usage(job.kind, job.request, {name: facts[artifact] for name, artifact in wanted.items()})


def _past_job(row: Any) -> PastJob:
    account_id, job_id, kind, plan, request, reason, quoted, charged, started_at, usage, _ = row
    parts = _parts.decode(usage) if usage is not None else ()
    return PastJob(
        *(account_id, job_id, kind, plan, _request.decode(request), _ENDINGS[reason], quoted, charged, started_at),
        usages=[Usage(Decimal(part.seconds_in), Decimal(part.seconds_out)) for part in parts if part.rejected is None],
    )


async def _lots(
    connection: AsyncConnection, accounts: Collection[str], period: Period
) -> Mapping[str, Sequence[PurseLot]]:
    found: dict[str, list[PurseLot]] = {}
    values = {"accounts": sorted(accounts), "since": period.since}
    for account_id, since, until, credits_ in await connection.execute(_LOTS, values):
        found.setdefault(account_id, []).append(PurseLot(since, until, credits_))
    return found


_BEGINNING = datetime.fromisoformat("2000-01-01T00:00:00+00:00")

_NOW = text("SELECT fermata_now()")

#: By the narrow tables: none of the many that have ended is looked at.
_UNFINISHED = text("""
    SELECT count(*), CAST(COALESCE(sum(j.quoted), 0) AS bigint)
    FROM (
        SELECT account_id, job_id FROM due
        UNION ALL
        SELECT account_id, job_id FROM live
        UNION ALL
        SELECT account_id, job_id FROM parked
    ) AS u
    JOIN jobs AS j USING (account_id, job_id)
    WHERE j.book_id = :book
""")

_PAST_JOBS = text("""
    SELECT j.account_id, j.job_id, j.kind, j.plan, CAST(j.request AS text), j.reason, j.quoted, j.charged,
           j.started_at, CAST(a.usage AS text), CAST(j.inputs AS text) AS inputs
    FROM (
        SELECT *
        FROM jobs
        WHERE (account_id, job_id) > (:account, CAST(:job AS uuid))
          AND ended_at >= :since
          AND ended_at < :until
          AND attempt > 0
          AND (CAST(:book AS integer) IS NULL OR book_id = :book)
        ORDER BY account_id, job_id
        LIMIT :page
    ) AS j
    LEFT JOIN LATERAL (
        SELECT usage
        FROM attempts
        WHERE account_id = j.account_id
          AND job_id = j.job_id
          AND attempt = j.attempt
        OFFSET 0
    ) AS a ON true
    ORDER BY j.account_id, j.job_id
""")

#: What each lot had when the period began: what it has now, what expired, and what was spent since.
_LOTS = text("""
    WITH spent AS (
        SELECT account_id, lot_id, sum(amount) AS amount
        FROM journal
        WHERE account_id = ANY(CAST(:accounts AS text[]))
          AND at >= :since
          AND move = 'commit'
        GROUP BY account_id, lot_id
    )
    SELECT l.account_id, l.created_at, l.expires_at,
           CAST(l.granted - l.revoked - l.spent + COALESCE(s.amount, 0) AS bigint)
    FROM lots AS l
    LEFT JOIN spent AS s USING (account_id, lot_id)
    WHERE l.account_id = ANY(CAST(:accounts AS text[]))
      AND (l.expires_at IS NULL OR l.expires_at > :since)
""")
