"""What claim, settle, cancel and the duties decide, case by case, and that no order of them breaks the books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.credits.strategies import NOON, expiries, sources
from worker.credits.account_ledger import NEW_LOT_IDS, AccountLedger, NewLot, Reservation
from worker.credits.allocation import Draw, Shortfall
from worker.credits.lots import BrokenInvariant, Lot, LotSource
from worker.credits.operations import (
    AlreadyEnded,
    Cancel,
    CancelAsked,
    Claim,
    Claimed,
    Dropped,
    Ended,
    EndOverdue,
    Expire,
    Fenced,
    ForceEnd,
    Parked,
    Requeued,
    Settle,
    TryAgain,
    Wake,
    wake_parked,
)
from worker.credits.outcomes import Basis, Charge, Ending
from worker.credits.page import Artifact, Job, Lease, Order, Page
from worker.credits.states import ENDED, JobState, ReservationState, may_move

JOB = UUID(int=1)
TOKEN = UUID(int=0xA)
OTHER_TOKEN = UUID(int=0xB)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ABook:
    outcomes: Mapping[Ending, Charge] = field(default_factory=dict)


def a_job(state: str = "queued", job_id: UUID = JOB, **more: Any) -> Job:
    """A job of 10 credits that may fail 3 times and has a day."""
    plain: dict[str, Any] = {
        "kind": "generation",
        "queue": "songs",
        "priority": 0,
        "quoted": 10,
        "book_id": 1,
        "on_insufficient": "refuse",
        "ends_by": NOON + 24 * HOUR,
        "attempt": 1 if state == "running" else 0,
        "failures": 0,
        "failures_max": 3,
        "started_at": None,
        "not_before": NOON - HOUR if state == "queued" else None,
    }
    return Job(job_id=job_id, state=JobState(state), **{**plain, **more})


def a_lease(token: UUID = TOKEN, lapses_in: timedelta = HOUR, cancel: bool = False, why: str | None = None) -> Lease:
    """The first attempt of JOB, leased from an hour ago."""
    asked = NOON if cancel else None
    return Lease(JOB, token, NOON + lapses_in, asked, why)


def a_page(
    *jobs: Job,
    available: int = 100,
    lease: Lease | None = None,
    holds: bool = False,
    book: ABook | None = None,
    **more: Any,
) -> Page:
    """A page at noon over one everlasting lot; with `holds` JOB has its hold on it."""
    quoted = jobs[0].quoted if jobs and holds else 0
    hold = [Reservation(JOB, quoted, (Draw(1, quoted),) if quoted else ())] if holds else []
    lots = [Lot(1, LotSource.GRANT, available + quoted, available, None, quoted)] if available + quoted else []
    return Page(
        account_id="ada",
        now=NOON,
        ledger=AccountLedger("ada", NOON, lots, hold),
        jobs={job.job_id: job for job in jobs},
        leases={} if lease is None else {JOB: lease},
        books={1: book or ABook()},
        **{"running": 1 if lease else 0, **more},
    )


def an_output(number: int = 1, seconds: float = 10) -> Artifact:
    return Artifact(UUID(int=number), "song", "audio/wav", "k", bytes(32), int(seconds * 48_000), 48_000, 2, 100)


def a_claim(job_id: UUID = JOB) -> Claim:
    return Claim("ada", job_id, TOKEN, "w1", 30)


def untouched(page: Page) -> bool:
    """Whether the page is going to write nothing but hint marks."""
    written = set(page.writes.written) - {"unhinted"}
    return not written and page.ledger.lines == page.ledger.made == page.ledger.settled == []


# --- claim -----------------------------------------------------------------------------------------------------

#: In the order of the guards. Each row makes one more of them pass than the row above; all below still fail.
GUARDS: list[tuple[str, Any]] = [
    ("there is such a job", Dropped.UNKNOWN),
    ("it has not ended", Dropped.ENDED),
    ("it does not run", Dropped.RUNNING),
    ("it does not wait", Dropped.WAITING),
    ("it is in time", Ended(JobState.REFUSED, Ending.PAST_ENDS_BY, 0)),
    ("it has not failed too often", Ended(JobState.FAILED, Ending.TOO_MANY_FAILURES, 0)),
    ("its time has come", Dropped.NOT_BEFORE),
    ("nothing is paused", Dropped.PAUSED),
    ("the account may run one more", Dropped.ACCOUNT_LIMIT),
    ("it can pay", Ended(JobState.REFUSED, Ending.INSUFFICIENT_CREDITS, 0)),
]


@pytest.mark.parametrize("failing", range(len(GUARDS)), ids=[f"unless {name}" for name, _ in GUARDS])
def test_a_claim_is_guarded_in_a_fixed_order(failing: int) -> None:
    """The first guard that fails decides, whatever else is wrong with the job."""
    state = {1: "cancelled", 2: "running", 3: "waiting"}.get(failing, "queued")
    job = a_job(
        state,
        ends_by=NOON - HOUR if failing <= 4 else NOON + HOUR,
        failures=3 if failing <= 5 else 0,
        not_before=NOON + HOUR if failing <= 6 else NOON,
    )
    page = a_page(
        *([job] if failing else []), available=9, paused=failing <= 7, running_max=1, running=int(failing <= 8)
    )
    answer = a_claim().decide(page)
    assert GUARDS[failing][1] == (replace(answer, shortfall=None) if isinstance(answer, Ended) else answer)
    assert untouched(page) is isinstance(answer, Dropped)
    assert [] == page.ledger.lines


def test_a_claim_that_passes_all_guards_holds_the_whole_price() -> None:
    """Reservation, state, attempt, lease and token are written together, and it counts as running."""
    page = a_page(a_job(), running_max=1)
    claimed = a_claim().decide(page)
    assert isinstance(claimed, Claimed)
    assert (1, TOKEN, 24 * 3600) == (claimed.attempt, claimed.token, claimed.seconds_left)
    assert (90, 10) == (page.ledger.lots[1].available, page.ledger.lots[1].held)
    assert [JOB] == page.ledger.made
    ((row,), job) = (page.writes.live, claimed.job)
    assert (TOKEN, "w1", NOON + timedelta(seconds=30)) == (row.token, row.worker_id, row.lease_until)
    assert (JobState.RUNNING, 1, NOON, None) == (job.state, job.attempt, job.started_at, job.not_before)
    assert (row.job, page.ledger.reservations[JOB]) == (job, claimed.hold)
    assert 1 == page.running


def test_a_retry_is_claimed_on_the_hold_it_kept() -> None:
    """No second reservation, also where nothing is left for one; the first start and the engine's notes stay."""
    job = a_job(attempt=1, failures=1, started_at=NOON - HOUR, order=Order("{}", "{}", None, {"id": 7}))
    page = a_page(job, available=0, holds=True)
    claimed = a_claim().decide(page)
    assert isinstance(claimed, Claimed)
    assert (2, {"id": 7}) == (claimed.attempt, claimed.order.engine_state)
    assert [] == page.ledger.lines == page.ledger.made
    assert (NOON - HOUR, {"id": 7}) == (claimed.job.started_at, page.writes.live[0].engine_state)


