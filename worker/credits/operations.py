"""The operations that move a job, each a pure decision on its account's page.

Guards first, in a fixed order, then the point of no return, then writes only. An operation that raises has
written nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from worker.credits.account_ledger import NEW_LOT_IDS, Reservation
from worker.credits.allocation import Shortfall
from worker.credits.lots import BrokenInvariant
from worker.credits.outcomes import (
    End,
    Ending,
    Fault,
    Retry,
    backoff_seconds,
    cancel_after,
    charge_for,
    ending_with,
    fault_of,
    settlement_for,
)
from worker.credits.page import (
    Act,
    Artifact,
    AttemptRow,
    DueRow,
    Job,
    JobChange,
    Lease,
    LiveRow,
    Look,
    Order,
    Page,
)
from worker.credits.refusals import Refusal
from worker.credits.states import ENDED, JobState, ReservationState, may_move
from worker.credits.subscribing import expire_topups
from worker.credits.values import value

#: What a cancel that was asked for comes too late for: a finished result, and a person's word.
_BEATS_CANCEL = frozenset({Ending.SUCCEEDED, Ending.ENDED_BY_STAFF})

_NO_ORDER = Order("{}", "{}", None, None)


class Dropped(StrEnum):
    """Why a claim did nothing."""

    UNKNOWN = "unknown"
    ENDED = "ended"
    RUNNING = "running"
    WAITING = "waiting"
    NOT_BEFORE = "not_before"
    PAUSED = "paused"
    ACCOUNT_LIMIT = "account_limit"


@value
class Claimed:
    """The job is ours until the lease lapses: running, under our token. `order` is what is to be done."""

    job: Job
    token: UUID
    #: What is held for it. None where one of its lots is so new that only the books know its number.
    hold: Reservation | None
    order: Order
    #: Until `ends_by`, as of the claim, by the database's clock.
    seconds_left: float

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt


@value
class Ended:
    """The job ended in this operation."""

    state: JobState
    reason: Ending
    charged: int = 0
    shortfall: Shortfall | None = None
    #: The whole of why it could not be paid: added by the books to an answer that has a `shortfall`.
    refusal: Refusal | None = None


@value
class Requeued:
    """The job will be tried again; its hold is kept."""

    reason: Ending
    not_before: datetime


@value
class Parked:
    """The job waits for credits, or behind an older one that does; then `shortfall` may lack nothing."""

    shortfall: Shortfall


class TryAgain(StrEnum):
    """A row of the job is held by somebody without its account: a dispatch or a renewal, maybe a frozen one."""

    TRY_AGAIN = "try_again"


class Fenced(StrEnum):
    """A settle by somebody who may not: the job is another's, or has ended."""

    FENCED = "fenced"


@value
class CancelAsked:
    """The job is running; its worker stops it within seconds. A finished result beats this."""


@value
class AlreadyEnded:
    state: JobState


