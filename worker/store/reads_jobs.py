"""One job as it stands, and why it is not running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.outcomes import Ending
from worker.credits.refusals import Refusal
from worker.credits.states import JobState
from worker.store.errors import UnknownJob
from worker.store.plan_books import PlanBooks
from worker.store.refusals import kept_refusal, refusal_now
from worker.store.snapshots import snapshot

#: Queued jobs are counted up to here: who stands further behind has a long wait, and counting costs.
POSITION_MAX = 10_000
#: A worker that was not seen for so long counts as gone, in seconds.
ALIVE_SECONDS = 30


class WaitingFor(StrEnum):
    """What a job that is queued or waiting needs before it runs."""

    RUN_AT = "run_at"  # its own start time
    BACKOFF = "backoff"  # the pause after a failure
    PAUSED = "paused"  # the account, the queue or the kind
    CREDITS = "credits"
    ACCOUNT_LIMIT = "account_limit"  # the account runs as many jobs as it may
    QUEUE_LIMIT = "queue_limit"
    NO_WORKER = "no_worker"  # nobody alive serves its queue, or makes its tier
    SLOT = "slot"  # all slots are taken, or one is about to take it
    NOT_DISPATCHED = "not_dispatched"  # slots are free: the scheduler did not get to it yet


@dataclass(frozen=True, slots=True)
class OutputShown:
    """A finished artifact of a job that succeeded."""

    artifact: UUID
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class JobShown:
    """One job. Credits: `reserved` = `charged` + `refunded` once it has ended. `progress` from 0 to 1."""

    id: UUID
    account: str
    kind: str
    queue: str
    state: JobState
    key: str  # the idempotency key that it was asked for with
    quoted: int
    book: int
    attempts: int
    reserved: int
    charged: int
    refunded: int
    partial: bool
    reason: str | None
    message: str | None
    waiting_for: WaitingFor | None
    outputs: tuple[OutputShown, ...]
    progress: float
    stage: str | None
    cancel_asked: bool
    plan: str | None
    request: Mapping[str, Any]
    inputs: Mapping[str, str]
    metadata: Mapping[str, Any]
    priority: int
    retry_of: UUID | None
    created_at: datetime
    run_at: datetime | None
    ends_by: datetime
    started_at: datetime | None
    ended_at: datetime | None
    #: Only the answer to a submit can be a replay; the key is here so that all documents about a job have it.
    replayed: bool = False
    #: Of a queued job: about so many are dispatched before it, and this one; age moves jobs forward.
    position: int | None = None
    #: Of a job that was refused for want of credits: what was said then. Of one that waits for them: as it is now.
    shortfall: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else decides when a queued job runs."""

    paused: bool
    account_running: int
    account_max: int | None
    queue_running: int
    queue_max: int | None
    workers: int  # alive, serving its queue and tier
    slots: int  # of these workers
    slots_taken: int  # on these workers, by jobs of any queue
    ahead: int  # queued, and dispatched before it as things stand; at most `POSITION_MAX`


class JobReads:
    """Reads about one job."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._plan_books = PlanBooks()

    async def job(self, job_id: UUID, account_id: str | None = None) -> JobShown:
        """One job as it stands. Raises `UnknownJob`, also for a job of another account than the one named."""
        async with snapshot(self._engine) as connection:
            row = await read_job(connection, _JOB, job_id, account_id)
            around = await _surroundings(connection, row) if row.state == JobState.QUEUED else None
            shortfall = await self._shortfall(connection, row)
        return replace(_shown(row, around), shortfall=shortfall)

    async def account_of(self, job_id: UUID) -> str | None:
        """Whose job it is; None: there is none. One look, as long for the one as for the other."""
        async with snapshot(self._engine) as connection:
            account: str | None = await connection.scalar(_ACCOUNT_OF, {"job": job_id})
        return account

    async def _shortfall(self, connection: AsyncConnection, row: Any) -> Refusal | None:
        if row.state == JobState.WAITING:
            return await refusal_now(connection, row.account_id, row.quoted, self._plan_books)
        if row.reason == Ending.INSUFFICIENT_CREDITS:
            return await kept_refusal(connection, row.account_id, row.job_id)
        return None


async def read_job(connection: AsyncConnection, statement: Any, job_id: UUID, account_id: str | None) -> Any:
    """The row of a statement over one job. Raises `UnknownJob`."""
    row = (await connection.execute(statement, {"job": job_id, "account": account_id})).first()
    if row is None:
        raise UnknownJob(job_id)
    return row


def waiting_for(row: Any, around: Surroundings) -> WaitingFor | None:
    """Why a queued job is not running, asked in the order in which a claim's guards ask."""
    if row.not_before is None:
        return None
    if row.not_before > row.now:
        if not around.workers and row.started_at is None and (row.run_at is None or row.run_at <= row.now):
            return WaitingFor.NO_WORKER  # those who can't make it look at it seldom
        return WaitingFor.BACKOFF if row.attempt else WaitingFor.RUN_AT
    if around.paused:
        return WaitingFor.PAUSED
    if around.account_max is not None and around.account_running >= around.account_max:
        return WaitingFor.ACCOUNT_LIMIT
    if around.queue_max is not None and around.queue_running >= around.queue_max:
        return WaitingFor.QUEUE_LIMIT
    if not around.workers:
        return WaitingFor.NO_WORKER
    under_way = row.hinted_at is not None or around.slots_taken >= around.slots
    return WaitingFor.SLOT if under_way else WaitingFor.NOT_DISPATCHED


