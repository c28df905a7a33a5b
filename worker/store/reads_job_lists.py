"""Lists of jobs, a page at a time. The page's last job is the place from which the next one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.credits.states import ENDED, JobState
from worker.store.errors import Refused
from worker.store.reads_accounts import check_account, check_limit
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job in a list."""

    id: UUID
    account: str
    kind: str
    queue: str
    state: JobState
    quoted: int
    charged: int
    partial: bool
    reason: str | None
    attempts: int
    created_at: datetime
    ended_at: datetime | None
    key: str  # the idempotency key that it was asked for with


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Some jobs. `next`: give it as `after` to go on; None at the end."""

    jobs: tuple[JobLine, ...]
    next: UUID | None


class JobListReads:
    """Reads about many jobs."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def jobs(
        self,
        account_id: str | None = None,
        state: str | None = None,
        kind: str | None = None,
        limit: int = 50,
        after: UUID | None = None,
        *,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> JobsPage:
        """A page of jobs, newest submit first; ended jobs of all accounts by their end, the latest first.

        `metadata`: with these values, read as text. `key`: the one with this idempotency key. Raises `UnknownAccount`,
        and `Refused` for a state that doesn't exist, a limit out of bounds, or metadata or a key without the account
        whose jobs are searched.
        """
        check_limit(limit)
        if metadata and account_id is None:
            raise Refused("metadata", "is searched in one account only: name it")
        if key is not None and account_id is None:
            raise Refused("key", "is searched in one account only: name it")
        statement = _statement_for(account_id, _state(state)) if key is None else _OF_KEY
        values: dict[str, Any] = {
            "account": account_id,
            "state": state,
            "kind": kind,
            "limit": limit + 1,
            "after": after,
            "created_from": created_from,
            "created_before": created_before,
        }
        if key is not None:
            values["key"] = key
        if statement in (_OF_ACCOUNT, _OF_KEY, _UNFINISHED):
            values |= {"names": [*(metadata or {})], "words": [*(metadata or {}).values()]}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(statement, values)).all()
            if not rows and account_id is not None:
                await check_account(connection, account_id)
        jobs = tuple(_line_of(row) for row in rows[:limit])
        return JobsPage(jobs, jobs[-1].id if len(rows) > limit else None)


def _line_of(row: Any) -> JobLine:
    return JobLine(
        id=row.job_id,
        account=row.account_id,
        kind=row.kind,
        queue=row.queue,
        state=JobState(row.state),
        quoted=row.quoted,
        charged=row.charged or 0,
        partial=row.partial,
        reason=row.reason,
        attempts=row.attempt,
        created_at=row.created_at,
        ended_at=row.ended_at,
        key=row.idempotency_key,
    )


def _state(name: str | None) -> JobState | None:
    try:
        return None if name is None else JobState(name)
    except ValueError:
        raise Refused("state", f"no state {name!r}; there are {', '.join(sorted(JobState))}") from None


def _statement_for(account_id: str | None, state: JobState | None) -> Any:
    """Jobs carry no index over their state: unfinished ones stand in the narrow tables, ends in the events."""
    if state is None or (state in ENDED and account_id is not None):
        return _OF_ALL if account_id is None else _OF_ACCOUNT
    return _ENDED if state in ENDED else _UNFINISHED


#: Of an account, without its end: a key may be asked for as well.
_ACCOUNTS_JOBS = """
    SELECT account_id, job_id, kind, queue, state, quoted, charged, partial, reason, attempt, created_at, ended_at,
           idempotency_key
    FROM jobs
    WHERE account_id = :account
      AND (CAST(:after AS uuid) IS NULL OR job_id < :after)
      AND (CAST(:state AS text) IS NULL OR state = :state)
      AND (CAST(:kind AS text) IS NULL OR kind = :kind)
      AND (CAST(:created_from AS timestamptz) IS NULL OR created_at >= :created_from)
      AND (CAST(:created_before AS timestamptz) IS NULL OR created_at < :created_before)
      AND NOT EXISTS (
          SELECT FROM unnest(CAST(:names AS text[]), CAST(:words AS text[])) AS wanted (name, word)
          WHERE metadata ->> wanted.name IS DISTINCT FROM wanted.word
      )
"""

_OF_ACCOUNT = text(f"{_ACCOUNTS_JOBS} ORDER BY job_id DESC LIMIT :limit")

