"""What one transaction knows of one account, and what it is going to write about its jobs.

A page is gathered under the account's lock, the operations of a batch decide on it in pure code, and the store
applies what they collected. One job is touched by at most one operation of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from worker.credits.account_ledger import AccountLedger
from worker.credits.outcomes import HasOutcomes
from worker.credits.plans import Plan
from worker.credits.states import JobState
from worker.credits.subscriptions import FROZEN_LIFE, CycleRow, Subscription
from worker.credits.values import interpreted, value


@value
class Job:
    """A job's row as an operation sees it."""

    job_id: UUID
    kind: str
    queue: str
    state: JobState
    priority: int
    quoted: int
    book_id: int
    on_insufficient: str
    ends_by: datetime
    attempt: int
    failures: int
    failures_max: int
    started_at: datetime | None
    #: Of a queued job whose row in `due` could be locked; else None.
    not_before: datetime | None = None
    #: What the worker needs to run it; read for claims only.
    order: Order | None = None
    #: The span that submitted it, as W3C writes it: whoever moves the job tells that trace.
    traceparent: str | None = None


@value
class Order:
    """What a job asks for, as whoever runs it needs it. JSON as text: only the run looks into it."""

    request: str
    inputs: str
    plan: str | None
    #: What the engine of the last attempt wanted to be kept.
    engine_state: Mapping[str, Any] | None


@value
class Lease:
    """A running job's row in `live`, as far as a decision needs it."""

    job_id: UUID
    token: UUID
    lease_until: datetime
    cancel_asked_at: datetime | None
    #: In the words of whoever asked, for the customer.
    cancel_reason: str | None = None


@value
class Artifact:
    """An output to be registered: readable from the COMMIT that settles its job."""

    artifact_id: UUID
    name: str
    media_type: str
    storage_key: str
    sha256: bytes
    frames: int
    sample_rate: int
    channels: int
    bytes: int


@value
class JobChange:
    """What a job that did not start has become. One that ended is told of by an event, too."""

    job: Job
    state: JobState
    failures: int
    ended: bool = False
    reason: str | None = None
    message: str | None = None
    charged: int | None = None
    partial: bool = False
    outputs: list[dict[str, Any]] | None = None


@value
class DueRow:
    job: Job
    not_before: datetime


@value
class LiveRow:
    """A job that starts: it leaves `due` for `live`. `job` as it is from now on."""

    job: Job
    token: UUID
    worker_id: str
    lease_until: datetime
    engine_state: Mapping[str, Any] | None


#: Marks a part of an attempt's usage that a quality gate has turned down, and says why: it costs nothing.
REJECTED = "rejected"


@value
class AttemptRow:
    """An attempt that has ended: its row leaves `live` for `attempts`."""

    job_id: UUID
    token: UUID
    ending: str
    message: str | None
    usage: list[dict[str, str]] | None


@value
class Look:
    """When to look at an account again; None: no more."""

    at: datetime | None


@value
class SubscriptionRow:
    """A subscription after a step; the account's row repeats some of it."""

    after: Subscription


@value
class Act:
    """What a person or a key did to a job: it goes into the log in the transaction that does it."""

    actor: str
    what: str
    job_id: UUID
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@value
class Notice:
    """Something that an account is told. With a `subject` once for it, and for the lot that is meant."""

    what: str
    body: Mapping[str, Any]
    subject: str | None = None
    lot_id: int | None = None


@interpreted
class Writes:
    """What a page is going to write beside its ledger.

    What every job writes is there from the start. The other lists are made when they are first asked for, and `vars`
    names those that were: a page has one of them or none, and fifteen that stay empty took a tenth of its making.
    """

    __slots__ = ("__dict__", "attempts", "jobs", "live")

    #: What seldom changes: written only for pages that have a `subscription`.
    subscription: SubscriptionRow | None = None
    #: When time next changes something, where that is all that changes: sooner, or exactly then.
    look_by: datetime | None = None
    look_next: Look | None = None
    #: Whether more jobs may run at a time from now on.
    more_room: bool = False

    def __init__(self) -> None:
        self.jobs: list[JobChange] = []
        self.live: list[LiveRow] = []
        self.attempts: list[AttemptRow] = []

    lots_closed: list[int]
    due_gone: list[UUID]
    parked_gone: list[UUID]
    due: list[DueRow]
    parked: list[Job]
    unhinted: list[tuple[UUID, str | None]]
    cancel_asked: list[tuple[UUID, str]]
    #: Jobs that ended while nobody who runs them could tell their providers.
    given_up: list[UUID]
    artifacts: list[tuple[UUID, UUID, Artifact]]
    notices: list[Notice]
    acts: list[Act]
    cycles: list[CycleRow]
    cycles_raised: list[tuple[datetime, int]]

    @property
    def written(self) -> Mapping[str, Any]:
        """All there is to be written, by its name."""
        usual = {"jobs": self.jobs, "live": self.live, "attempts": self.attempts}
        return {name: what for name, what in {**vars(self), **usual}.items() if what}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Writes) and self.written == other.written

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __getattr__(self, name: str) -> list[Any]:
        if name not in _LISTS:
            raise AttributeError(name)
        made: list[Any] = []
        setattr(self, name, made)
        return made


#: Those that are made when they are asked for.
_LISTS = frozenset(
    ("lots_closed", "due_gone", "parked_gone", "due", "parked", "unhinted", "cancel_asked", "given_up", "artifacts")
    + ("notices", "acts", "cycles", "cycles_raised")
)


@dataclass(slots=True)
class Page:
    """One account in one transaction."""

    account_id: str
    now: datetime
    ledger: AccountLedger
    jobs: Mapping[UUID, Job]
    leases: Mapping[UUID, Lease]
    #: Price books by number: those of the jobs above.
    books: Mapping[int, HasOutcomes]
    paused: bool = False
    paused_names: frozenset[tuple[str, str]] = frozenset()
    running_max: int | None = None
    running: int = 0
    #: When the subscription ends or ended; None: never, or there is none.
    active_until: datetime | None = None
    #: Spendable credits at which the account is told that few are left; 0: never.
    warn_below: int = 0
    #: What a person set for the account, whatever its plan has.
    own_running_max: int | None = None
    own_warn_below: int | None = None
    #: How long top-ups stay frozen.
    frozen_life: timedelta = FROZEN_LIFE
    #: Read only where a cycle has ended or somebody is about to change the subscription; with the plans it names.
    subscription: Subscription | None = None
    terms: Mapping[str, Plan] = field(default_factory=dict)
    #: The eldest job that waits for credits; read only where one that would wait is claimed.
    eldest_parked: UUID | None = None
    #: What the jobs that were woken on this page are going to reserve.
    woken_for: int = 0
    #: Of an account that lapsed longer ago than top-ups stay frozen: when the next of those bought since expire.
    #: The others' lots have that end as their `expires_at` here.
    frozen_next: Look | None = None
    writes: Writes = field(default_factory=Writes)
