"""Two workers, two jobs and a few credits as a model that decides nothing itself: the product's own operations do.

A state is small values; each transaction of it is one of the operations of `worker.credits.operations`, put to a page
made from those values, and what it wrote is folded back. Between them anything may happen: a worker may crash or lose
the answer to its COMMIT, a lease may lapse while its worker lives (it was paused), hints come for any job at any time,
the reaper acts on what it saw long ago, a customer cancels, deadlines and lots pass. A worker knows its token and what
its claim told it of the job: it settles by that, as the runner does, and the page then lacks what need not be read.

`python -m tests.unit.credits.metering` explores every world below, and shows for each guard that is taken away the
shortest way to what then goes wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from tests.unit.credits.explorer import Found, Move, explore
from worker.credits.account_ledger import AccountLedger, Reservation
from worker.credits.allocation import Draw
from worker.credits.lots import BrokenInvariant, Lot, LotSource, LotsUnread
from worker.credits.lots import Move as Entering
from worker.credits.operations import Cancel, Claim, Claimed, EndOverdue, Expire, Settle, wake_parked
from worker.credits.outcomes import Basis, Charge, Ending
from worker.credits.page import Artifact, Job, Lease, Order, Page
from worker.credits.states import ENDED, JobState, ReservationState

ACCOUNT = "ada"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG = timedelta(days=1)
LEASE_SECONDS = 30.0
#: The row's token, and any that it does not have any more.
CURRENT, OLD = UUID(int=1), UUID(int=2)
_ORDER = Order("{}", "{}", None, None)
OUTPUT = Artifact(UUID(int=9), "song", "audio/wav", "outputs/song", bytes(32), 10, 10, 1, 10)


class LotState(NamedTuple):
    available: int
    held: int
    spent: int
    expired: int
    past: bool  # its time is over


class JobRow(NamedTuple):
    """A job with its row in `live`, its reservation and what was sold of it."""

    state: JobState
    started: bool
    failures: int
    late: int  # 1: past its ends_by, 2: and past what a running one gets to settle
    lapsed: bool  # its lease
    cancel_asked: bool
    hold: tuple[ReservationState, tuple[Draw, ...]] | None
    charged: int
    commits: int  # how often credits were spent for it
    outputs: int  # how often outputs were published


class Books(NamedTuple):
    lots: tuple[LotState, ...]
    jobs: tuple[JobRow, ...]


class Belief(NamedTuple):
    """What a worker holds: the job that it ran last, whether its token is the row's, and what its claim told it."""

    place: int
    current: bool
    #: Of the job as it was claimed: it alone changes while others have it. What it draws on is held once and kept.
    failures: int


class State(NamedTuple):
    """`workers`: what each believes to run. `seen`: by the reaper."""

    books: Books
    workers: tuple[Belief | None, ...]
    seen: tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class World:
    """How large it is, and what may happen in it."""

    name: str
    credits: int = 2
    quotes: tuple[int, ...] = (1, 1)
    workers: int = 2
    failures_max: int = 3
    on_insufficient: str = "refuse"
    cancels: bool = True
    deadlines: bool = False
    expires: bool = False
    #: Its book charges all that was reserved for a cancel that stopped a run.
    cancels_cost: bool = False

    @property
    def start(self) -> State:
        job = JobRow(JobState.QUEUED, False, 0, 0, False, False, None, 0, 0, 0)
        lot = LotState(self.credits, 0, 0, 0, False)
        count = len(self.quotes)
        return State(Books((lot,), (job,) * count), (None,) * self.workers, (None,) * count)


WORLDS = (
    World("one job", quotes=(1,), credits=1),
    World("a credit for each of two jobs"),
    World("both want all there is", quotes=(2, 2)),
    World("one waits for what the other leaves", quotes=(2, 1), on_insufficient="wait", failures_max=2),
    World("deadlines pass", quotes=(2, 1), failures_max=2, deadlines=True, workers=1),
    World("the lot expires", quotes=(2, 1), failures_max=2, expires=True, cancels=False),
    World("a cancel of what runs costs all", quotes=(2,), cancels_cost=True),
    World("a job that costs nothing", quotes=(0,), credits=1),
)