def test_a_queued_job_whose_hold_has_ended_is_never_run() -> None:
    """It would run unpaid. Only a bug of ours can come here; the claim refuses it loudly."""
    page = a_page(a_job(attempt=1), holds=True)
    page.ledger.refund(JOB, "cancelled", "test", our_fault=False)
    with pytest.raises(BrokenInvariant):
        a_claim().decide(page)


def test_a_claim_that_cannot_pay_waits_if_it_was_asked_to() -> None:
    """It is parked with what it needs; nothing is held and nothing ends."""
    page = a_page(a_job(on_insufficient="wait"), available=9)
    assert Parked(Shortfall(10, 9, 0, 0)) == a_claim().decide(page)
    assert [JobState.WAITING] == [change.state for change in page.writes.jobs]
    assert ([JOB], [JOB]) == (page.writes.due_gone, [job.job_id for job in page.writes.parked])
    assert ([], [False]) == (page.ledger.made, [change.ended for change in page.writes.jobs])


def test_a_refusal_says_what_was_needed() -> None:
    """The shortfall travels with the answer, and the job tells both figures."""
    page = a_page(a_job(), available=9)
    answer = a_claim().decide(page)
    assert Shortfall(10, 9, 0, 0) == answer.shortfall  # type: ignore[union-attr]
    assert "needed 10, available 9" == page.writes.jobs[0].message


@pytest.mark.parametrize(
    ("more", "mark"),
    [
        ({"paused": True}, Dropped.PAUSED),
        ({"paused_names": frozenset({("queue", "songs")})}, Dropped.PAUSED),
        ({"paused_names": frozenset({("kind", "generation")})}, Dropped.PAUSED),
        ({"running_max": 2, "running": 2}, Dropped.ACCOUNT_LIMIT),
        ({"not_before": NOON + HOUR}, None),
    ],
)
def test_a_claim_that_drops_a_queued_job_clears_its_mark(more: dict[str, Any], mark: Dropped | None) -> None:
    """In the same transaction, with what it waits for, so that it is hinted again once there is room."""
    page = a_page(a_job(not_before=more.pop("not_before", NOON)), **more)
    assert isinstance(a_claim().decide(page), Dropped)
    assert [(JOB, mark)] == page.writes.unhinted


@pytest.mark.parametrize(
    "more",
    [
        {"paused_names": frozenset({("queue", "generation"), ("kind", "songs")})},  # others by the same names
        {"running_max": 2, "running": 1},
        {"running_max": None, "running": 1000},
    ],
)
def test_what_is_paused_or_full_elsewhere_stops_nobody(more: dict[str, Any]) -> None:
    """A pause is of a queue or a kind, a limit of an account."""
    assert isinstance(a_claim().decide(a_page(a_job(), **more)), Claimed)


def test_claims_of_one_batch_share_the_accounts_limit() -> None:
    """Three queued jobs, room for two: the third is dropped though none was running before."""
    jobs = [a_job(job_id=UUID(int=number)) for number in (1, 2, 3)]
    page = a_page(*jobs, running_max=2)
    answers = [type(a_claim(job.job_id).decide(page)) for job in jobs]
    assert [Claimed, Claimed, Dropped] == answers


def test_a_tried_job_past_its_time_failed_and_an_untried_one_is_refused() -> None:
    """And what the tried one held goes back."""
    page = a_page(a_job(ends_by=NOON, attempt=1), available=0, holds=True)
    assert Ended(JobState.FAILED, Ending.PAST_ENDS_BY_STARTED, 0) == a_claim().decide(page)
    assert (10, 0) == (page.ledger.lots[1].available, page.ledger.lots[1].held)
    page = a_page(a_job(ends_by=NOON))
    assert Ended(JobState.REFUSED, Ending.PAST_ENDS_BY, 0) == a_claim().decide(page)


# --- settle ----------------------------------------------------------------------------------------------------

NEVER = {"invalid_input", "engine_error", "input_damaged", "cancelled_running", "too_many_failures", "unknown_price"}
ALWAYS = {"handed_back", "outage"}
#: Ways of breaking off after which finished outputs are still sold.
SELLS_PARTS = {"invalid_input", "engine_error", "engine_failure", "engine_crashed", "engine_unavailable"} | {
    "out_of_memory",
    "time_limit",
    "quality_gate",
    "past_ends_by_started",
}
#: The customer's own doing: only so may a cancel be charged for.
BY_CUSTOMER = {"invalid_input", "cancelled", "cancelled_running"}
UNCOUNTED = {"cancelled", "cancelled_running", "handed_back", "outage", "too_many_failures", "unknown_price"} | {
    "past_ends_by_started"
}
#: An attempt can't end so: these are ways of ending for jobs that don't run.
NOT_OF_AN_ATTEMPT = {"insufficient_credits", "past_ends_by"}
#: What a worker or the reaper may say of an attempt; `partial` follows from what was finished.
OF_AN_ATTEMPT = [ending for ending in Ending if ending.value not in {*NOT_OF_AN_ATTEMPT, "partial"}]