@value
class Claim:
    """Reserve the credits of a queued job and take it on, under a token made before the call."""

    step: ClassVar[str] = "claim"

    account_id: str
    job_id: UUID
    token: UUID
    worker_id: str
    lease_seconds: float
    #: Seconds after which it won't wait for its busy account again: it takes up a slot that others could have.
    patience_seconds: float = 0.5

    def decide(self, page: Page) -> Claimed | Ended | Parked | Dropped | TryAgain:
        """Claim it, end it, park it, or drop the hint."""
        job = page.jobs.get(self.job_id)
        if job is None:
            return Dropped.UNKNOWN
        if job.state in ENDED:
            return Dropped.ENDED
        if job.state is JobState.RUNNING:
            return Dropped.RUNNING
        if job.state is JobState.WAITING:
            return Dropped.WAITING
        if job.not_before is None:
            return TryAgain.TRY_AGAIN
        if job.ends_by <= page.now:
            return _end_queued(page, job, _past(job))
        if job.failures >= job.failures_max:
            return _end_queued(page, job, Ending.TOO_MANY_FAILURES)
        if job.not_before > page.now:
            page.writes.unhinted.append((job.job_id, None))
            return Dropped.NOT_BEFORE
        if page.paused or (page.paused_names and page.paused_names & {("queue", job.queue), ("kind", job.kind)}):
            page.writes.unhinted.append((job.job_id, Dropped.PAUSED))
            return Dropped.PAUSED
        if page.running_max is not None and page.running >= page.running_max:
            page.writes.unhinted.append((job.job_id, Dropped.ACCOUNT_LIMIT))
            return Dropped.ACCOUNT_LIMIT
        held = page.ledger.reservations.get(job.job_id)
        if held is None:
            if job.quoted and job.on_insufficient == "wait" and _elder_waits(page, job):
                # It has said that it can wait: then it queues behind those that do, or small ones starve a large one.
                return _park(page, job, page.ledger.shortfall(job.quoted))
            reserved = page.ledger.reserve(job.job_id, job.quoted, f"worker:{self.worker_id}")
            if isinstance(reserved, Shortfall):
                return _refuse_or_park(page, job, reserved)
        elif held.state is not ReservationState.HELD:
            raise BrokenInvariant(f"queued job {job.job_id} has a hold that has ended")
        # From here on the job is affordable.
        return self._take(page, job)

    def _take(self, page: Page, job: Job) -> Claimed:
        if not may_move(job.state, JobState.RUNNING):
            raise BrokenInvariant(f"job {job.job_id} can't go from {job.state} to running")
        running = Job(
            *(job.job_id, job.kind, job.queue, JobState.RUNNING, job.priority, job.quoted, job.book_id),
            *(job.on_insufficient, job.ends_by, job.attempt + 1, job.failures, job.failures_max),
            job.started_at or page.now,
            traceparent=job.traceparent,
        )
        order = job.order or _NO_ORDER
        lease_until = page.now + timedelta(seconds=self.lease_seconds)
        page.writes.live.append(LiveRow(running, self.token, self.worker_id, lease_until, order.engine_state))
        page.running += 1
        hold = page.ledger.reservations[job.job_id]
        known = hold if all(draw.lot_id < NEW_LOT_IDS for draw in hold.draws) else None
        seconds_left = (job.ends_by - page.now).total_seconds()
        return Claimed(running, self.token, known, order, seconds_left)