#: Behind all that are busy.
_IDLE = Belief(99, False, 0)

#: How a worker may end an attempt: what it says, and how much of the quote it measured.
ENDINGS = (
    ("finished", Ending.SUCCEEDED, 0),
    ("finished for less", Ending.SUCCEEDED, 1),
    ("failed", Ending.ENGINE_FAILURE, 0),
    ("failed for good", Ending.ENGINE_ERROR, 0),
    ("handed back", Ending.HANDED_BACK, 0),
)


#: What a worker says that was told of a cancel.
_STOPPED = ("stopped for the cancel", Ending.CANCELLED_RUNNING, 0)


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """A book that charges what is usual, or all for the cancel of what runs."""

    outcomes: Mapping[Ending, Charge]


_USUAL = _Outcomes({})
_CANCELS_COST = _Outcomes({Ending.CANCELLED_RUNNING: Charge(Basis.HOLD, 100)})


#: Makes a page tell what is not so. Returns the credits that it conjured up on the first lot.
Lie = Callable[[Any, Page, int], int | None]


class Written(NamedTuple):
    """The books after an operation, and its answer."""

    books: Books
    answer: str


@dataclass(slots=True)
class Product:
    """The operations of the product on small values. A mutant (`lies`) makes it see what a missing guard would let by.

    The same operation on the same books gives the same: it is done once.
    """

    world: World
    lies: Mapping[str, Lie] = field(default_factory=dict)
    #: What workers and the reaper settle with. A mutant takes a guard away in there.
    settle: type[Settle] = Settle
    told: dict[tuple[JobRow, int, int, UUID], Claimed | None] = field(default_factory=dict)
    known: dict[tuple[Books, Any], Written] = field(default_factory=dict)

    def do(self, books: Books, operation: Any) -> Written:
        """One transaction: gather, decide, wake who waits, apply."""
        key = (books, operation)
        if key not in self.known:
            self.known[key] = self._done(books, operation)
        return self.known[key]

    def claimed(self, books: Books, place: int, failures: int, token: UUID) -> Claimed | None:
        """What the claim of this token told of the job, when it had failed so often."""
        row = books.jobs[place]
        key = (row, place, failures, token)
        if key not in self.told:
            job = replace(self._job(books, place), state=JobState.RUNNING, failures=failures, not_before=None)
            hold = None if row.hold is None else _held(job.job_id, row.hold[1])
            self.told[key] = Claimed(job, token, hold, _ORDER, 1.0)
        return self.told[key]

    def _done(self, books: Books, operation: Any) -> Written:
        try:
            return self._decided(books, operation, all_lots=False)
        except LotsUnread:  # as the books do: again, with them
            return self._decided(books, operation, all_lots=True)

    def _decided(self, books: Books, operation: Any, *, all_lots: bool) -> Written:
        place = None if operation.job_id is None else operation.job_id.int
        page = self._page(books, place)
        if isinstance(operation, Settle):
            self._leave_out(page, operation, all_lots)
        lie = self.lies.get(operation.step)
        conjured = lie(operation, page, place) if lie is not None and place is not None else None
        try:
            answer = operation.decide(page)
        except BrokenInvariant as error:
            return Written(books, f"refused: {error}")
        if page.ledger.raised:
            wake_parked(page, [self._job(books, n) for n, j in enumerate(books.jobs) if j.state is JobState.WAITING])
        after = self._folded(books, page)
        if conjured:
            lot = after.lots[0]
            after = after._replace(lots=(lot._replace(available=lot.available - conjured), *after.lots[1:]))
        return Written(after, getattr(answer, "value", type(answer).__name__))

    def _leave_out(self, page: Page, settle: Settle, all_lots: bool) -> None:
        """Take off the page what is not read for a settle that knows its job: see `store/gather.py`."""
        lease, job = page.leases.get(settle.job_id), page.jobs[settle.job_id]
        if not settle.knows(lease):
            return
        assert settle.claimed is not None
        if settle.claimed.job != job or settle.claimed.hold != page.ledger.reservations.get(settle.job_id):
            raise Untrue(f"job {settle.job_id.int} is not read, and is not what its claim told")
        lots = page.ledger.lots.values() if all_lots or not settle.spends_all(lease) else None
        page.jobs = {}
        page.ledger = AccountLedger(ACCOUNT, NOW, lots)

    def _page(self, books: Books, place: int | None) -> Page:
        lots = [
            Lot(
                number,
                LotSource.GRANT,
                sum(lot[:4]),
                lot.available,
                (NOW if lot.past else NOW + LONG) if self.world.expires else None,
                lot.held,
                lot.spent,
                lot.expired,
            )
            for number, lot in enumerate(books.lots)
        ]
        jobs, leases, holds = {}, {}, []
        if place is not None:
            row, job = books.jobs[place], self._job(books, place)
            jobs[job.job_id] = job
            if row.hold is not None:
                state, draws = row.hold
                holds.append(replace(_held(job.job_id, draws), state=state, charged=row.charged))
            if row.state is JobState.RUNNING:
                until = NOW if row.lapsed else NOW + timedelta(seconds=LEASE_SECONDS)
                leases[job.job_id] = Lease(job.job_id, CURRENT, until, NOW if row.cancel_asked else None)
        waiting = [UUID(int=number) for number, row in enumerate(books.jobs) if row.state is JobState.WAITING]
        ledger = AccountLedger(ACCOUNT, NOW, lots, holds)
        book = _CANCELS_COST if self.world.cancels_cost else _USUAL
        return Page(ACCOUNT, NOW, ledger, jobs, leases, {1: book}, eldest_parked=min(waiting, default=None))

    def _job(self, books: Books, place: int) -> Job:
        row = books.jobs[place]
        ends_by = NOW + LONG - row.late * timedelta(days=1, seconds=(row.late - 1) * LEASE_SECONDS)
        return Job(
            UUID(int=place),
            "kind",
            "queue",
            row.state,
            0,
            self.world.quotes[place],
            1,
            self.world.on_insufficient,
            ends_by,
            int(row.started),
            row.failures,
            self.world.failures_max,
            NOW if row.started else None,
            NOW if row.state is JobState.QUEUED else None,
        )

    def _folded(self, books: Books, page: Page) -> Books:
        """The books after what the page wants to be written. A job's tables must agree with its state."""
        ledger, writes = page.ledger, page.writes
        if ledger.lots_read:
            lots = tuple(
                LotState(
                    lot.available,
                    lot.held,
                    lot.spent,
                    lot.expired,
                    lot.expired_by(NOW) if number < len(books.lots) else False,
                )
                for number, lot in enumerate(ledger.lots.values())
            )
        else:
            lots = _spent_unread(books.lots, ledger.spent_unread)
        jobs = list(books.jobs)
        for live in writes.live:
            place = live.job.job_id.int
            jobs[place] = jobs[place]._replace(state=JobState.RUNNING, started=True, lapsed=False, cancel_asked=False)
        for change in writes.jobs:
            place = change.job.job_id.int
            jobs[place] = jobs[place]._replace(
                state=change.state,
                failures=change.failures,
                lapsed=False,
                cancel_asked=False,
                charged=jobs[place].charged + (change.charged or 0),
            )
        for job_id, _ in writes.cancel_asked:
            jobs[job_id.int] = jobs[job_id.int]._replace(cancel_asked=True)
        for job_id in [*ledger.made, *ledger.settled]:
            hold = ledger.reservations[job_id]
            jobs[job_id.int] = jobs[job_id.int]._replace(hold=(hold.state, hold.draws))
        for job_id in ledger.settled:
            spent = any(line.entry.move is Entering.COMMIT and line.job_id == job_id for line in ledger.lines)
            jobs[job_id.int] = jobs[job_id.int]._replace(commits=jobs[job_id.int].commits + spent)
        for job_id, _, _ in writes.artifacts:
            jobs[job_id.int] = jobs[job_id.int]._replace(outputs=jobs[job_id.int].outputs + 1)
        _check_tables(books.jobs, jobs, page)
        return Books(lots, tuple(jobs))