def expected_of(ending: str, failures: int, cancel: bool, past: bool, outputs: int) -> tuple[str, str, str, int]:
    """state afterwards, reason, the attempt's own ending, failures: the table of the design as nested questions."""
    if ending == "succeeded" and outputs:
        return "succeeded", "succeeded", "succeeded", failures  # a finished result beats a cancel flag
    if ending == "ended_by_staff":
        return "failed", ending, ending, failures  # so does a person's word
    if ending == "succeeded":
        ending = "engine_failure"  # nothing to show for it
    if cancel and ending in BY_CUSTOMER:
        return "cancelled", "cancelled_running", ending, failures
    after = failures + (ending not in UNCOUNTED)
    if cancel:
        return "cancelled", "cancelled", ending, after
    if ending in SELLS_PARTS and outputs:
        return "succeeded", "partial", "partial", failures
    if ending == "cancelled":
        return "cancelled", ending, ending, failures
    if ending == "past_ends_by_started":
        return "failed", ending, ending, failures
    last = {"out_of_memory": 2, "quality_gate": 2}.get(ending, 3)
    goes_on = ending in ALWAYS or (ending not in NEVER and after < last)
    if goes_on and not past:
        return "queued", ending, ending, after
    return ("cancelled" if ending == "cancelled_running" else "failed"), ending, ending, after


@pytest.mark.parametrize("ending", OF_AN_ATTEMPT)
def test_every_ending_of_an_attempt(ending: Ending) -> None:
    """× failures before × cancel asked × past `ends_by` × outputs: state, reason, failures, charge, and every write."""
    for failures, cancel, past, outputs in product((0, 1, 2), (False, True), (False, True), (0, 2)):
        job = a_job("running", failures=failures, ends_by=NOON if past else NOON + HOUR)
        page = a_page(job, available=90, lease=a_lease(cancel=cancel), holds=True, running_max=3)
        kept = [an_output(number) for number in range(outputs)]
        answer = Settle("ada", JOB, TOKEN, ending, measured=7, outputs=kept, message="why").decide(page)
        state, reason, attempted, after = expected_of(ending.value, failures, cancel, past, outputs)
        (change,) = page.writes.jobs
        case = (failures, cancel, past, outputs)
        assert (state, after) == (change.state.value, change.failures), case
        # The attempt is closed under its token, the lease is gone, a slot of the account is free.
        (attempt,) = page.writes.attempts
        assert (attempted, TOKEN, "why") == (attempt.ending, attempt.token, attempt.message), case
        assert (JOB, 0) == (attempt.job_id, page.running), case
        hold = page.ledger.reservations[JOB]
        if state == "queued":
            assert isinstance(answer, Requeued)
            assert ReservationState.HELD is hold.state, case
            assert ([], []) == (page.ledger.lines, page.writes.artifacts)
            assert [JOB] == [row.job.job_id for row in page.writes.due]
            assert (None, None, False) == (change.charged, change.outputs, change.ended)
            continue
        sold = state == "succeeded"
        charge = 7 if sold else 0
        assert Ended(JobState(state), Ending(reason), charge) == answer, case
        assert (charge, 10 - charge) == (hold.charged, hold.refunded), case
        assert (ReservationState.COMMITTED if sold else ReservationState.REFUNDED) is hold.state, case
        assert (100 - charge, 0, charge) == tuple(
            getattr(page.ledger.lots[1], b) for b in ("available", "held", "spent")
        )
        assert (True, charge, reason == "partial") == (change.ended, change.charged, change.partial), case
        assert (kept if sold else []) == [output for _, _, output in page.writes.artifacts], case
        assert sold is (change.outputs is not None), case
        assert (reason, []) == (change.reason, page.writes.due), case


@pytest.mark.parametrize(
    ("ending", "met", "of_job", "of_attempt"),
    [
        (Ending.CANCELLED_RUNNING, None, "changed my mind", "changed my mind"),
        (Ending.ENGINE_FAILURE, "the provider is away", "changed my mind", "the provider is away"),
        (Ending.PARTIAL, None, "changed my mind", None),
        (Ending.SUCCEEDED, None, None, None),
        (Ending.ENDED_BY_STAFF, "it was stuck", "it was stuck", "it was stuck"),
    ],
)
def test_a_cancelled_run_says_why(ending: Ending, met: str | None, of_job: str | None, of_attempt: str | None) -> None:
    """The words of whoever cancelled it are the job's; what its engine met stays with the attempt."""
    page = a_page(a_job("running"), lease=a_lease(cancel=True, why="changed my mind"), holds=True)
    Settle("ada", JOB, TOKEN, ending, outputs=[an_output(0)], message=met).decide(page)
    ((change,), (attempt,)) = page.writes.jobs, page.writes.attempts
    assert (of_job, of_attempt) == (change.message, attempt.message)


@pytest.mark.parametrize("ending", sorted(NOT_OF_AN_ATTEMPT))
def test_a_running_job_cannot_be_refused(ending: str) -> None:
    """Refused is for jobs that never ran."""
    page = a_page(a_job("running"), lease=a_lease(), holds=True)
    with pytest.raises(BrokenInvariant):
        Settle("ada", JOB, TOKEN, Ending(ending)).decide(page)


@pytest.mark.parametrize(
    ("operation", "job"),
    [
        (Claim("ada", JOB, TOKEN, "w1", 30), a_job(not_before=None)),
        (Cancel("ada", JOB, "unwanted"), a_job(not_before=None)),
        (EndOverdue("ada", JOB), a_job(not_before=None, ends_by=NOON)),
        (Settle("ada", JOB, TOKEN, Ending.SUCCEEDED), a_job("running")),
        (Cancel("ada", JOB, "unwanted"), a_job("running")),
    ],
)
def test_a_job_whose_row_is_held_is_tried_again(operation: Any, job: Job) -> None:
    """A frozen dispatch or renewal holds its row, not its account: nothing is decided without that row."""
    page = a_page(job, holds=job.state is JobState.RUNNING)
    assert TryAgain.TRY_AGAIN is operation.decide(page)
    assert untouched(page)