#: At most one. A statement of its own: an optional key would have a generic plan walk the whole account.
_OF_KEY = text(f"{_ACCOUNTS_JOBS} AND idempotency_key = :key ORDER BY job_id DESC LIMIT :limit")

_OF_ALL = text("""
    SELECT account_id, job_id, kind, queue, state, quoted, charged, partial, reason, attempt, created_at, ended_at,
           idempotency_key
    FROM jobs
    WHERE (CAST(:after AS uuid) IS NULL OR job_id < :after)
      AND (CAST(:kind AS text) IS NULL OR kind = :kind)
      AND (CAST(:created_from AS timestamptz) IS NULL OR created_at >= :created_from)
      AND (CAST(:created_before AS timestamptz) IS NULL OR created_at < :created_before)
    ORDER BY job_id DESC
    LIMIT :limit
""")

#: Where no time and no metadata are asked for, no job is looked at before the page is cut. Without that arm a search
#: over a million jobs joined all of them: 500 ms for the failed ones, 100 ms for 20,000 queued ones.
_UNFINISHED = text("""
    WITH found AS (
        SELECT account_id, job_id, kind
        FROM due
        WHERE :state = 'queued'
        UNION ALL
        SELECT account_id, job_id, kind
        FROM live
        WHERE :state = 'running'
        UNION ALL
        SELECT account_id, job_id, kind
        FROM parked
        WHERE :state = 'waiting'
    ), page AS (
        SELECT account_id, job_id
        FROM found
        WHERE (CAST(:account AS text) IS NULL OR account_id = :account)
          AND (CAST(:after AS uuid) IS NULL OR job_id < :after)
          AND (CAST(:kind AS text) IS NULL OR kind = :kind)
          AND (
              (
                  CAST(:created_from AS timestamptz) IS NULL
                  AND CAST(:created_before AS timestamptz) IS NULL
                  AND cardinality(CAST(:names AS text[])) = 0
              )
              OR EXISTS (
                  SELECT FROM jobs AS j
                  WHERE j.account_id = found.account_id
                    AND j.job_id = found.job_id
                    AND (CAST(:created_from AS timestamptz) IS NULL OR j.created_at >= :created_from)
                    AND (CAST(:created_before AS timestamptz) IS NULL OR j.created_at < :created_before)
                    AND NOT EXISTS (
                        SELECT FROM unnest(CAST(:names AS text[]), CAST(:words AS text[])) AS wanted (name, word)
                        WHERE j.metadata ->> wanted.name IS DISTINCT FROM wanted.word
                    )
              )
          )
        ORDER BY job_id DESC
        LIMIT :limit
    )
    SELECT j.account_id, j.job_id, j.kind, j.queue, j.state, j.quoted, j.charged, j.partial, j.reason, j.attempt,
           j.created_at, j.ended_at, j.idempotency_key
    FROM page
    JOIN jobs AS j USING (account_id, job_id)
    ORDER BY j.job_id DESC
""")

#: A job and its event end at the very same instant, so a job's end is the place in the list.
_ENDED = text("""
    WITH place AS MATERIALIZED (
        SELECT ended_at
        FROM jobs
        WHERE job_id = :after
    ), page AS (
        SELECT e.account_id, e.job_id, e.at
        FROM events AS e
        WHERE e.what = 'ended'
          AND e.state = :state
          AND (CAST(:kind AS text) IS NULL OR e.kind = :kind)
          AND (
              (CAST(:created_from AS timestamptz) IS NULL AND CAST(:created_before AS timestamptz) IS NULL)
              OR EXISTS (
                  SELECT FROM jobs AS j
                  WHERE j.account_id = e.account_id
                    AND j.job_id = e.job_id
                    AND (CAST(:created_from AS timestamptz) IS NULL OR j.created_at >= :created_from)
                    AND (CAST(:created_before AS timestamptz) IS NULL OR j.created_at < :created_before)
              )
          )
          AND (CAST(:after AS uuid) IS NULL OR (e.at, e.job_id) < ((SELECT ended_at FROM place), :after))
        ORDER BY e.at DESC, e.job_id DESC
        LIMIT :limit
    )
    SELECT j.account_id, j.job_id, j.kind, j.queue, j.state, j.quoted, j.charged, j.partial, j.reason, j.attempt,
           j.created_at, j.ended_at, j.idempotency_key
    FROM page
    JOIN jobs AS j USING (account_id, job_id)
    ORDER BY page.at DESC, page.job_id DESC
""")
