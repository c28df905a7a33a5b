"""How attempts and jobs end, and what each way of ending means: the next state, the charge, whose fault it was.

One closed table, `RULES`; every policy below is one function over it. What an ending charges is a product
decision and stands in the price book; the table only says what a book may decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, assert_never

from worker.credits.states import JobState
from worker.credits.values import value, words


@words
class Ending(StrEnum):
    """Every way an attempt or a job can end. The engines' error codes are members by the same name."""

    # with something to show
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"  # the run broke off after some outputs were finished

    # the customer's doing
    INVALID_INPUT = "invalid_input"  # found by the engine: the request or its material can't be used
    CANCELLED = "cancelled"  # while no run was under way, or after one that had not ended by the customer's doing
    CANCELLED_RUNNING = "cancelled_running"  # that stopped its run
    INSUFFICIENT_CREDITS = "insufficient_credits"

    # ours or our provider's
    ENGINE_ERROR = "engine_error"  # for good: another attempt won't help
    ENGINE_FAILURE = "engine_failure"
    ENGINE_CRASHED = "engine_crashed"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"  # one attempt ran too long
    QUALITY_GATE = "quality_gate"  # the result was not good enough to be sold
    LOST_WORKER = "lost_worker"  # its lease lapsed
    INPUT_DAMAGED = "input_damaged"  # a stored input is gone or no longer has its checksum
    STORAGE_FAILURE = "storage_failure"  # a finished output could not be kept
    INTERNAL_ERROR = "internal_error"  # a bug of ours
    TOO_MANY_FAILURES = "too_many_failures"  # met by a claim: poisoned before this attempt
    UNKNOWN_PRICE = "unknown_price"  # no price for what was asked
    ENDED_BY_STAFF = "ended_by_staff"  # a person of ours ended it: it was stuck

    # nobody's
    PAST_ENDS_BY = "past_ends_by"  # it never ran
    PAST_ENDS_BY_STARTED = "past_ends_by_started"  # it ran, but not to its end
    HANDED_BACK = "handed_back"  # its worker shut down in good order
    OUTAGE = "outage"  # the books were out of reach for too long


@words
class Fault(StrEnum):
    """Whose fault it was that the customer didn't get what was asked."""

    OURS = "ours"
    CUSTOMER = "customer"
    NOBODY = "nobody"


@words
class Retries(StrEnum):
    """Whether another attempt may help."""

    NEVER = "never"
    ONCE = "once"  # only if it is the job's first failure
    BOUNDED = "bounded"  # until the job has failed too often
    ALWAYS = "always"  # it says nothing about the job


@words
class Basis(StrEnum):
    """What a charge is a part of."""

    MEASURED = "measured"  # the price of what was really produced
    NOTHING = "nothing"
    HOLD = "hold"  # a percentage of the reserved credits


@dataclass(frozen=True, slots=True)
class Rule:
    """What one ending means."""

    state: JobState  # of the job, once no attempt follows
    fault: Fault
    sentence: str  # for the customer
    retries: Retries = Retries.NEVER
    waits: bool = True  # whether the first retry backs off like the later ones
    keeps_outputs: bool = False  # what was finished before is sold: the job ends `partial`
    counts: bool = False  # as one of the failures that end a job when they become too many
    default: Basis = Basis.NOTHING


def _ours(sentence: str, retries: Retries, *, waits: bool = True, keeps_outputs: bool = False) -> Rule:
    """A failure of ours in an attempt."""
    return Rule(JobState.FAILED, Fault.OURS, sentence, retries, waits, keeps_outputs, counts=True)