@pytest.mark.parametrize(
    ("job", "lease", "more"),
    [
        (None, a_lease(), {}),
        (a_job("running"), a_lease(OTHER_TOKEN), {}),
        (a_job("queued", attempt=1), a_lease(), {}),
        (a_job("succeeded", attempt=1), a_lease(), {}),
        (a_job("running"), a_lease(lapses_in=timedelta(microseconds=1)), {"reap_grace_seconds": 30}),
        (a_job("running", ends_by=NOON - timedelta(seconds=29)), a_lease(), {"reap_grace_seconds": 30}),
        (a_job("running"), a_lease(OTHER_TOKEN, -HOUR), {"reap_grace_seconds": 30}),
    ],
    ids=[
        "no such job",
        "another's token",
        "queued again",
        "ended",
        "reaper: the lease lives",
        "reaper: within the grace",
        "reaper: claimed anew since it was seen",
    ],
)
def test_who_may_not_settle_is_fenced(job: Job | None, lease: Lease | None, more: dict[str, Any]) -> None:
    """Nothing is written, whatever was brought."""
    page = a_page(*([job] if job else []), lease=lease, holds=job is not None)
    settle = Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, measured=5, outputs=[an_output()], **more)
    assert Fenced.FENCED is settle.decide(page)
    assert untouched(page)


@pytest.mark.parametrize(
    ("job", "lease"),
    [
        (a_job("running"), a_lease(lapses_in=timedelta(0))),
        (a_job("running", ends_by=NOON - timedelta(seconds=30)), a_lease()),
    ],
    ids=["the lease has lapsed, this very instant", "the grace after `ends_by` is over"],
)
def test_the_reaper_takes_what_nobody_keeps(job: Job, lease: Lease) -> None:
    """At the very instant, not one later: a job in time is queued again at once, with its hold."""
    page = a_page(job, lease=lease, holds=True)
    answer = Settle("ada", JOB, TOKEN, Ending.LOST_WORKER, reap_grace_seconds=30).decide(page)
    if job.ends_by > NOON:
        assert Requeued(Ending.LOST_WORKER, NOON) == answer
    else:
        assert Ended(JobState.FAILED, Ending.LOST_WORKER, 0) == answer


@pytest.mark.parametrize(("measured", "charged"), [(0, 0), (1, 1), (10, 10), (11, 10), (10**12, 10)])
def test_the_charge_never_exceeds_the_hold(measured: int, charged: int) -> None:
    """The customer never pays more than the quote, whatever was measured."""
    page = a_page(a_job("running"), lease=a_lease(), holds=True)
    settle = Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, measured=measured, outputs=[an_output()])
    assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, charged) == settle.decide(page)
    assert 10 - charged == page.ledger.reservations[JOB].refunded


@pytest.mark.parametrize("cancel", [False, True])
def test_a_request_without_outputs_succeeds_without_any(cancel: bool) -> None:
    """Where none are due, none is missing: it is a success like others, and beats a cancel flag too."""
    page = a_page(a_job("running"), lease=a_lease(cancel=cancel), holds=True)
    answer = Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, measured=4, outputs_due=False).decide(page)
    assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 4) == answer
    assert [] == page.writes.jobs[0].outputs


def test_a_negative_measure_charges_nobody_and_breaks_loudly() -> None:
    """A bug in an engine's figures can't make credits."""
    page = a_page(a_job("running"), lease=a_lease(), holds=True)
    with pytest.raises(BrokenInvariant):
        Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, measured=-1, outputs=[an_output()]).decide(page)


def test_a_book_may_charge_for_a_cancel_of_a_started_job() -> None:
    """A part of the hold, rounded up, and the reservation is a commit of exactly that."""
    book = ABook({Ending.CANCELLED_RUNNING: Charge(Basis.HOLD, 25)})
    page = a_page(a_job("running"), available=0, lease=a_lease(cancel=True), holds=True, book=book)
    answer = Settle("ada", JOB, TOKEN, Ending.CANCELLED_RUNNING).decide(page)
    assert Ended(JobState.CANCELLED, Ending.CANCELLED_RUNNING, 3) == answer
    hold = page.ledger.reservations[JOB]
    assert (ReservationState.COMMITTED, 3, 7) == (hold.state, hold.charged, hold.refunded)
    assert (3, None) == (page.writes.jobs[0].charged, page.writes.jobs[0].outputs)


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("ending", OF_AN_ATTEMPT)
def test_a_cancel_that_was_asked_is_charged_only_where_the_customer_ended_the_run(ending: Ending, outputs: int) -> None:
    """A run that broke off otherwise costs nothing, whatever the book charges for cancels; nothing of it is sold."""
    book = ABook({Ending.CANCELLED_RUNNING: Charge(Basis.HOLD, 50)})
    page = a_page(a_job("running"), lease=a_lease(cancel=True), holds=True, book=book)
    made = [an_output()] * outputs
    answer = Settle("ada", JOB, TOKEN, ending, measured=7, outputs=made).decide(page)
    assert isinstance(answer, Ended)
    beats = ending is Ending.ENDED_BY_STAFF or (ending is Ending.SUCCEEDED and outputs)
    if not beats:
        assert (JobState.CANCELLED, 5 if ending.value in BY_CUSTOMER else 0) == (answer.state, answer.charged)
        assert ([], None) == (page.writes.artifacts, page.writes.jobs[0].outputs)


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize(
    ("ending", "outputs", "made_good"),
    [
        (Ending.ENGINE_ERROR, 0, True),
        (Ending.ENGINE_ERROR, 1, True),
        (Ending.TIME_LIMIT, 1, True),
        (Ending.LOST_WORKER, 1, True),
        (Ending.SUCCEEDED, 0, True),  # nothing to show for it
        (Ending.SUCCEEDED, 1, False),
        (Ending.INVALID_INPUT, 0, False),
        (Ending.INVALID_INPUT, 1, False),
        (Ending.PAST_ENDS_BY_STARTED, 0, False),
        (Ending.PAST_ENDS_BY_STARTED, 1, False),
        (Ending.CANCELLED_RUNNING, 0, False),
        (Ending.HANDED_BACK, 0, False),
        (Ending.OUTAGE, 0, False),
        (Ending.ENDED_BY_STAFF, 0, True),
    ],
)
def test_what_expired_meanwhile_is_made_good_by_what_ended_the_run(
    ending: Ending, outputs: int, made_good: bool, cancel: bool
) -> None:
    """Where a part was sold or a cancel was asked, too: only what went wrong on our side carries credits on."""
    page = a_page(a_job("running", failures=2, ends_by=NOON), lease=a_lease(cancel=cancel), holds=True)
    page.ledger.lots[1] = replace(page.ledger.lots[1], expires_at=NOON)
    Settle("ada", JOB, TOKEN, ending, measured=7, outputs=[an_output()] * outputs).decide(page)
    given = [new.reason for new in page.ledger.new_lots.values()]
    assert (["make_good"] if made_good else []) == given


