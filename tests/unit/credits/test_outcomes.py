"""What each way of ending means: one table, and the policies over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.credits.outcomes import (
    MEASURED,
    NOTHING,
    RULES,
    Basis,
    Charge,
    End,
    Ending,
    Fault,
    Retries,
    Retry,
    allowed_bases,
    backoff_seconds,
    cancel_after,
    charge_for,
    counts_as_failure,
    default_charge,
    ending_with,
    fault_of,
    rule_sentence,
    sentence_for,
    settlement_for,
)
from worker.credits.states import ENDED, JobState, may_move

endings = st.sampled_from(list(Ending))


@dataclass(frozen=True, slots=True)
class ABook:
    outcomes: Mapping[Ending, Charge] = field(default_factory=dict)


# ending, state once it ends, fault, retries, counts as a failure, default charge
TABLE = [
    ("succeeded", "succeeded", "nobody", "never", False, "measured"),
    ("partial", "succeeded", "ours", "never", False, "measured"),
    ("invalid_input", "failed", "customer", "never", True, "nothing"),
    ("cancelled", "cancelled", "customer", "never", False, "nothing"),
    ("cancelled_running", "cancelled", "customer", "never", False, "nothing"),
    ("insufficient_credits", "refused", "customer", "never", False, "nothing"),
    ("engine_error", "failed", "ours", "never", True, "nothing"),
    ("engine_failure", "failed", "ours", "bounded", True, "nothing"),
    ("engine_crashed", "failed", "ours", "bounded", True, "nothing"),
    ("engine_unavailable", "failed", "ours", "bounded", True, "nothing"),
    ("out_of_memory", "failed", "ours", "once", True, "nothing"),
    ("time_limit", "failed", "ours", "bounded", True, "nothing"),
    ("quality_gate", "failed", "ours", "once", True, "nothing"),
    ("lost_worker", "failed", "ours", "bounded", True, "nothing"),
    ("input_damaged", "failed", "ours", "never", True, "nothing"),
    ("storage_failure", "failed", "ours", "bounded", True, "nothing"),
    ("internal_error", "failed", "ours", "bounded", True, "nothing"),
    ("too_many_failures", "failed", "ours", "never", False, "nothing"),
    ("unknown_price", "failed", "ours", "never", False, "nothing"),
    ("ended_by_staff", "failed", "ours", "never", False, "nothing"),
    ("past_ends_by", "refused", "nobody", "never", False, "nothing"),
    ("past_ends_by_started", "failed", "nobody", "never", False, "nothing"),
    ("handed_back", "failed", "nobody", "always", False, "nothing"),
    ("outage", "failed", "nobody", "always", False, "nothing"),
]


def test_the_table_names_every_ending() -> None:
    """A new ending can't be added without saying what it means."""
    assert [row[0] for row in TABLE] == list(Ending) == list(RULES)


@pytest.mark.parametrize(("name", "state", "fault", "retries", "counts", "charge"), TABLE)
def test_what_each_ending_means(name: str, state: str, fault: str, retries: str, counts: bool, charge: str) -> None:
    """State, fault, retries, count and default charge, as the documentation prints them."""
    ending = Ending(name)
    assert (JobState(state), Retries(retries)) == (RULES[ending].state, RULES[ending].retries)
    assert Fault(fault) == fault_of(ending)
    assert counts == counts_as_failure(ending)
    assert Charge(Basis(charge)) == default_charge(ending)


# What happens with the job


@pytest.mark.parametrize(
    ("ending", "failures_before", "expected"),
    [
        ("succeeded", 2, End(JobState.SUCCEEDED, Ending.SUCCEEDED, 2)),
        ("partial", 0, End(JobState.SUCCEEDED, Ending.PARTIAL, 0)),
        ("invalid_input", 0, End(JobState.FAILED, Ending.INVALID_INPUT, 1)),
        ("engine_failure", 0, Retry(failures=1, backoff_step=1)),
        ("engine_failure", 1, Retry(failures=2, backoff_step=2)),
        ("engine_failure", 2, End(JobState.FAILED, Ending.ENGINE_FAILURE, 3)),
        ("engine_error", 0, End(JobState.FAILED, Ending.ENGINE_ERROR, 1)),
        ("out_of_memory", 0, Retry(failures=1, backoff_step=1)),
        ("out_of_memory", 1, End(JobState.FAILED, Ending.OUT_OF_MEMORY, 2)),
        ("lost_worker", 0, Retry(failures=1, backoff_step=0)),  # queued again at once
        ("lost_worker", 1, Retry(failures=2, backoff_step=1)),
        ("lost_worker", 2, End(JobState.FAILED, Ending.LOST_WORKER, 3)),
        ("handed_back", 0, Retry(failures=0, backoff_step=0)),
        ("handed_back", 2, Retry(failures=2, backoff_step=0)),
        ("outage", 2, Retry(failures=2, backoff_step=0)),
        ("cancelled_running", 0, End(JobState.CANCELLED, Ending.CANCELLED_RUNNING, 0)),
        ("insufficient_credits", 0, End(JobState.REFUSED, Ending.INSUFFICIENT_CREDITS, 0)),
        ("past_ends_by", 0, End(JobState.REFUSED, Ending.PAST_ENDS_BY, 0)),
        ("past_ends_by_started", 1, End(JobState.FAILED, Ending.PAST_ENDS_BY_STARTED, 1)),
        ("too_many_failures", 3, End(JobState.FAILED, Ending.TOO_MANY_FAILURES, 3)),
        ("input_damaged", 0, End(JobState.FAILED, Ending.INPUT_DAMAGED, 1)),
    ],
)
def test_the_settlement_of_an_ending(ending: str, failures_before: int, expected: Retry | End) -> None:
    """With at most 3 failures: retried with its hold, or ended for good."""
    assert expected == settlement_for(Ending(ending), failures_before, failures_max=3)