RULES: Mapping[Ending, Rule] = {
    Ending.SUCCEEDED: Rule(JobState.SUCCEEDED, Fault.NOBODY, "Finished.", default=Basis.MEASURED),
    Ending.PARTIAL: Rule(
        JobState.SUCCEEDED,
        Fault.OURS,  # for the part that is missing, where nothing is known of what broke it off: see `ending_with`
        "Only a part of it could be finished.",
        default=Basis.MEASURED,
    ),
    Ending.INVALID_INPUT: Rule(
        JobState.FAILED, Fault.CUSTOMER, "The request or its audio could not be used.", keeps_outputs=True, counts=True
    ),
    Ending.CANCELLED: Rule(JobState.CANCELLED, Fault.CUSTOMER, "Cancelled."),
    Ending.CANCELLED_RUNNING: Rule(JobState.CANCELLED, Fault.CUSTOMER, "Cancelled while it was running."),
    Ending.INSUFFICIENT_CREDITS: Rule(JobState.REFUSED, Fault.CUSTOMER, "There were not enough credits to start."),
    Ending.ENGINE_ERROR: _ours("The music engine could not do this job.", Retries.NEVER, keeps_outputs=True),
    Ending.ENGINE_FAILURE: _ours("The music engine failed.", Retries.BOUNDED, keeps_outputs=True),
    Ending.ENGINE_CRASHED: _ours("The music engine crashed.", Retries.BOUNDED, keeps_outputs=True),
    Ending.ENGINE_UNAVAILABLE: _ours("The music engine could not be reached.", Retries.BOUNDED, keeps_outputs=True),
    Ending.OUT_OF_MEMORY: _ours("The music engine ran out of memory.", Retries.ONCE, keeps_outputs=True),
    Ending.TIME_LIMIT: _ours("The work took longer than we allow.", Retries.BOUNDED, keeps_outputs=True),
    Ending.QUALITY_GATE: _ours("The result did not pass our quality check.", Retries.ONCE, keeps_outputs=True),
    # The lease was waited for already, so the first retry starts at once.
    Ending.LOST_WORKER: _ours("The machine that worked on it was lost.", Retries.BOUNDED, waits=False),
    Ending.INPUT_DAMAGED: _ours("A stored input was damaged on our side.", Retries.NEVER),
    Ending.STORAGE_FAILURE: _ours("The result could not be stored.", Retries.BOUNDED),
    Ending.INTERNAL_ERROR: _ours("Something went wrong on our side.", Retries.BOUNDED),
    # Met by a claim, before an attempt: no further failure.
    Ending.TOO_MANY_FAILURES: Rule(JobState.FAILED, Fault.OURS, "It failed too often on our side."),
    Ending.UNKNOWN_PRICE: Rule(JobState.FAILED, Fault.OURS, "There is no price for what was asked."),
    Ending.ENDED_BY_STAFF: Rule(JobState.FAILED, Fault.OURS, "It was stuck on our side, and we ended it."),
    Ending.PAST_ENDS_BY: Rule(JobState.REFUSED, Fault.NOBODY, "It could not start before its deadline."),
    # Nobody's: a deadline is chosen by the customer, and must not carry credits over the end of a cycle.
    Ending.PAST_ENDS_BY_STARTED: Rule(
        JobState.FAILED, Fault.NOBODY, "It was not finished before its deadline.", keeps_outputs=True
    ),
    Ending.HANDED_BACK: Rule(
        JobState.FAILED, Fault.NOBODY, "It was interrupted on our side.", Retries.ALWAYS, waits=False
    ),
    Ending.OUTAGE: Rule(JobState.FAILED, Fault.NOBODY, "It was interrupted on our side.", Retries.ALWAYS, waits=False),
}


# What happens with the job


@value
class Retry:
    """Back to `queued`, the hold kept. `backoff_step` goes to `backoff_seconds`."""

    failures: int  # of the job, this one included
    backoff_step: int


@value
class End:
    """The job ends in `state`, for good. `failures` counts this one if it was one."""

    state: JobState
    reason: Ending
    failures: int

    @property
    def partial(self) -> bool:
        return self.reason is Ending.PARTIAL


def settlement_for(ending: Ending, failures: int, failures_max: int, *, past_ends_by: bool = False) -> Retry | End:
    """What becomes of a job whose attempt ended so.

    `failures` are those before this ending. With `past_ends_by` nothing is tried again. Guarantees: a job that
    ends by its own failures has had at most `failures_max` of them; shutdown and outage count none.
    """
    rule = RULES[ending]
    after = failures + counts_as_failure(ending)
    if past_ends_by or after >= _failures_bound(rule.retries, after, failures_max):
        return End(rule.state, ending, after)
    return Retry(after, backoff_step=_backoff_step(rule, after))


def _failures_bound(retries: Retries, failures: int, failures_max: int) -> int:
    """The count of failures at which the job ends."""
    match retries:
        case Retries.NEVER:
            return 0
        case Retries.ONCE:
            return min(2, failures_max)
        case Retries.BOUNDED:
            return failures_max
        case Retries.ALWAYS:
            return failures + 1
        case _:
            assert_never(retries)


def _backoff_step(rule: Rule, failures: int) -> int:
    if rule.retries is Retries.ALWAYS:
        return 0
    return failures if rule.waits else failures - 1


def counts_as_failure(ending: Ending) -> bool:
    """Whether the ending is one of the failures that end a job when they become too many."""
    return RULES[ending].counts


def ending_with(ending: Ending, outputs_finished: int, *, outputs_due: bool = True) -> Ending:
    """The ending in the light of what was finished: `partial`, or a success without outputs, which is a failure.

    `outputs_due`: whether the request asks for outputs at all. Only outputs of this attempt count; what a
    cancelled or lost attempt finished is discarded. Whose fault it is that a part is missing is the fault of the
    `ending` that was given, not of `partial`.
    """
    if ending in (Ending.SUCCEEDED, Ending.PARTIAL) and outputs_due and outputs_finished == 0:
        return Ending.ENGINE_FAILURE
    if RULES[ending].keeps_outputs and outputs_finished > 0:
        return Ending.PARTIAL
    return ending