def test_a_running_job_without_a_hold_is_never_settled() -> None:
    """It would be free. Only a bug of ours can come here."""
    with pytest.raises(BrokenInvariant):
        Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, outputs=[an_output()]).decide(
            a_page(a_job("running"), lease=a_lease())
        )


@pytest.mark.parametrize(
    ("ending", "failures", "jitter", "seconds"),
    [
        (Ending.ENGINE_FAILURE, 0, 0.0, 2),
        (Ending.ENGINE_FAILURE, 1, 0.0, 4),
        (Ending.ENGINE_FAILURE, 1, 1.0, 2),
        (Ending.LOST_WORKER, 0, 0.0, 0),  # its lease was waited for
        (Ending.LOST_WORKER, 1, 0.0, 2),
        (Ending.HANDED_BACK, 2, 0.0, 0),
    ],
)
def test_when_a_job_is_tried_again(ending: Ending, failures: int, jitter: float, seconds: int) -> None:
    """After a back-off that doubles; at once after a shutdown or the first lost worker."""
    page = a_page(a_job("running", failures=failures), lease=a_lease(), holds=True)
    answer = Settle("ada", JOB, TOKEN, ending, jitter=jitter).decide(page)
    assert Requeued(ending, NOON + timedelta(seconds=seconds)) == answer


def test_what_was_measured_goes_into_the_attempt() -> None:
    """Also when the job is tried again."""
    page = a_page(a_job("running"), lease=a_lease(), holds=True)
    Settle("ada", JOB, TOKEN, Ending.OUTAGE, usage=[{"seconds_out": "3"}]).decide(page)
    (attempt,) = page.writes.attempts
    assert [{"seconds_out": "3"}] == attempt.usage


@pytest.mark.parametrize("ending", OF_AN_ATTEMPT)
def test_a_settle_that_knows_its_job_decides_as_if_it_were_read(ending: Ending) -> None:
    """What its own claim learned stands in for the job's row and its hold, cancels and deadlines included."""
    for failures, cancel, past, outputs in product((0, 2), (False, True), (False, True), (0, 1)):
        queued = a_page(a_job(failures=failures, ends_by=NOON + HOUR))
        claimed = a_claim().decide(queued)
        assert isinstance(claimed, Claimed)
        settle = Settle("ada", JOB, TOKEN, ending, measured=7, outputs=[an_output(1)] * outputs)
        now = NOON + HOUR * past
        pages = []
        for jobs in ((claimed.job,), ()):
            page = a_page(*jobs, available=90, lease=a_lease(lapses_in=2 * HOUR, cancel=cancel))
            hold = [Reservation(JOB, 10, (Draw(1, 10),))] if jobs else []
            page.ledger = AccountLedger("ada", now, [Lot(1, LotSource.GRANT, 100, 90, None, 10)], hold)
            page.now = now
            pages.append(page)
        read, known = pages
        case = (failures, cancel, past, outputs)
        assert settle.decide(read) == replace(settle, claimed=claimed).decide(known), case
        assert (read.writes, read.ledger.lines) == (known.writes, known.ledger.lines), case
        assert (read.ledger.lots, read.ledger.reservations) == (known.ledger.lots, known.ledger.reservations), case


@pytest.mark.parametrize(
    ("what", "lease", "token"),
    [("no row is there", None, TOKEN), ("another's token stands", a_lease(OTHER_TOKEN), TOKEN)]
    + [("it is not the claim's token", a_lease(OTHER_TOKEN), OTHER_TOKEN)],
)
def test_what_a_claim_knew_counts_for_nothing_without_its_token(what: str, lease: Lease | None, token: UUID) -> None:
    """Then the job may have changed: the store reads it, and who is not its holder any more is fenced."""
    claimed = a_claim().decide(a_page(a_job()))
    assert isinstance(claimed, Claimed)
    settle = Settle("ada", JOB, token, Ending.SUCCEEDED, measured=7, outputs=[an_output()], claimed=claimed)
    assert not settle.knows(lease), what
    page = a_page(lease=lease)
    assert Fenced.FENCED is settle.decide(page)
    assert untouched(page)


def test_a_hold_on_a_lot_that_has_no_number_yet_is_not_known() -> None:
    """Only the books know it after the COMMIT, so the settle reads it there."""
    page = a_page(a_job(), available=0)
    page.ledger.grant(10, NewLot(LotSource.GRANT, "gift"), None, "test")
    claimed = a_claim().decide(page)
    assert isinstance(claimed, Claimed)
    assert claimed.hold is None
    settle = Settle("ada", JOB, TOKEN, Ending.SUCCEEDED, claimed=claimed)
    assert not settle.knows(a_lease())


