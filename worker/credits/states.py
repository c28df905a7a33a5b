"""The states of a job and of its reservation, and the only moves between them.

The schema repeats both tables as CHECKs; the model checker and the docs read them from here.
"""

from __future__ import annotations

from enum import StrEnum

from worker.credits.values import words


@words
class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # for credits
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"  # can't pay, or never started before its `ends_by`


@words
class ReservationState(StrEnum):
    HELD = "held"
    COMMITTED = "committed"
    REFUNDED = "refunded"


#: Ended states are final: `retry` makes a new job.
ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.REFUSED})

#: Every move a job can make.
MOVES: dict[JobState, frozenset[JobState]] = {
    # claim | can't pay: wait or be refused | cancelled | damaged, poisoned or too late
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.WAITING, JobState.REFUSED, JobState.CANCELLED, JobState.FAILED}
    ),
    # settle | retry, hand-back, reaped
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}),
    # credits came | too late | cancelled
    JobState.WAITING: frozenset({JobState.QUEUED, JobState.REFUSED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.REFUSED: frozenset(),
}

#: A reservation ends exactly once and never reopens.
RESERVATION_MOVES: dict[ReservationState, frozenset[ReservationState]] = {
    ReservationState.HELD: frozenset({ReservationState.COMMITTED, ReservationState.REFUNDED}),
    ReservationState.COMMITTED: frozenset(),
    ReservationState.REFUNDED: frozenset(),
}


def may_move(before: JobState, after: JobState) -> bool:
    """Whether a job may go from one state to the other in one step."""
    return after in MOVES[before]