def test_nothing_is_tried_again_past_ends_by() -> None:
    """The failure stays the reason, so that its fault decides about the refund."""
    expected = End(JobState.FAILED, Ending.LOST_WORKER, 1)
    assert expected == settlement_for(Ending.LOST_WORKER, 0, failures_max=3, past_ends_by=True)


@given(ending=endings, failures=st.integers(0, 30), failures_max=st.integers(1, 20), late=st.booleans())
def test_no_job_is_retried_after_its_last_failure(ending: Ending, failures: int, failures_max: int, late: bool) -> None:
    """A counted failure either ends the job or stays below the maximum; an end is a state that is final."""
    settlement = settlement_for(ending, failures, failures_max, past_ends_by=late)
    match settlement:
        case Retry():
            assert not late
            assert settlement.failures < failures_max or not counts_as_failure(ending)
            assert 0 <= settlement.backoff_step <= settlement.failures
        case End():
            assert settlement.state in ENDED
            assert settlement.partial == (ending is Ending.PARTIAL)
    assert settlement.failures == failures + counts_as_failure(ending)


@pytest.mark.parametrize("ending", list(Ending))
def test_every_ending_is_a_move_the_machine_knows(ending: Ending) -> None:
    """A running or a queued job may enter the state that the ending leads to."""
    state = RULES[ending].state
    assert may_move(JobState.RUNNING, state) or may_move(JobState.QUEUED, state)


@pytest.mark.parametrize(
    ("ending", "finished", "expected"),
    [
        ("succeeded", 2, "succeeded"),
        ("succeeded", 0, "engine_failure"),  # nobody pays for nothing
        ("engine_failure", 0, "engine_failure"),
        ("engine_failure", 1, "partial"),
        ("time_limit", 1, "partial"),
        ("past_ends_by_started", 1, "partial"),
        ("past_ends_by_started", 0, "past_ends_by_started"),
        ("invalid_input", 1, "partial"),
        ("cancelled_running", 1, "cancelled_running"),  # discarded
        ("lost_worker", 1, "lost_worker"),  # discarded
        ("handed_back", 1, "handed_back"),
        ("partial", 1, "partial"),
        ("partial", 0, "engine_failure"),  # a part of nothing
    ],
)
def test_finished_outputs_make_a_partial_success_of_an_engines_failure(
    ending: str, finished: int, expected: str
) -> None:
    """An engine error or time limit with something finished is sold as a part; cancelled and lost work is not."""
    assert Ending(expected) == ending_with(Ending(ending), finished)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("cancelled_running", End(JobState.CANCELLED, Ending.CANCELLED_RUNNING, 1)),
        ("invalid_input", End(JobState.CANCELLED, Ending.CANCELLED_RUNNING, 1)),
        ("lost_worker", End(JobState.CANCELLED, Ending.CANCELLED, 2)),
        ("engine_error", End(JobState.CANCELLED, Ending.CANCELLED, 2)),
        ("handed_back", End(JobState.CANCELLED, Ending.CANCELLED, 1)),
        ("past_ends_by_started", End(JobState.CANCELLED, Ending.CANCELLED, 1)),
    ],
)
def test_how_a_job_ends_whose_cancel_was_asked(cause: str, expected: End) -> None:
    """As cancelled; while it ran only where the run ended for it, or by the customer's doing."""
    assert expected == cancel_after(Ending(cause), 1)


def test_a_job_that_asks_for_no_outputs_succeeds_without_any() -> None:
    """A kind may only look at its inputs; where outputs were asked for, a success without one is none."""
    assert Ending.SUCCEEDED == ending_with(Ending.SUCCEEDED, 0, outputs_due=False)