# --- cancel, deadlines, waking ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (None, Dropped.UNKNOWN),
        *((a_job(state.value), AlreadyEnded(state)) for state in sorted(ENDED)),
        (a_job("queued"), Ended(JobState.CANCELLED, Ending.CANCELLED, 0)),
        (a_job("waiting"), Ended(JobState.CANCELLED, Ending.CANCELLED, 0)),
        (a_job("running"), CancelAsked()),
    ],
)
def test_what_a_cancel_does(job: Job | None, expected: Any) -> None:
    """Queued and waiting jobs end at once, a running one is asked to stop, an ended one stays as it ended."""
    running = job is not None and job.state is JobState.RUNNING
    page = a_page(*([job] if job else []), holds=running, lease=a_lease() if running else None)
    assert expected == Cancel("ada", JOB, "unwanted").decide(page)
    gone = {"queued": page.writes.due_gone, "waiting": page.writes.parked_gone, "running": page.writes.cancel_asked}
    for state, rows in gone.items():
        assert bool(rows) is (job is not None and job.state.value == state)
    assert isinstance(expected, Ended) is any(change.ended for change in page.writes.jobs)


def test_a_cancelled_retry_gives_its_hold_back() -> None:
    """Whole, and only once."""
    page = a_page(a_job(attempt=1), available=0, holds=True)
    Cancel("ada", JOB, "unwanted").decide(page)
    assert (10, 0) == (page.ledger.lots[1].available, page.ledger.lots[1].held)
    assert [JOB] == page.ledger.settled


#: Past the lease by then.
REAPED = Settle("ada", JOB, TOKEN, Ending.LOST_WORKER, reap_grace_seconds=0.0)


@pytest.mark.parametrize(
    ("act", "job", "given_up"),
    [
        (Cancel("ada", JOB, "unwanted"), a_job(attempt=1), True),
        (Cancel("ada", JOB, "unwanted"), a_job(), False),
        (Cancel("ada", JOB, "unwanted"), a_job("running"), False),
        (EndOverdue("ada", JOB), a_job(attempt=1, ends_by=NOON), True),
        (ForceEnd("ada", JOB, "hangs"), a_job("running"), True),
        (REAPED, a_job("running", failures_max=1), True),
        (REAPED, a_job("running"), False),
        (Settle("ada", JOB, TOKEN, Ending.INVALID_INPUT), a_job("running"), False),
    ],
    ids=[
        "started",
        "never started",
        "running",
        "overdue",
        "by force",
        "lost for good",
        "lost for once",
        "by its worker",
    ],
)
def test_providers_hear_of_jobs_that_end_while_nobody_runs_them(act: Any, job: Job, given_up: bool) -> None:
    """A running one is called off by its worker, one that goes on is not, one that never ran left nothing behind."""
    running = job.state is JobState.RUNNING
    lease = a_lease(lapses_in=-HOUR if act is REAPED else HOUR) if running else None
    page = a_page(job, available=0 if job.attempt else 100, holds=bool(job.attempt), lease=lease)
    act.decide(page)
    assert ([JOB] if given_up else []) == page.writes.given_up


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (None, Dropped.UNKNOWN),
        (a_job("succeeded", ends_by=NOON), Dropped.ENDED),
        (a_job("running", ends_by=NOON), Dropped.RUNNING),
        (a_job("queued", ends_by=NOON + timedelta(microseconds=1)), Dropped.NOT_BEFORE),
        (a_job("queued", ends_by=NOON), Ended(JobState.REFUSED, Ending.PAST_ENDS_BY, 0)),
        (a_job("queued", ends_by=NOON, attempt=1), Ended(JobState.FAILED, Ending.PAST_ENDS_BY_STARTED, 0)),
        (a_job("waiting", ends_by=NOON), Ended(JobState.REFUSED, Ending.PAST_ENDS_BY, 0)),
    ],
)
def test_what_the_deadline_ends(job: Job | None, expected: Any) -> None:
    """Queued and waiting jobs, from the very instant; paused or not."""
    page = a_page(*([job] if job else []), holds=bool(job and job.attempt), paused=True)
    assert expected == EndOverdue("ada", JOB).decide(page)
    assert untouched(page) is isinstance(expected, Dropped)


@pytest.mark.parametrize(
    ("spendable", "woken"),
    [(0, []), (9, []), (10, [1]), (29, [1]), (30, [1, 2]), (34, [1, 2]), (35, [1, 2, 3]), (1000, [1, 2, 3])],
)
def test_waiting_jobs_wake_oldest_first_as_many_as_fit(spendable: int, woken: list[int]) -> None:
    """A small young job does not overtake a big old one."""
    parked = [a_job("waiting", UUID(int=n), quoted=quoted) for n, quoted in ((1, 10), (2, 20), (3, 5))]
    page = a_page(*parked, available=spendable)
    assert wake_parked(page, parked) is False
    assert (
        woken == [job_id.int for job_id in page.writes.parked_gone] == [row.job.job_id.int for row in page.writes.due]
    )
    assert [NOON] * len(woken) == [row.not_before for row in page.writes.due]
    assert [] == page.ledger.lines  # their claims reserve


@pytest.mark.parametrize(("spendable", "woken"), [(19, [1]), (20, [1, 2]), (29, [1, 2]), (30, [1, 2, 3])])
def test_waiting_jobs_may_come_in_portions(spendable: int, woken: list[int]) -> None:
    """What the first ones are going to take is not there for the next."""
    parked = [a_job("waiting", UUID(int=n)) for n in (1, 2, 3)]
    page = a_page(*parked, available=spendable)
    assert wake_parked(page, parked[:2], more=True) is (spendable >= 20)
    if spendable >= 20:
        wake_parked(page, parked[2:])
    assert woken == [row.job.job_id.int for row in page.writes.due]


def test_a_job_parked_here_waits_for_those_between_that_are_not_read_yet() -> None:
    """It is younger than the next portion's, which may leave no room for it."""
    elder, own = a_job("waiting", UUID(int=1)), a_job("queued", UUID(int=9), on_insufficient="wait", quoted=30)
    page = a_page(elder, own, available=20)
    assert isinstance(a_claim(job_id=own.job_id).decide(page), Parked)
    page.ledger.grant(30, NewLot(LotSource.GRANT, "credits"), None, "ops")
    assert wake_parked(page, [elder], more=True)
    assert ([elder.job_id], [own]) == (page.writes.parked_gone, page.writes.parked)
    assert wake_parked(page, []) is False
    assert [] == page.writes.parked