@value
class Settle:
    """End an attempt: the result and its charge, or what went wrong.

    `measured` is the price of what was finished under the job's own book. `jitter` in 0..1 spreads the retries.
    """

    account_id: str
    job_id: UUID
    token: UUID
    ending: Ending
    measured: int = 0
    outputs: Sequence[Artifact] = ()
    #: Whether the request asks for outputs at all: then a success without any is none.
    outputs_due: bool = True
    usage: Sequence[Mapping[str, str]] = ()
    message: str | None = None
    backoff_first_seconds: float = 2.0
    backoff_max_seconds: float = 300.0
    jitter: float = 0.0
    #: Set by the reaper only: the lease must have lapsed, or `ends_by` be this long ago.
    reap_grace_seconds: float | None = None
    #: What the claim of this token knows of the job. While the token stands nobody else can have changed it, so it
    #: need not be read again; without it, it is.
    claimed: Claimed | None = None

    @property
    def step(self) -> str:
        return "settle" if self.reap_grace_seconds is None else "reap"

    def knows(self, lease: Lease | None) -> bool:
        """Whether the job and its hold are as our own claim left them: its token stands in the row that we hold."""
        claimed = self.claimed
        return (
            claimed is not None
            and claimed.hold is not None
            and lease is not None
            and lease.token == self.token == claimed.token
        )

    def spends_all(self, lease: Lease | None) -> bool:
        """Whether it is going to spend its whole hold, and so needs to know nothing of the lots it was drawn from.

        Who is mistaken here is asked again with the lots: see `LotsUnread`.
        """
        return (
            self.ending is Ending.SUCCEEDED
            and (len(self.outputs) > 0 or not self.outputs_due)
            and self.knows(lease)
            and self.claimed is not None
            and self.claimed.hold is not None
            and self.measured >= self.claimed.hold.amount
        )

    def decide(self, page: Page) -> Ended | Requeued | Fenced | TryAgain:
        """Commit, refund or queue again, only if the token is the job's own."""
        job, lease = page.jobs.get(self.job_id), page.leases.get(self.job_id)
        if job is None and self.knows(lease):
            assert self.claimed is not None
            assert self.claimed.hold is not None
            job = self.claimed.job
            page.ledger.reservations[self.job_id] = self.claimed.hold
        if _row_is_held(job, lease):
            return TryAgain.TRY_AGAIN
        if job is None or lease is None or lease.token != self.token or job.state is not JobState.RUNNING:
            return Fenced.FENCED
        if self.reap_grace_seconds is not None and not self._reapable(job, lease, page.now):
            return Fenced.FENCED
        ending = ending_with(self.ending, len(self.outputs), outputs_due=self.outputs_due)
        # What breaks a run off decides whose fault it is that the rest is missing, also where a part is sold.
        cause = self.ending if ending is Ending.PARTIAL else ending
        if lease.cancel_asked_at is not None and ending not in _BEATS_CANCEL:
            end = cancel_after(cause, job.failures)
            return self._end(page, job, end, cause, self._message_of(end.reason, lease), attempt=cause)
        outcome = settlement_for(ending, job.failures, job.failures_max, past_ends_by=job.ends_by <= page.now)
        match outcome:
            case Retry():
                return self._queue_again(page, job, ending, outcome)
            case End():
                message = self._message_of(outcome.reason, lease)
                return self._end(page, job, outcome, cause, message, attempt=ending)

    def _message_of(self, reason: Ending, lease: Lease) -> str | None:
        """For the customer: of a job that was cancelled what its canceller said, whatever its engine met meanwhile."""
        cancelled = reason in (Ending.CANCELLED_RUNNING, Ending.CANCELLED) and lease.cancel_reason is not None
        return lease.cancel_reason if cancelled else self.message

    def _reapable(self, job: Job, lease: Lease, now: datetime) -> bool:
        assert self.reap_grace_seconds is not None
        return lease.lease_until <= now or job.ends_by + timedelta(seconds=self.reap_grace_seconds) <= now

    def _queue_again(self, page: Page, job: Job, ending: Ending, retry: Retry) -> Requeued:
        wait = backoff_seconds(retry.backoff_step, self.backoff_first_seconds, self.backoff_max_seconds, self.jitter)
        not_before = page.now + timedelta(seconds=wait)
        _change(page, job, JobState.QUEUED, failures=retry.failures)
        page.writes.due.append(DueRow(job, not_before))
        self._close_attempt(page, job, ending, self.message)
        return Requeued(ending, not_before)

    def _end(self, page: Page, job: Job, end: End, cause: Ending, message: str | None, *, attempt: Ending) -> Ended:
        reservation = page.ledger.reservations.get(job.job_id)
        if reservation is None or reservation.state is not ReservationState.HELD:
            raise BrokenInvariant(f"running job {job.job_id} holds nothing")
        sold = end.state is JobState.SUCCEEDED
        ended = _end_hold(page, job, end.reason, cause, self.measured if sold else 0, sold=sold)
        outputs = list(self.outputs) if sold else []
        _change(
            page,
            job,
            end.state,
            failures=end.failures,
            ended=True,
            reason=end.reason,
            message=message,
            charged=ended.charged,
            partial=end.partial,
            outputs=[_shown(output) for output in outputs] if sold else None,
        )
        if outputs:
            page.writes.artifacts += [(job.job_id, self.token, output) for output in outputs]
        if self.reap_grace_seconds is not None:  # who ran it was lost, and can't tell its provider
            page.writes.given_up.append(job.job_id)
        said = self.message if attempt is not end.reason else self.message or message
        self._close_attempt(page, job, attempt, said)
        return Ended(end.state, end.reason, ended.charged)

    def _close_attempt(self, page: Page, job: Job, ending: Ending, message: str | None) -> None:
        usage = [dict(part) for part in self.usage] or None
        page.writes.attempts.append(AttemptRow(job.job_id, self.token, ending, message, usage))
        page.running -= 1


@value
class Cancel:
    """A person or the pipeline no longer wants the job. Queued and waiting jobs end at once."""

    step: ClassVar[str] = "cancel"

    account_id: str
    job_id: UUID
    reason: str
    #: Who asks, for the log.
    actor: str | None = None

    def decide(self, page: Page) -> Ended | CancelAsked | AlreadyEnded | Dropped | TryAgain:
        """End it, ask its worker to stop, or say how it ended before."""
        job = page.jobs.get(self.job_id)
        if job is None:
            return Dropped.UNKNOWN
        if job.state in ENDED:
            return AlreadyEnded(job.state)
        if _row_is_held(job, page.leases.get(self.job_id)):
            return TryAgain.TRY_AGAIN
        if job.state is JobState.RUNNING:
            page.writes.cancel_asked.append((job.job_id, self.reason))
            _log(page, self, "jobs.cancel", job, {"state": job.state, "cancel_asked": True})
            return CancelAsked()
        ended = _end_queued(page, job, Ending.CANCELLED, message=self.reason)
        _log(page, self, "jobs.cancel", job, {"state": ended.state, "cancel_asked": False})
        return ended


