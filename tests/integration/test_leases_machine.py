"""Any story of a few jobs and the workers that fight over them, told to the real store and to a model of the leases.

Tokens are kept for ever, and whoever has one may come back with it at any time: paused workers, lost answers, a reaper
that acts on what it saw an hour ago. Only the token that the row has may do anything. Credits: see `credits_model`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.integration.books import ACTOR, Store, an_output, patient_claim
from tests.integration.credits_model import Account
from tests.integration.stories import LONG, as_stories
from tests.integration.stories import violations as violations_in
from worker.credits.operations import (
    AlreadyEnded,
    Cancel,
    CancelAsked,
    Claimed,
    Dropped,
    Ended,
    Expire,
    Fenced,
    Requeued,
    Settle,
)
from worker.credits.outcomes import Ending
from worker.credits.states import JobState
from worker.store.leases import Held
from worker.store.reads import Reads

FAILURES_MAX = 3
LEASE = 30.0

#: How a worker ends an attempt: whether another follows, whether it counts, whether it was our fault.
ENDINGS = {
    Ending.SUCCEEDED: (False, False, False),
    Ending.ENGINE_FAILURE: (True, True, True),
    Ending.LOST_WORKER: (True, True, True),
    Ending.ENGINE_ERROR: (False, True, True),
    Ending.INVALID_INPUT: (False, True, False),
    Ending.HANDED_BACK: (True, False, False),
}


@dataclass(eq=False)
class Told:
    """A job as the model has it."""

    number: int
    job_id: UUID
    price: int
    state: JobState = JobState.QUEUED
    token: UUID | None = None
    lease_until: datetime | None = None
    failures: int = 0
    cancel_asked: bool = False
    charged: int = 0

    @property
    def ended(self) -> bool:
        return self.state not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A claim that somebody once made: whoever has it may try."""

    job: Told
    claimed: Claimed

    @property
    def holds(self) -> bool:
        return self.job.state is JobState.RUNNING and self.job.token == self.claimed.token


