"""What somebody who follows a job is told: its story so far, event by event, and whether there is news.

The story is read from rows that stay: the job, its attempts, and the run that goes on. An event's number follows from
what it is, so whoever comes back with the last number it saw, to any process, skips nothing and gets nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.credits.states import JobState
from worker.store.errors import UnknownJob
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class Pulse:
    """If this differs from before there is news."""

    state: str
    attempt: int
    progress: float | None
    stage: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What happened. `id` grows along a job's story: 0 queued, 2n-1 run n began, 2n it ended, last the end."""

    id: int
    event: str
    at: datetime
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Story:
    """A job until now. `progress`, from 0 to 1, and `stage` are of the run that goes on."""

    job: UUID
    account: str
    state: JobState
    events: tuple[JobEvent, ...]
    ended: bool
    progress: float | None
    stage: str | None


class FollowingReads:
    """Reads for those who follow jobs."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def pulses(self, job_ids: Sequence[UUID]) -> Mapping[UUID, Pulse]:
        """How these jobs stand, in one look."""
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_PULSES, {"jobs": list(job_ids)})
            return {row.job_id: Pulse(row.state, row.attempt, row.progress, row.stage) for row in rows}

    async def story(self, job_id: UUID) -> Story:
        """All that happened to a job. Raises `UnknownJob`."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_JOB, {"job": job_id})).first()
            if row is None:
                raise UnknownJob(job_id)
            runs = (await connection.execute(_RUNS, {"account": row.account_id, "job": job_id})).all()
        return Story(
            job=job_id,
            account=row.account_id,
            state=JobState(row.state),
            events=_events_of(row, runs),
            ended=row.ended_at is not None,
            progress=row.progress,
            stage=row.stage,
        )


def _events_of(row: Any, runs: Sequence[Any]) -> tuple[JobEvent, ...]:
    events = [JobEvent(0, "queued", row.created_at, {"kind": row.kind, "quoted": row.quoted})]
    for run in runs:
        told = {"attempt": run.attempt}
        events.append(JobEvent(2 * run.attempt - 1, "started", run.started_at, told))
        ending = {**told, "ending": run.ending, "message": run.message}
        events.append(JobEvent(2 * run.attempt, "attempt_ended", run.ended_at, ending))
    if row.run_started_at is not None:
        events.append(JobEvent(2 * row.attempt - 1, "started", row.run_started_at, {"attempt": row.attempt}))
    if row.ended_at is not None:
        details = {
            "state": row.state,
            "reason": row.reason,
            "message": row.message,
            "charged": row.charged,
            "partial": row.partial,
            "outputs": row.outputs or [],
        }
        events.append(JobEvent(2 * row.attempt + 1, "ended", row.ended_at, details))
    return tuple(events)


_PULSES = text("""
    SELECT j.job_id, j.state, j.attempt, l.progress, l.stage
    FROM unnest(CAST(:jobs AS uuid[])) AS wanted (job_id)
    JOIN jobs AS j USING (job_id)
    LEFT JOIN live AS l USING (account_id, job_id)
""")

_JOB = text("""
    SELECT j.account_id, j.kind, j.quoted, j.state, j.attempt, j.created_at, j.ended_at, j.reason, j.message,
           j.charged, j.partial, j.outputs, l.started_at AS run_started_at, l.progress, l.stage
    FROM jobs AS j
    LEFT JOIN live AS l USING (account_id, job_id)
    WHERE j.job_id = :job
""")

_RUNS = text("""
    SELECT attempt, started_at, ended_at, ending, message
    FROM attempts
    WHERE account_id = :account
      AND job_id = :job
    ORDER BY attempt
""")