@value
class ForceEnd:
    """A person of ours ends a running job that is stuck: it fails, its hold goes back, its token is void."""

    step: ClassVar[str] = "force_end"

    account_id: str
    job_id: UUID
    reason: str
    #: Who does it, for the log.
    actor: str | None = None

    def decide(self, page: Page) -> Ended | AlreadyEnded | Dropped | TryAgain:
        """End it, or say why not: it has ended, or does not run."""
        job, lease = page.jobs.get(self.job_id), page.leases.get(self.job_id)
        if job is None:
            return Dropped.UNKNOWN
        if job.state in ENDED:
            return AlreadyEnded(job.state)
        if _row_is_held(job, lease):
            return TryAgain.TRY_AGAIN
        if job.state is not JobState.RUNNING or lease is None:
            return Dropped.WAITING if job.state is JobState.WAITING else Dropped.NOT_BEFORE
        settle = Settle(self.account_id, self.job_id, lease.token, Ending.ENDED_BY_STAFF, message=self.reason)
        held = page.ledger.reservations[job.job_id].amount
        ended = settle.decide(page)
        assert isinstance(ended, Ended)
        page.writes.given_up.append(job.job_id)
        _log(page, self, "jobs.force_end", job, {"state": ended.state, "refunded": held - ended.charged})
        return ended


@value
class EndOverdue:
    """End a queued or waiting job whose `ends_by` has passed, paused or not."""

    step: ClassVar[str] = "end_overdue"

    account_id: str
    job_id: UUID

    def decide(self, page: Page) -> Ended | Dropped | TryAgain:
        job = page.jobs.get(self.job_id)
        if job is None:
            return Dropped.UNKNOWN
        if job.state not in (JobState.QUEUED, JobState.WAITING):
            return Dropped.RUNNING if job.state is JobState.RUNNING else Dropped.ENDED
        if _row_is_held(job, None):
            return TryAgain.TRY_AGAIN
        if job.ends_by > page.now:
            return Dropped.NOT_BEFORE
        return _end_queued(page, job, _past(job))


@value
class Expire:
    """Write down what time has done to an account's lots, and close those that are empty for good."""

    step: ClassVar[str] = "expire"

    account_id: str
    job_id: None = None

    def decide(self, page: Page) -> int:
        """The credits that expired. They were unspendable from the very instant; this only writes the journal."""
        ledger, expired = page.ledger, expire_topups(page, "expire")
        for lot_id, lot in list(ledger.lots.items()):
            if lot.expired_by(page.now):
                expired += ledger.expire(lot_id, "expired", "expire")
            after = ledger.lots[lot_id]
            if after.available == 0 and after.held == 0:
                page.writes.lots_closed.append(lot_id)
        page.writes.look_next = page.frozen_next
        if page.frozen_next is None and page.active_until is not None and page.active_until <= page.now:
            # Too early: top-ups stay frozen for longer than they did when this look was noted.
            page.writes.look_next = Look(page.active_until + page.frozen_life)
        return expired


@value
class Wake:
    """Look again at an account's waiting jobs: the safety net under those who bring credits."""

    step: ClassVar[str] = "wake"

    account_id: str
    job_id: None = None

    def decide(self, page: Page) -> None:
        page.ledger.raised = True


def wake_parked(page: Page, parked: Sequence[Job], *, more: bool = False) -> bool:
    """Queue those waiting jobs that fit what is spendable now, oldest first; younger ones wait behind.

    `parked` are those of before, or with `more` the next of them; those that the page itself parked count, too: they
    may stand behind one that is woken now. Nothing is held yet: their claims do that. Returns whether the next ones
    may fit as well.
    """
    own = [job for job in page.writes.parked if not more or job.job_id < parked[-1].job_id]
    for job in sorted([*parked, *own], key=_age):
        if job.job_id in page.writes.parked_gone or job.ends_by <= page.now:
            continue  # ended by a neighbour in this batch, or about to be by the reaper: it takes no room
        if page.woken_for + job.quoted > page.ledger.spendable:
            return False
        page.woken_for += job.quoted
        if job.state is JobState.QUEUED:
            _unpark(page, job)
        else:
            _change(page, job, JobState.QUEUED)
            page.writes.parked_gone.append(job.job_id)
            page.writes.due.append(DueRow(job, page.now))
    return more


def _age(job: Job) -> UUID:
    return job.job_id