def test_a_job_that_was_cancelled_beside_it_is_not_woken() -> None:
    """Nor does it take room from the next."""
    parked = [a_job("waiting", UUID(int=n)) for n in (1, 2)]
    page = a_page(*parked, available=10)
    Cancel("ada", UUID(int=1), "unwanted").decide(page)
    wake_parked(page, parked)
    assert [2] == [row.job.job_id.int for row in page.writes.due]


def test_a_job_past_its_time_takes_no_room_from_the_next() -> None:
    """Waking it would only end it, and leave the younger one waiting beside credits it could use."""
    parked = [a_job("waiting", UUID(int=1), ends_by=NOON), a_job("waiting", UUID(int=2))]
    page = a_page(*parked, available=10)
    wake_parked(page, parked)
    assert [2] == [row.job.job_id.int for row in page.writes.due]


@pytest.mark.parametrize("state", ["waiting", "queued"])
def test_who_leaves_the_line_lets_the_younger_ones_be_looked_at(state: str) -> None:
    """The old one may have been too dear for what is there, or woken for what it no longer takes."""
    page = a_page(a_job(state, JOB))
    Cancel("ada", JOB, "unwanted").decide(page)
    assert page.ledger.raised


def test_wake_looks_again_without_moving_a_credit() -> None:
    """The safety net says that there may be room, no more."""
    page = a_page()
    Wake("ada").decide(page)
    assert (True, True) == (page.ledger.raised, untouched(page))


def test_expire_writes_down_what_time_has_done() -> None:
    """What is left of expired lots expires; lots that are empty for good are closed; what is held stays open."""
    page = a_page()
    lots = [
        Lot(1, LotSource.GRANT, 9, 9, NOON),
        Lot(2, LotSource.GRANT, 9, 4, NOON, held=5),
        Lot(3, LotSource.TOPUP, 9, 0, None, spent=9),
        Lot(4, LotSource.TOPUP, 9, 9, None),
        Lot(5, LotSource.GRANT, 9, 9, NOON + HOUR),
    ]
    page.ledger = AccountLedger("ada", NOON, lots)
    assert 13 == Expire("ada").decide(page)
    assert [1, 3] == page.writes.lots_closed
    assert [(1, 9), (2, 4)] == [(line.entry.lot_id, line.entry.amount) for line in page.ledger.lines]


# --- any order -------------------------------------------------------------------------------------------------