def cancel_after(cause: Ending, failures: int) -> End:
    """How a job ends whose attempt ended by `cause` without a result, and that is not tried again: a cancel was asked.

    A book may charge for the cancel of a run that stopped for it, or broke off by the customer's doing. One that
    broke off otherwise is no work that was thrown away at the customer's word: the job ends as if it had been
    cancelled while it waited for its next attempt, which no book charges for. `failures` are those before.
    """
    by_customer = RULES[cause].fault is Fault.CUSTOMER
    reason = Ending.CANCELLED_RUNNING if by_customer else Ending.CANCELLED
    return End(RULES[reason].state, reason, failures + (not by_customer and RULES[cause].counts))


def backoff_seconds(step: int, first_seconds: float, max_seconds: float, jitter: float = 0.0) -> float:
    """How long to wait before the next attempt: nothing at step 0, then `first`, doubled at each further step.

    `jitter` in 0..1 is the caller's random number and takes up to half off. Never above `max_seconds`.
    """
    if step <= 0:
        return 0.0
    # 2 ** 64 times anything is above every maximum, and a float still holds it.
    seconds = min(first_seconds * 2.0 ** min(step - 1, 64), max_seconds)
    return seconds * (1 - jitter / 2)


def fault_of(ending: Ending) -> Fault:
    """Whose fault it was: a refund whose lot has expired becomes a make-good lot only if it was ours."""
    return RULES[ending].fault


# What it charges


@dataclass(frozen=True, slots=True)
class Charge:
    """What an ending charges. `percent` of the hold, 1 to 100, with `Basis.HOLD` only."""

    basis: Basis
    percent: int = 0

    @property
    def words(self) -> str:
        """As a book has it: `measured`, `nothing`, `25%`."""
        return f"{self.percent}%" if self.basis is Basis.HOLD else self.basis.value

    def amount(self, *, held: int, measured: int) -> int:
        """The whole credits to commit, never above `held`; a percentage is rounded up."""
        match self.basis:
            case Basis.MEASURED:
                return min(measured, held)
            case Basis.NOTHING:
                return 0
            case Basis.HOLD:
                return -(-held * self.percent // 100)
            case _:
                assert_never(self.basis)


MEASURED = Charge(Basis.MEASURED)
NOTHING = Charge(Basis.NOTHING)


class HasOutcomes(Protocol):
    """A price book, as far as endings are concerned."""

    @property
    def outcomes(self) -> Mapping[Ending, Charge]: ...


def charge_for(book: HasOutcomes, ending: Ending, started: bool) -> Charge:
    """What the book charges for an ending. A job that never started holds nothing and is never charged."""
    if not started:
        return NOTHING
    return book.outcomes.get(ending) or default_charge(ending)


def default_charge(ending: Ending) -> Charge:
    """What an ending charges that a book doesn't name: finished work what was used, all else nothing."""
    return Charge(RULES[ending].default)


def allowed_bases(ending: Ending) -> frozenset[Basis]:
    """What a book may say of an ending. Nobody is charged for our failure, and finished work is never free."""
    rule = RULES[ending]
    if ending is Ending.SUCCEEDED:
        return frozenset({Basis.MEASURED})
    if rule.default is Basis.MEASURED:
        return frozenset({Basis.MEASURED, Basis.NOTHING})
    # A job that holds credits and doesn't run was started before and broke off on our side: nothing to charge for.
    if ending is Ending.CANCELLED:
        return frozenset({Basis.NOTHING})
    if rule.fault is Fault.CUSTOMER and rule.state is not JobState.REFUSED:
        return frozenset({Basis.NOTHING, Basis.HOLD})
    return frozenset({Basis.NOTHING})


def sentence_for(ending: Ending, charged: int, returned: int) -> str:
    """The ending as the customer reads it: what happened, what was charged, what came back."""
    money = f"{_credits(charged)} charged" if charged else "Nothing was charged"
    back = f", {_credits(returned)} returned" if returned else ""
    return f"{RULES[ending].sentence} {money}{back}."


def rule_sentence(charge: Charge, *, started: bool) -> str:
    """What the book says of this way of ending, as the customer reads it."""
    if not started:
        return "What never started costs nothing."
    match charge.basis:
        case Basis.MEASURED:
            return "What was finished is paid, and no more than was quoted."
        case Basis.NOTHING:
            return "A job that ends like this costs nothing."
        case Basis.HOLD:
            return f"A job that ends like this costs {charge.percent}% of what was reserved."
        case _:
            assert_never(charge.basis)


def _credits(amount: int) -> str:
    return f"{amount} {'credit was' if amount == 1 else 'credits were'}"