def _elder_waits(page: Page, job: Job) -> bool:
    return page.eldest_parked is not None and page.eldest_parked < job.job_id


def _unpark(page: Page, job: Job) -> None:
    """Leave a job queued that this very page was going to park: its next hint finds it."""
    writes = page.writes
    writes.parked.remove(job)
    writes.due_gone.remove(job.job_id)
    writes.jobs = [change for change in writes.jobs if change.job is not job]
    writes.unhinted.append((job.job_id, None))


def _row_is_held(job: Job | None, lease: Lease | None) -> bool:
    """Whether the job's row in `due` or `live` was there to be read, but not to be locked."""
    if job is None:
        return False
    return (job.state is JobState.QUEUED and job.not_before is None) or (
        job.state is JobState.RUNNING and lease is None
    )


def _past(job: Job) -> Ending:
    return Ending.PAST_ENDS_BY_STARTED if job.attempt else Ending.PAST_ENDS_BY


def _refuse_or_park(page: Page, job: Job, shortfall: Shortfall) -> Ended | Parked:
    if job.on_insufficient == "wait":
        return _park(page, job, shortfall)
    message = f"needed {shortfall.needed}, available {shortfall.available}"
    return replace(_end_queued(page, job, Ending.INSUFFICIENT_CREDITS, message=message), shortfall=shortfall)


def _park(page: Page, job: Job, shortfall: Shortfall) -> Parked:
    _change(page, job, JobState.WAITING)
    page.writes.due_gone.append(job.job_id)
    page.writes.parked.append(job)
    page.eldest_parked = min(page.eldest_parked or job.job_id, job.job_id)
    return Parked(shortfall)


def _end_queued(page: Page, job: Job, ending: Ending, message: str | None = None) -> Ended:
    """End a job that no worker runs: its hold, if an earlier attempt left one, goes back."""
    end = settlement_for(ending, job.failures, job.failures_max)
    if not isinstance(end, End):
        raise BrokenInvariant(f"{ending} does not end a job")
    charged = 0
    if job.job_id in page.ledger.reservations:
        charged = _end_hold(page, job, ending, ending, 0, sold=False).charged
    _change(page, job, end.state, ended=True, reason=ending, message=message, charged=charged)
    (page.writes.parked_gone if job.state is JobState.WAITING else page.writes.due_gone).append(job.job_id)
    if job.attempt:
        page.writes.given_up.append(job.job_id)
    # Whoever stood in the line for credits has left it: the younger ones behind may fit.
    page.ledger.raised = True
    return Ended(end.state, ending, charged)


def _log(page: Page, act: Cancel | ForceEnd, what: str, job: Job, after: Mapping[str, Any]) -> None:
    """An act of a person or a key. What nobody in particular does is in the job's own story."""
    if act.actor is not None:
        before = {"state": job.state, "account_id": page.account_id}
        page.writes.acts.append(Act(act.actor, what, job.job_id, before, {**after, "reason": act.reason}))


def _end_hold(page: Page, job: Job, ending: Ending, cause: Ending, measured: int, *, sold: bool) -> Reservation:
    """Charge by how the job ended; what lots have expired meanwhile is made good by what caused it."""
    held = page.ledger.reservations[job.job_id].amount
    charge = charge_for(page.books[job.book_id], ending, started=job.attempt > 0).amount(held=held, measured=measured)
    our_fault = fault_of(cause) is Fault.OURS
    if sold or charge:
        return page.ledger.settle(job.job_id, charge, ending, "settle", our_fault=our_fault)
    return page.ledger.refund(job.job_id, ending, "settle", our_fault=our_fault)


def _change(
    page: Page,
    job: Job,
    state: JobState,
    *,
    failures: int | None = None,
    ended: bool = False,
    reason: str | None = None,
    message: str | None = None,
    charged: int | None = None,
    partial: bool = False,
    outputs: list[dict[str, Any]] | None = None,
) -> None:
    if not may_move(job.state, state):
        raise BrokenInvariant(f"job {job.job_id} can't go from {job.state} to {state}")
    page.writes.jobs.append(
        JobChange(
            job,
            state,
            job.failures if failures is None else failures,
            ended,
            reason,
            message,
            charged,
            partial,
            outputs,
        )
    )


def _shown(output: Artifact) -> dict[str, Any]:
    seconds = round(output.frames / output.sample_rate, 6)
    return {"artifact": str(output.artifact_id), "name": output.name, "seconds": seconds}