def _held(job_id: UUID, draws: tuple[Draw, ...]) -> Reservation:
    return Reservation(job_id, sum(draw.amount for draw in draws), draws)


def _spent_unread(lots: tuple[LotState, ...], spent: Mapping[int, int]) -> tuple[LotState, ...]:
    """As the statement for it writes: it asks whether so much is held."""
    if any(lots[number].held < amount for number, amount in spent.items()):
        raise LotsUnread
    return tuple(
        lot._replace(held=lot.held - spent.get(number, 0), spent=lot.spent + spent.get(number, 0))
        for number, lot in enumerate(lots)
    )


#: Where a job of a state stands.
_TABLE = {JobState.QUEUED: "due", JobState.RUNNING: "live", JobState.WAITING: "parked"}


class Untrue(Exception):
    """Something is not as it must be."""


class TwoPlaces(Untrue):
    """A job would stand in two of the narrow tables, or in none, or in one that is not its state's."""


def _check_tables(before: tuple[JobRow, ...], after: list[JobRow], page: Page) -> None:
    writes = page.writes
    places = [{_TABLE[job.state]} if job.state in _TABLE else set() for job in before]
    for job_id in [*writes.due_gone, *(row.job.job_id for row in writes.live)]:
        places[job_id.int].discard("due")
    for job_id in writes.parked_gone:
        places[job_id.int].discard("parked")
    for attempt in writes.attempts:
        places[attempt.job_id.int].discard("live")
    for job_id in [row.job.job_id for row in writes.due]:
        places[job_id.int].add("due")
    for job_id in [row.job.job_id for row in writes.live]:
        places[job_id.int].add("live")
    for job in writes.parked:
        places[job.job_id.int].add("parked")
    wanted = [{_TABLE[job.state]} if job.state in _TABLE else set() for job in after]
    if places != wanted:
        raise TwoPlaces(f"jobs stand in {places}, not in {wanted}")