def _shown(row: Any, around: Surroundings | None) -> JobShown:
    settled = row.reservation_state in ("committed", "refunded")
    state = JobState(row.state)
    waits = WaitingFor.CREDITS if state is JobState.WAITING else None
    return JobShown(
        id=row.job_id,
        account=row.account_id,
        kind=row.kind,
        queue=row.queue,
        state=state,
        key=row.idempotency_key,
        quoted=row.quoted,
        book=row.book_id,
        attempts=row.attempt,
        reserved=row.reserved or 0,
        charged=row.charged or 0,
        refunded=row.reserved - row.reservation_charged if settled else 0,
        partial=row.partial,
        reason=row.reason,
        message=row.message,
        waiting_for=waits if around is None else waiting_for(row, around),
        outputs=tuple(OutputShown(UUID(out["artifact"]), out["name"], out["seconds"]) for out in row.outputs or ()),
        progress=1.0 if state is JobState.SUCCEEDED else row.progress or 0.0,
        stage=row.stage,
        cancel_asked=row.cancel_asked_at is not None,
        plan=row.plan,
        request=row.request,
        inputs=row.inputs,
        metadata=row.metadata,
        priority=row.priority,
        retry_of=row.retry_of,
        created_at=row.created_at,
        run_at=row.run_at,
        ends_by=row.ends_by,
        started_at=row.started_at,
        ended_at=row.ended_at,
        position=None if around is None else around.ahead + 1,
    )


async def _surroundings(connection: AsyncConnection, row: Any) -> Surroundings:
    values = {
        "account": row.account_id,
        "queue": row.queue,
        "kind": row.kind,
        "tier": f"{row.kind}/{row.request.get('model', '')}",
        "alive": ALIVE_SECONDS,
        "job": row.job_id,
        "priority": row.priority,
        "turn": row.turn or 0,
        "most": POSITION_MAX,
    }
    return Surroundings(*(await connection.execute(_SURROUNDINGS, values)).one())


_ACCOUNT_OF = text("SELECT account_id FROM jobs WHERE job_id = :job")

_JOB = text("""
    SELECT j.account_id, j.job_id, j.kind, j.queue, j.state, j.quoted, j.book_id, j.plan, j.request, j.inputs,
           j.metadata, j.priority, j.retry_of, j.created_at, j.run_at, j.ends_by, j.attempt, j.started_at,
           j.ended_at, j.reason, j.message, j.charged, j.partial, j.outputs, j.idempotency_key,
           r.amount AS reserved, r.state AS reservation_state, r.charged AS reservation_charged,
           l.progress, l.stage, l.cancel_asked_at, d.not_before, d.hinted_at, d.turn, fermata_now() AS now
    FROM jobs AS j
    LEFT JOIN reservations AS r USING (account_id, job_id)
    LEFT JOIN live AS l USING (account_id, job_id)
    LEFT JOIN due AS d USING (account_id, job_id)
    WHERE j.job_id = :job
      AND (CAST(:account AS text) IS NULL OR j.account_id = :account)
""")

_SURROUNDINGS = text("""
    WITH serving AS MATERIALIZED (
        SELECT worker_id, slots
        FROM workers
        WHERE stopped_at IS NULL
          AND NOT draining
          AND seen_at > fermata_now() - make_interval(secs => :alive)
          AND :queue = ANY(queues)
          AND :tier <> ALL(lacks)
    )
    SELECT a.paused OR EXISTS (
               SELECT FROM controls AS c
               WHERE c.paused
                 AND ((c.scope = 'queue' AND c.name = :queue) OR (c.scope = 'kind' AND c.name = :kind))
           ),
           (SELECT count(*) FROM live AS l WHERE l.account_id = a.account_id),
           a.running_max,
           (SELECT count(*) FROM live AS l WHERE l.queue = :queue),
           (SELECT c.running_max FROM controls AS c WHERE c.scope = 'queue' AND c.name = :queue),
           (SELECT count(*) FROM serving),
           (SELECT COALESCE(sum(s.slots), 0) FROM serving AS s),
           (SELECT count(*) FROM live AS l JOIN serving USING (worker_id)),
           (
               SELECT count(*)
               FROM (
                   SELECT
                   FROM due AS d
                   WHERE d.queue = :queue
                     AND d.waits_for IS NULL
                     AND (d.priority > :priority
                          OR (d.priority = :priority AND (d.turn, d.job_id) < (CAST(:turn AS bigint), :job)))
                   LIMIT :most
               ) AS before
           )
    FROM accounts AS a
    WHERE a.account_id = :account
""")