class Shift(RuleBasedStateMachine):
    """One account, its jobs, and any number of workers: a worker is what it knows, and that is its ticket."""

    numbers = iter(range(10**9))
    jobs: Bundle[Told] = Bundle("jobs")
    tickets: Bundle[Ticket] = Bundle("tickets")

    def __init__(self, runner: asyncio.Runner, store: Store) -> None:
        super().__init__()
        self.run, self.store, self.model = runner.run, store, Account()
        self.account = self.run(store.account(f"shift-{next(self.numbers)}"))
        self.all: list[Told] = []

    def now(self) -> datetime:
        now: datetime = self.run(self.store.value("SELECT fermata_now()"))
        return now

    def do(self, operation: Any) -> Any:
        return self.run(self.store.operations.do(operation))

    @initialize(target=tickets, amount=st.sampled_from([10, 25, 60]))
    def begins(self, amount: int) -> Any:
        """With a job that runs."""
        self.grant(amount, None)
        return self.claim(self.submit(5))

    @rule(amount=st.sampled_from([5, 20]), days=st.none() | st.integers(1, 3))
    def grant(self, amount: int, days: int | None) -> None:
        now = self.now()
        ends = None if days is None else now + timedelta(days=days)
        self.model.grant(amount, ends, now)
        reference = f"r-{next(self.numbers)}"
        self.run(self.store.accounts.grant(self.account, amount, reference, ACTOR, expires_at=ends))

    @rule(target=jobs, price=st.sampled_from([0, 5, 10, 25]))
    def submit(self, price: int) -> Told:
        job_id = self.run(self.store.queued(self.account, price, failures_max=FAILURES_MAX, job_seconds=LONG))
        job = Told(next(self.numbers), job_id, price)
        self.all.append(job)
        return job

    @rule(target=tickets, job=jobs)
    def claim(self, job: Told) -> Any:
        """A hint, whatever the job is doing."""
        now, token = self.now(), uuids.uuid7()
        answer = self.do(patient_claim(self.account, job.job_id, token, "w", LEASE))
        if job.ended:
            assert Dropped.ENDED is answer
            return multiple()
        if job.state is JobState.RUNNING:
            assert Dropped.RUNNING is answer
            return multiple()
        if job.number not in self.model.holds and self.model.claim(job.number, job.price, now) == "refused":
            assert isinstance(answer, Ended)
            assert Ending.INSUFFICIENT_CREDITS is answer.reason
            job.state = JobState.REFUSED
            return multiple()
        assert isinstance(answer, Claimed)
        job.state, job.token, job.lease_until = JobState.RUNNING, token, now + timedelta(seconds=LEASE)
        return Ticket(job, answer)

    @rule(ticket=tickets, ending=st.sampled_from(sorted(set(ENDINGS) - {Ending.LOST_WORKER})), less=st.booleans())
    def settle(self, ticket: Ticket, ending: Ending, less: bool) -> None:
        """The worker is done, or comes back with what it was done with long ago."""
        price = ticket.job.price
        measured = (price // 2 if less else price) if ending is Ending.SUCCEEDED else 0
        outputs = (an_output(),) if ending is Ending.SUCCEEDED else ()
        settle = Settle(
            self.account,
            ticket.job.job_id,
            ticket.claimed.token,
            ending,
            measured,
            outputs,
            backoff_first_seconds=0,
            claimed=ticket.claimed,
        )
        self.ends(ticket, ending, measured, self.do(settle))

    @rule(ticket=tickets)
    def reap(self, ticket: Ticket) -> None:
        """The reaper acts on a lease that it once saw."""
        now, job = self.now(), ticket.job
        reaping = Settle(
            self.account,
            job.job_id,
            ticket.claimed.token,
            Ending.LOST_WORKER,
            backoff_first_seconds=0,
            reap_grace_seconds=LEASE,
        )
        answer = self.do(reaping)
        if ticket.holds and job.lease_until is not None and job.lease_until > now:
            assert Fenced.FENCED is answer
        else:
            self.ends(ticket, Ending.LOST_WORKER, 0, answer)

    @rule(target=tickets, ticket=tickets, lost=st.booleans(), ending=st.sampled_from(sorted(ENDINGS)))
    def somebody_takes_over(self, ticket: Ticket, lost: bool, ending: Ending) -> Any:
        """And the one before comes back: chance alone would seldom have it so."""
        if not ticket.holds or ticket.job.cancel_asked:
            return multiple()
        if lost:
            self.time_passes(2 * LEASE)
            self.reap(ticket)
        else:
            self.settle(ticket, Ending.HANDED_BACK, less=False)
        if ticket.job.ended:
            return multiple()
        taken = self.claim(ticket.job)
        assert isinstance(taken, Ticket)
        assert taken.holds
        self.reap(ticket)
        self.renew([ticket, taken])
        self.settle(ticket, ending, less=False)
        return taken

    def ends(self, ticket: Ticket, ending: Ending, charge: int, answer: Any) -> None:
        """What the end of an attempt must have come to."""
        job = ticket.job
        if not ticket.holds:
            assert Fenced.FENCED is answer
            return
        again, counts, ours = ENDINGS[ending]
        if job.cancel_asked and ending is not Ending.SUCCEEDED:
            again = False  # whose fault it was stays
            counts = counts and ending is not Ending.INVALID_INPUT
        job.failures += counts
        job.token = job.lease_until = None
        if again and job.failures < FAILURES_MAX:
            assert isinstance(answer, Requeued)
            job.state = JobState.QUEUED
            return
        assert isinstance(answer, Ended)
        cancelled = job.cancel_asked and ending is not Ending.SUCCEEDED
        succeeded = ending is Ending.SUCCEEDED
        job.state = JobState.CANCELLED if cancelled else JobState.SUCCEEDED if succeeded else JobState.FAILED
        job.charged = charge
        assert (job.state, charge) == (answer.state, answer.charged)
        self.model.settle(job.number, charge, self.now(), ours)

    @rule(several=st.lists(tickets, min_size=1, max_size=4, unique=True))
    def renew(self, several: Sequence[Ticket]) -> None:
        """A process renews all that it believes to run."""
        now = self.now()
        held = [Held(self.account, ticket.job.job_id, ticket.claimed.token) for ticket in several]
        renewal = self.run(self.store.leases.renew(held, LEASE))
        assert {ticket.claimed.token for ticket in several if not ticket.holds} == renewal.lost
        asked = {ticket.claimed.token for ticket in several if ticket.holds and ticket.job.cancel_asked}
        assert asked == renewal.cancel_asked
        for ticket in several:
            if ticket.holds:
                ticket.job.lease_until = now + timedelta(seconds=LEASE)

    @rule(job=jobs)
    def cancel(self, job: Told) -> None:
        answer = self.do(Cancel(self.account, job.job_id, "no more"))
        if job.ended:
            assert isinstance(answer, AlreadyEnded)
            assert job.state is answer.state
        elif job.state is JobState.RUNNING:
            assert isinstance(answer, CancelAsked)
            job.cancel_asked = True
        else:
            assert isinstance(answer, Ended)
            job.state = JobState.CANCELLED
            if job.number in self.model.holds:
                self.model.settle(job.number, 0, self.now(), ours=False)

    @rule(by=st.sampled_from([LEASE / 2, 2 * LEASE, 86_400.0]))
    def time_passes(self, by: float) -> None:
        self.run(self.store.database.advance(timedelta(seconds=by)))

    @rule()
    def expire(self) -> None:
        self.do(Expire(self.account))

    @rule(ticket=consumes(tickets))
    def forgets(self, ticket: Ticket) -> None:
        """A crash: nobody comes back with this one."""

    @invariant()
    def both_say_the_same(self) -> None:
        now = self.now()
        buckets = self.run(self.store.buckets(self.account))
        spendable = self.run(Reads(self.store.engine).balance(self.account)).spendable
        mine = (self.model.spendable(now), self.model.held, self.model.spent)
        assert mine == (spendable, buckets["held"], buckets["spent"])
        rows = self.run(
            self.store.fetch(
                "SELECT j.job_id, j.state, j.failures, COALESCE(j.charged, 0) AS charged, l.token, "
                "  (SELECT count(*) FROM artifacts AS a WHERE a.job_id = j.job_id) AS outputs "
                "FROM jobs AS j LEFT JOIN live AS l USING (account_id, job_id) WHERE j.account_id = $1",
                self.account,
            )
        )
        assert {
            (job.job_id, job.state.value, job.failures, job.charged, job.token, int(job.state is JobState.SUCCEEDED))
            for job in self.all
        } == {tuple(row) for row in rows}

    @invariant()
    def the_auditor_finds_nothing(self) -> None:
        assert () == self.run(violations_in(self.store))

    def teardown(self) -> None:
        for job in self.all:
            if job.state is JobState.RUNNING and job.token is not None:
                self.do(Settle(self.account, job.job_id, job.token, Ending.ENGINE_ERROR))


@pytest.mark.proof
def test_whoever_comes_back_with_an_old_token_changes_nothing(told: tuple[asyncio.Runner, Store], whole: bool) -> None:
    """Claims, renewals, settles, reapings, cancels, expiry and time, in any order, with every token there ever was."""
    stories = as_stories(20, 40, whole=whole)
    run_state_machine_as_test(lambda: Shift(*told), settings=stories)  # type: ignore[arg-type]  # any maker