# --- what may happen


@dataclass(slots=True)
class Model:
    """Every move in a world, each judged."""

    product: Product
    judged: dict[Books, str | None] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return self.product.world

    def moves(self, state: State) -> Iterator[Move[State]]:
        """What may happen next."""
        yield from self._workers(state)
        yield from self._reaper(state)
        yield from self._time(state)
        if self.world.cancels:
            for place, job in enumerate(state.books.jobs):
                if job.state not in ENDED:
                    yield self._put(
                        state, f"job {place} is cancelled", Cancel(ACCOUNT, UUID(int=place), "x"), helps=False
                    )

    def _workers(self, state: State) -> Iterator[Move[State]]:
        jobs = state.books.jobs
        for number, belief in enumerate(state.workers):
            if belief is None:
                if number and state.workers[number - 1] is None:
                    continue  # as the one before it
                for place in range(len(jobs)):
                    yield self._claim(state, number, place)
                continue
            place, current, failures = belief
            name = f"worker {number}" + ("" if current else ", fenced,")
            yield f"{name} crashes", self._known(state, number, None), None, False
            token = CURRENT if current else OLD
            claimed = self.product.claimed(state.books, place, failures, token)
            told = self.world.cancels_cost and current and jobs[place].cancel_asked
            for said, ending, less in (*ENDINGS, _STOPPED) if told else ENDINGS:
                measured = max(self.world.quotes[place] - less, 0) if ending is Ending.SUCCEEDED else 0
                outputs = (OUTPUT,) if ending is Ending.SUCCEEDED else ()
                settle = self.product.settle(
                    *(ACCOUNT, UUID(int=place), token, ending, measured, outputs), claimed=claimed
                )
                what = f"{name} says that job {place} {said}"
                yield self._put(state, what, settle, number, None, stale=not current)
                if current:
                    yield self._put(state, f"{what}, and never hears the answer", settle, number, belief, helps=False)
            if not current:
                yield f"{name} renews and learns that job {place} is lost", self._known(state, number, None), None, True
            elif jobs[place].lapsed:
                renewed = jobs[place]._replace(lapsed=False)
                yield f"{name} renews the lease of job {place}", self._with_job(state, place, renewed), None, True

    def _claim(self, state: State, number: int, place: int) -> Move[State]:
        claim = Claim(ACCOUNT, UUID(int=place), CURRENT, "w", LEASE_SECONDS)
        what, after, wrong, helps = self._put(state, f"worker {number} is hinted of job {place}", claim)
        if what.endswith("Claimed"):
            before = state.books.jobs[place]
            if before.state is JobState.RUNNING:
                after = self._old_tokens(after, {place})
                wrong = wrong or (
                    None if before.lapsed else f"job {place} was taken from a worker whose lease is alive"
                )
            after = self._known(after, number, Belief(place, True, before.failures))
        return what, after, wrong, helps

    def _reaper(self, state: State) -> Iterator[Move[State]]:
        for place, seen in enumerate(state.seen):
            job = state.books.jobs[place]
            if seen is None:
                if job.state is JobState.RUNNING and (job.lapsed or job.late == 2):
                    looked = state._replace(seen=_changed(state.seen, place, True))
                    yield f"the reaper sees job {place}", looked, None, True
                continue
            reap = self.product.settle(
                *(ACCOUNT, UUID(int=place), CURRENT if seen else OLD, Ending.LOST_WORKER),
                reap_grace_seconds=LEASE_SECONDS,
            )
            what, after, wrong, helps = self._put(state, f"the reaper reaps job {place}", reap, stale=not seen)
            if wrong is None and job.state is JobState.RUNNING and not job.lapsed and job.late < 2:
                taken = after.books.jobs[place] != job
                wrong = _taken(place) if taken else None
            yield what, after._replace(seen=_changed(after.seen, place, None)), wrong, helps

    def _time(self, state: State) -> Iterator[Move[State]]:
        for place, job in enumerate(state.books.jobs):
            if job.state is JobState.RUNNING and not job.lapsed:
                yield (
                    f"the lease of job {place} lapses",
                    self._with_job(state, place, job._replace(lapsed=True)),
                    None,
                    True,
                )
            if self.world.deadlines and job.state not in ENDED:
                if job.late < (2 if job.state is JobState.RUNNING else 1):
                    late = self._with_job(state, place, job._replace(late=job.late + 1))
                    yield f"the deadline of job {place} passes ({job.late + 1})", late, None, True
                if job.late and job.state is not JobState.RUNNING:
                    yield self._put(state, f"job {place} is ended as overdue", EndOverdue(ACCOUNT, UUID(int=place)))
        if self.world.expires:
            for number, lot in enumerate(state.books.lots):
                if not lot.past:
                    lots = _changed(state.books.lots, number, lot._replace(past=True))
                    yield f"lot {number} expires", state._replace(books=state.books._replace(lots=lots)), None, True
            yield self._put(state, "what expired is written down", Expire(ACCOUNT))
        if self.world.on_insufficient == "wait":
            for place, job in enumerate(state.books.jobs):
                if job.state is JobState.WAITING:  # nobody brings credits here: it may always be ended
                    yield self._put(state, f"job {place} gives up", Cancel(ACCOUNT, UUID(int=place), "x"))

    def _put(
        self,
        state: State,
        what: str,
        operation: Any,
        number: int | None = None,
        belief: Belief | None = None,
        *,
        stale: bool = False,
        helps: bool = True,
    ) -> Move[State]:
        """One transaction, and what worker `number` believes afterwards. A `stale` one must change nothing."""
        try:
            books, answer = self.product.do(state.books, operation)
        except Untrue as error:
            return what, state, str(error), helps
        wrong = self._wrong_with(books) or _charged_for_our_failure(state.books, books, operation)
        if wrong is None and stale and books != state.books:
            wrong = "a token that is not the row's changed the books"
        after = state if books == state.books else self._told(state, books)
        if number is not None:
            now = belief and belief._replace(current=after.books.jobs[belief.place].state is JobState.RUNNING)
            after = self._known(after, number, now)
        return f"{what}: {answer}", after, wrong, helps

    def _told(self, state: State, books: Books) -> State:
        """Whoever had the token of a job that left `live` has an old one now."""
        left = {
            place
            for place, (before, after) in enumerate(zip(state.books.jobs, books.jobs, strict=True))
            if before.state is JobState.RUNNING and after.state is not JobState.RUNNING
        }
        return self._old_tokens(state._replace(books=books), left)

    def _old_tokens(self, state: State, left: set[int]) -> State:
        workers = tuple(b._replace(current=False) if b is not None and b.place in left else b for b in state.workers)
        seen = tuple(False if s is not None and place in left else s for place, s in enumerate(state.seen))
        return state._replace(workers=workers, seen=seen)

    def _known(self, state: State, number: int, belief: Belief | None) -> State:
        # Workers are alike: which of them is which makes no difference.
        workers = sorted(_changed(state.workers, number, belief), key=lambda b: _IDLE if b is None else b)
        return state._replace(workers=tuple(workers))

    def _with_job(self, state: State, place: int, job: JobRow) -> State:
        return state._replace(books=state.books._replace(jobs=_changed(state.books.jobs, place, job)))

    def _wrong_with(self, books: Books) -> str | None:
        if books not in self.judged:
            self.judged[books] = _wrong(self.world, books)
        return self.judged[books]