a_batch = st.lists(
    st.tuples(
        st.sampled_from(["claim"] * 6 + ["settle"] * 6 + ["reap", "reap", "cancel", "overdue", "stranger"]),
        st.integers(0, 30),
        st.just(Ending.SUCCEEDED) | st.sampled_from(OF_AN_ATTEMPT),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=5,
)


class Kitchen(RuleBasedStateMachine):
    """One account's jobs in random batches, as the store runs them: a page, decisions, and what it writes."""

    @initialize(running_max=st.sampled_from([None, 2]))
    def open_account(self, running_max: int | None) -> None:
        self.now = NOON
        self.running_max = running_max
        self.lots: dict[int, Lot] = {}
        self.reservations: dict[UUID, Reservation] = {}
        self.jobs: dict[UUID, Job] = {}
        self.due: dict[UUID, datetime] = {}
        self.leases: dict[UUID, Lease] = {}
        self.claims: dict[UUID, Claimed] = {}
        self.parked: list[UUID] = []
        self.ended: Counter[UUID] = Counter()
        self.closed_tokens: set[UUID] = set()
        self.sold: set[UUID] = set()
        self.tokens = 0
        self.credits_come(40, None, LotSource.GRANT)
        for quoted in (5, 15, 25):
            self.submit(quoted, True, 20, 0)

    def _page(self) -> Page:
        cycle_ends_at = NOON + 30 * HOUR
        ledger = AccountLedger(
            "ada", self.now, self.lots.values(), self.reservations.values(), cycle_ends_at=cycle_ends_at
        )
        jobs = {job_id: replace(job, not_before=self.due.get(job_id)) for job_id, job in self.jobs.items()}
        book = ABook({Ending.CANCELLED_RUNNING: Charge(Basis.HOLD, 30)})
        return Page(
            "ada",
            self.now,
            ledger,
            jobs,
            dict(self.leases),
            {1: book},
            running_max=self.running_max,
            running=len(self.leases),
        )

    def _job_for(self, what: str, number: int) -> UUID:
        """Mostly one to which it applies; the first numbers aim at any job, known or not."""
        apt = self.due if what == "claim" else self.leases if what in ("settle", "reap", "stranger") else self.jobs
        candidates = sorted(apt)
        return UUID(int=number) if number < 4 or not candidates else candidates[number % len(candidates)]

    def _operation(self, job_id: UUID, what: str, number: int, ending: Ending, outputs: int) -> Any:
        lease = self.leases.get(job_id)
        token = lease.token if lease else TOKEN
        self.tokens += 1
        match what:
            case "claim":
                return Claim("ada", job_id, UUID(int=(1 << 64) + self.tokens), "w1", 3600)
            case "settle":
                made = [an_output(1000 * self.tokens + n) for n in range(outputs)]
                known = self.claims.get(job_id) if number % 2 else None
                return Settle("ada", job_id, token, ending, measured=outputs * 3, outputs=made, claimed=known)
            case "stranger":
                return Settle("ada", job_id, OTHER_TOKEN, Ending.SUCCEEDED, measured=9, outputs=[an_output()])
            case "reap":
                return Settle("ada", job_id, token, Ending.LOST_WORKER, reap_grace_seconds=3600)
            case "cancel":
                return Cancel("ada", job_id, "unwanted")
        return EndOverdue("ada", job_id)

    @rule(
        quoted=st.integers(0, 20),
        wait=st.booleans(),
        hours=st.integers(1, 20),
        later=st.sampled_from([0, 0, 0, 2]),
    )
    def submit(self, quoted: int, wait: bool, hours: int, later: int) -> None:
        job_id = UUID(int=len(self.jobs))
        on_insufficient = "wait" if wait else "refuse"
        self.jobs[job_id] = a_job(
            job_id=job_id, quoted=quoted, on_insufficient=on_insufficient, ends_by=self.now + hours * HOUR
        )
        self.due[job_id] = self.now + later * HOUR

    @rule(hours=st.integers(0, 5))
    def time_passes(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule(amount=st.integers(1, 30), expires_at=expiries, source=sources)
    def credits_come(self, amount: int, expires_at: datetime | None, source: LotSource) -> None:
        page = self._page()
        page.ledger.grant(amount, NewLot(source, "grant"), expires_at, "test")
        self._finish(page)

    @rule()
    def lots_expire(self) -> None:
        page = self._page()
        Expire("ada").decide(page)
        self._finish(page)

    @rule(batch=a_batch)
    def a_batch_is_decided(self, batch: Sequence[tuple[str, int, Ending, int]]) -> None:
        page = self._page()
        steps = {self._job_for(step[0], step[1]): step for step in batch}  # a job once a batch
        operations = [self._operation(job_id, *step) for job_id, step in steps.items()]
        operations.sort(key=lambda operation: isinstance(operation, Claim))
        for operation in operations:
            job_id = operation.job_id
            if isinstance(operation, Settle) and operation.knows(page.leases.get(job_id)):
                # As the store does: what its claim knows is not read again.
                del page.ledger.reservations[job_id]
                page.jobs = {one: job for one, job in page.jobs.items() if one != job_id}
            answer = operation.decide(page)
            if isinstance(answer, Claimed):
                self.claims[job_id] = answer
            if getattr(operation, "token", None) == OTHER_TOKEN:
                assert Fenced.FENCED is answer
        self._finish(page)

    def _finish(self, page: Page) -> None:
        if page.ledger.raised:
            wake_parked(page, [self.jobs[job_id] for job_id in self.parked])
        writes = page.writes
        assert len(writes.jobs) == len({change.job.job_id for change in writes.jobs})
        for job_id in writes.due_gone:
            del self.due[job_id]
        for attempt in writes.attempts:
            assert attempt.token not in self.closed_tokens
            self.closed_tokens.add(attempt.token)
            assert attempt.token == self.leases.pop(attempt.job_id).token
        for job_id in writes.parked_gone:
            self.parked.remove(job_id)
        for change in writes.jobs:
            job = self.jobs[change.job.job_id]
            assert may_move(job.state, change.state)
            assert job.attempt == change.job.attempt
            assert job.failures <= change.failures <= job.failures_max
            assert change.ended is (change.state in ENDED) is (change.charged is not None)
            self.jobs[job.job_id] = replace(job, state=change.state, failures=change.failures)
            self.ended.update([job.job_id] * change.ended)
        for due in writes.due:
            assert due.job.job_id not in self.due
            self.due[due.job.job_id] = due.not_before
        for live in writes.live:
            job, job_id = self.jobs[live.job.job_id], live.job.job_id
            assert may_move(job.state, live.job.state)
            started_at = job.started_at or self.now
            started = replace(job, state=JobState.RUNNING, attempt=job.attempt + 1, started_at=started_at)
            assert live.job == replace(started, not_before=None)
            self.jobs[job_id] = live.job
            del self.due[job_id]
            assert job_id not in self.leases
            self.leases[job_id] = Lease(job_id, live.token, live.lease_until, None)
        self.parked += [job.job_id for job in writes.parked]
        for job_id, _ in writes.cancel_asked:
            self.leases[job_id] = replace(self.leases[job_id], cancel_asked_at=self.now)
        self.sold |= {job_id for job_id, _, _ in writes.artifacts}
        numbers = {
            lot_id: lot_id if lot_id < NEW_LOT_IDS else 1 + lot_id % 2**62 + len(self.lots)
            for lot_id in page.ledger.lots
        }
        self.lots = {numbers[lot_id]: replace(lot, lot_id=numbers[lot_id]) for lot_id, lot in page.ledger.lots.items()}
        self.reservations = {
            job_id: replace(one, draws=tuple(replace(draw, lot_id=numbers[draw.lot_id]) for draw in one.draws))
            for job_id, one in page.ledger.reservations.items()
        }

    @invariant()
    def every_unfinished_job_stands_in_exactly_one_place(self) -> None:
        places: dict[JobState, Container[UUID]] = {
            JobState.QUEUED: self.due,
            JobState.RUNNING: self.leases,
            JobState.WAITING: self.parked,
        }
        for job_id, job in self.jobs.items():
            assert [job.state] * (job.state in places) == [state for state, place in places.items() if job_id in place]

    @invariant()
    def only_jobs_that_run_or_will_run_again_hold_credits(self) -> None:
        for job_id, job in self.jobs.items():
            hold = self.reservations.get(job_id)
            started = job.state is JobState.RUNNING or (job.state is JobState.QUEUED and job.attempt > 0)
            assert started is (hold is not None and hold.state is ReservationState.HELD)
            assert hold is None or job.quoted == hold.amount
        held = sum(one.amount for one in self.reservations.values() if one.state is ReservationState.HELD)
        assert held == sum(lot.held for lot in self.lots.values())

    @invariant()
    def who_succeeded_has_paid_and_has_something_to_show(self) -> None:
        for job_id, job in self.jobs.items():
            hold = self.reservations.get(job_id)
            if job.state is JobState.SUCCEEDED:
                assert hold is not None
                assert (ReservationState.COMMITTED, True) == (hold.state, job_id in self.sold)
            elif job.state in ENDED:
                assert job_id not in self.sold
                charged = hold.charged if hold else 0
                assert job.state is JobState.CANCELLED or charged == 0

    @invariant()
    def each_job_ends_once(self) -> None:
        assert {job_id: 1 for job_id, job in self.jobs.items() if job.state in ENDED} == dict(self.ended)

    @invariant()
    def the_limit_holds(self) -> None:
        assert self.running_max is None or len(self.leases) <= self.running_max


TestKitchen = Kitchen.TestCase
TestKitchen.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
