"""The state machine of jobs and of reservations, written out."""

from __future__ import annotations

from itertools import product

import pytest

from worker.credits.states import ENDED, MOVES, RESERVATION_MOVES, JobState, ReservationState, may_move

#: As DESIGN and the schema have it.
ARROWS = {
    ("queued", "running"),
    ("queued", "waiting"),
    ("queued", "refused"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "queued"),
    ("waiting", "queued"),
    ("waiting", "refused"),
    ("waiting", "cancelled"),
}


@pytest.mark.parametrize(("before", "after"), list(product(JobState, JobState)))
def test_a_job_moves_along_the_arrows_only(before: JobState, after: JobState) -> None:
    """Every pair of states, allowed or not."""
    assert ((before.value, after.value) in ARROWS) is may_move(before, after)


def test_ended_states_are_final_and_every_state_is_reached() -> None:
    """Nothing leaves an ended state, and from `queued` every state can be come to."""
    assert {state for state in JobState if not MOVES[state]} == ENDED
    reached = {JobState.QUEUED}
    while new := {after for before in reached for after in MOVES[before]} - reached:
        reached |= new
    assert set(JobState) == reached


def test_a_reservation_ends_once_and_never_reopens() -> None:
    """From held to committed or refunded, and no further."""
    assert {ReservationState.COMMITTED, ReservationState.REFUNDED} == RESERVATION_MOVES[ReservationState.HELD]
    ended = [RESERVATION_MOVES[state] for state in ReservationState if state is not ReservationState.HELD]
    assert [frozenset(), frozenset()] == ended