def _charged_for_our_failure(before: Books, after: Books, operation: Any) -> str | None:
    """Only a result, and a run that stopped for a cancel, cost anything."""
    if isinstance(operation, Settle) and operation.ending not in (Ending.SUCCEEDED, Ending.CANCELLED_RUNNING):
        place = operation.job_id.int
        if after.jobs[place].charged != before.jobs[place].charged:
            return f"job {place} was charged though its run broke off"
    return None


def _taken(place: int) -> str:
    return f"job {place} was taken from a worker whose lease is alive"


def _changed(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _wrong(world: World, books: Books) -> str | None:
    """The promises of DESIGN §1 that any books must keep."""
    if any(bucket < 0 for lot in books.lots for bucket in lot[:4]):
        return "a bucket is below zero"
    held = sum(d.amount for job in books.jobs if job.hold and job.hold[0] is ReservationState.HELD for d in job.hold[1])
    if held != sum(lot.held for lot in books.lots):
        return f"{sum(lot.held for lot in books.lots)} credits are held, for jobs that hold {held}"
    if sum(lot.spent for lot in books.lots) != sum(job.charged for job in books.jobs):
        return "what was spent is not what was charged"
    for place, job in enumerate(books.jobs):
        state = None if job.hold is None else job.hold[0]
        if job.commits > 1 or job.charged > world.quotes[place]:
            return f"job {place} was charged twice"
        if job.state in ENDED and state is ReservationState.HELD:
            return f"job {place} has ended and holds credits"
        if job.state is JobState.RUNNING and state is not ReservationState.HELD:
            return f"job {place} runs and holds nothing"
        paid = job.state is JobState.SUCCEEDED or (world.cancels_cost and job.charged > 0)
        if paid != (state is ReservationState.COMMITTED):
            return f"job {place} is {job.state} with a reservation {state}"
        if job.outputs != (job.state is JobState.SUCCEEDED):
            return f"job {place} is {job.state} with {job.outputs} outputs"
        if job.failures > world.failures_max:
            return f"job {place} was tried too often"
    return None


def explored(world: World, lies: Mapping[str, Lie] | None = None, settles_by: type[Settle] = Settle) -> Found[State]:
    """All of a world; `lies` by the step that is told them, `settles_by` in place of the product's own settle."""
    model = Model(Product(world, lies or {}, settles_by))
    return explore(world.start, model.moves, lambda state: all(job.state in ENDED for job in state.books.jobs))


# --- mutants: a guard that is missing is a page on which it is always met


def _as_if_running(operation: Any, page: Page, place: int) -> None:
    """Neither state nor token is looked at."""
    if operation.job_id not in page.jobs:
        return  # its own token stands in the row
    job = page.jobs[operation.job_id]
    page.jobs = {operation.job_id: replace(job, state=JobState.RUNNING)}
    page.leases = {operation.job_id: Lease(job.job_id, operation.token, NOW + LONG, None)}


def _token_of_whoever_asks(operation: Any, page: Page, place: int) -> None:
    """`state = 'running'` is the whole guard."""
    for job_id, lease in page.leases.items():
        page.leases = {job_id: replace(lease, token=operation.token)}


def _hold_never_ended(operation: Any, page: Page, place: int) -> None:
    """An ended job is settled again, its reservation whatever it is."""
    hold = page.ledger.reservations.get(operation.job_id)
    if hold is not None and page.jobs[operation.job_id].state in ENDED:
        _as_if_running(operation, page, place)
        page.ledger.reservations[operation.job_id] = replace(hold, state=ReservationState.HELD)
        missing = sum(draw.amount for draw in hold.draws)
        lot = page.ledger.lots[0]
        # Only the CHECK on `held` would be left.
        page.ledger.lots[0] = replace(lot, held=lot.held + missing, granted=lot.granted + missing)


def _hold_forgotten(operation: Any, page: Page, place: int) -> None:
    """Every attempt reserves."""
    page.ledger.reservations.clear()


def _always_rich(operation: Any, page: Page, place: int) -> int:
    """The balance is not looked at."""
    lot, conjured = page.ledger.lots[0], 5
    page.ledger.lots[0] = replace(lot, available=lot.available + conjured, granted=lot.granted + conjured)
    return conjured


def _by_id(operation: Any, page: Page, place: int) -> None:
    """Reap what was seen once, whoever runs it now."""
    for job_id, lease in page.leases.items():
        page.leases = {job_id: replace(lease, token=operation.token, lease_until=NOW)}


def _running_is_queued(operation: Any, page: Page, place: int) -> None:
    """A claim takes what runs."""
    job = page.jobs[operation.job_id]
    if job.state is JobState.RUNNING:
        page.jobs = {job.job_id: replace(job, state=JobState.QUEUED, not_before=NOW)}


def _never(operation: Any, page: Page, place: int) -> None:
    """The reaper never finds what it saw."""
    page.leases = {}


class _KnowsWhoever(Settle):
    """A claim is believed whoever has the job now."""

    def knows(self, lease: Lease | None) -> bool:
        return self.claimed is not None and self.claimed.hold is not None and lease is not None


#: The guard that is taken away, the world that is enough to find it, and whom it leaves unguarded or what settles so.
MUTANTS: Mapping[str, tuple[World, Mapping[str, Lie] | type[Settle]]] = {
    "no fence": (WORLDS[0], {"settle": _as_if_running}),
    "state = 'running' is the only guard": (WORLDS[0], {"settle": _token_of_whoever_asks}),
    "no guard on the reservation": (WORLDS[0], {"settle": _hold_never_ended}),
    "a new hold for each attempt": (WORLDS[1], {"claim": _hold_forgotten}),
    "no look at the balance": (WORLDS[2], {"claim": _always_rich}),
    "reaped by id": (WORLDS[0], {"reap": _by_id}),
    "a claim takes what runs": (WORLDS[0], {"claim": _running_is_queued}),
    "nobody reaps": (WORLDS[0], {"reap": _never}),
    "no token in what is known": (WORLDS[0], _KnowsWhoever),
}


def mutated(name: str) -> Found[State]:
    """What is found without that guard."""
    world, missing = MUTANTS[name]
    return explored(world, settles_by=missing) if isinstance(missing, type) else explored(world, missing)


def main() -> None:
    """Explore everything, and say what was found."""
    for world in WORLDS:
        found = explored(world)
        sys.stdout.write(
            f"{world.name}: {found.states:,} states, {found.transitions:,} transitions, {found.seconds:.1f} s: "
            f"{found.wrong or 'nothing is wrong, and it can always end'}\n"
        )
        sys.stdout.writelines(f"    {step}\n" for step in found.steps)
    for name in MUTANTS:
        found = mutated(name)
        sys.stdout.write(f"\nwithout its guard ({name}), after {len(found.steps)} steps: {found.wrong}\n")
        sys.stdout.writelines(f"    {step}\n" for step in found.steps)


if __name__ == "__main__":
    main()