@pytest.mark.parametrize(
    ("step", "seconds"), [(0, 0.0), (1, 2.0), (2, 4.0), (3, 8.0), (8, 256.0), (9, 300.0), (10**6, 300.0)]
)
def test_the_backoff_doubles_up_to_its_maximum(step: int, seconds: float) -> None:
    """Step 0 waits for nothing; no count of failures overflows."""
    assert seconds == backoff_seconds(step, 2.0, 300.0)


@given(step=st.integers(0, 100), first=st.floats(0, 3600), longest=st.floats(0, 86_400), jitter=st.floats(0, 1))
def test_jitter_takes_up_to_half_off(step: int, first: float, longest: float, jitter: float) -> None:
    """A jittered wait lies between half and all of the plain one."""
    plain = backoff_seconds(step, first, longest)
    assert plain / 2 <= backoff_seconds(step, first, longest, jitter) <= plain <= longest


# What it charges


@pytest.mark.parametrize(
    ("charge", "held", "measured", "amount"),
    [
        (MEASURED, 10, 7, 7),
        (MEASURED, 10, 12, 10),  # never above the hold
        (MEASURED, 0, 0, 0),
        (NOTHING, 10, 7, 0),
        (Charge(Basis.HOLD, 25), 10, 0, 3),  # 2.5, rounded up
        (Charge(Basis.HOLD, 100), 10, 0, 10),
        (Charge(Basis.HOLD, 1), 0, 0, 0),
    ],
)
def test_the_amount_of_a_charge(charge: Charge, held: int, measured: int, amount: int) -> None:
    """Measured use, nothing, or a percentage of the hold that is rounded up."""
    assert amount == charge.amount(held=held, measured=measured)


@given(percent=st.integers(1, 100), held=st.integers(0, 10**12), measured=st.integers(0, 10**12))
def test_no_charge_is_above_the_hold(percent: int, held: int, measured: int) -> None:
    """Whatever the basis, between 0 and the hold."""
    for charge in (MEASURED, NOTHING, Charge(Basis.HOLD, percent)):
        assert 0 <= charge.amount(held=held, measured=measured) <= held


def test_a_book_decides_what_an_ending_charges() -> None:
    """What the book names counts; what it leaves out has its default."""
    quarter = Charge(Basis.HOLD, 25)
    book = ABook({Ending.CANCELLED_RUNNING: quarter})
    assert quarter == charge_for(book, Ending.CANCELLED_RUNNING, started=True)
    assert charge_for(book, Ending.INVALID_INPUT, started=True) == NOTHING
    assert charge_for(book, Ending.SUCCEEDED, started=True) == MEASURED


@given(ending=endings)
def test_a_job_that_never_started_is_never_charged(ending: Ending) -> None:
    """Without a start there is no hold that could be charged."""
    assert charge_for(ABook({ending: Charge(Basis.HOLD, 100)}), ending, started=False) == NOTHING


@pytest.mark.parametrize("ending", [ending for ending in Ending if RULES[ending].state is not JobState.SUCCEEDED])
def test_only_what_the_customer_caused_may_be_charged(ending: Ending) -> None:
    """No book may charge for an ending that was ours or nobody's, nor for one that refused the job.

    Nor for the cancel of a queued job: it never started, or broke off on our side and waited to be tried again.
    """
    nothing_done = {Ending.INSUFFICIENT_CREDITS, Ending.CANCELLED}
    caused = fault_of(ending) is Fault.CUSTOMER and ending not in nothing_done
    assert caused == (Basis.HOLD in allowed_bases(ending))
    assert Basis.NOTHING in allowed_bases(ending)
    assert Basis.MEASURED not in allowed_bases(ending)


@pytest.mark.parametrize(
    ("ending", "charged", "returned", "sentence"),
    [
        ("succeeded", 8, 1, "Finished. 8 credits were charged, 1 credit was returned."),
        ("succeeded", 1, 0, "Finished. 1 credit was charged."),
        ("engine_crashed", 0, 9, "The music engine crashed. Nothing was charged, 9 credits were returned."),
        ("past_ends_by", 0, 0, "It could not start before its deadline. Nothing was charged."),
    ],
)
def test_a_customer_can_read_how_it_ended(ending: str, charged: int, returned: int, sentence: str) -> None:
    """What happened, what it cost, what came back."""
    assert sentence == sentence_for(Ending(ending), charged, returned)


@pytest.mark.parametrize(
    ("charge", "started", "sentence"),
    [
        (Charge(Basis.MEASURED), True, "What was finished is paid, and no more than was quoted."),
        (Charge(Basis.NOTHING), True, "A job that ends like this costs nothing."),
        (Charge(Basis.HOLD, 25), True, "A job that ends like this costs 25% of what was reserved."),
        (Charge(Basis.HOLD, 25), False, "What never started costs nothing."),
    ],
)
def test_a_customer_can_read_what_the_book_says(charge: Charge, started: bool, sentence: str) -> None:
    """Whatever the ending, and whether it had started."""
    assert sentence == rule_sentence(charge, started=started)
