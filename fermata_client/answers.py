"""What Fermata answers. Further keys may come and are kept: `job.model_extra`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    #: The words that are known now: a type checker finds one that is misspelt.
    State = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "refused"]
    WaitingFor = Literal[
        "run_at",
        "backoff",
        "paused",
        "credits",
        "account_limit",
        "queue_limit",
        "no_worker",
        "slot",
        "not_dispatched",
    ]
else:
    # A server that is newer than we are may know more.
    State = WaitingFor = str

#: What may become of a job that can't be paid when it is asked for.
OnInsufficient = Literal["refuse", "wait"]
#: A job in one of these states has ended and never changes again.
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "refused"})


class Answer(BaseModel):
    """A document of theirs."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def __getitem__(self, name: str) -> Any:
        # Parts of a balance were plain dicts once.
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


class Submitted(Answer):
    """A job that is stored. `quoted`: the most that it will cost. `replayed`: it was there already, by its key.

    `position`: about so many jobs stand in its queue, this one among them; None where that is not known.
    """

    id: UUID
    account: str
    kind: str
    state: State
    quoted: int
    book: int
    replayed: bool
    key: str
    position: int | None = None


class Output(Answer):
    """Something a job made: fetch it by its artifact id."""

    artifact: UUID
    name: str
    seconds: float


class Job(Answer):
    """A job as it stands. Credits; `progress` from 0 to 1.

    `waiting_for`: what a job that is queued or waiting needs before it runs. `position`: of a queued one, about so many
    run before it, and this one. `attempts`: runs that began. Once it has ended `refunded` is what of its hold returned.
    """

    id: UUID
    account: str
    kind: str
    state: State
    quoted: int
    charged: int
    refunded: int = 0
    partial: bool
    reason: str | None
    message: str | None
    waiting_for: WaitingFor | None
    position: int | None = None
    attempts: int = 0
    outputs: tuple[Output, ...]
    progress: float
    metadata: Mapping[str, Any] = {}
    retry_of: UUID | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ends_by: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether it never changes again."""
        return self.state in ENDED


class JobLine(Answer):
    """A job in a list."""

    id: UUID
    account: str
    kind: str
    state: State
    quoted: int
    charged: int
    partial: bool
    reason: str | None
    attempts: int
    created_at: datetime
    ended_at: datetime | None


class JobsPage(Answer):
    """Some jobs, the newest first. `next`: give it as `after` to go on; None at the end."""

    jobs: tuple[JobLine, ...]
    next: UUID | None


class Event(Answer):
    """What happened to a job: `queued`, `started`, `attempt_ended`, `progress`, `ended`, or what may come to be.

    `id` grows along its story; go on behind it. `progress` has none. Further keys are those of the event.
    """

    event: str
    id: int | None = None
    at: datetime | None = None
    progress: float | None = None
    stage: str | None = None
    attempt: int | None = None
    state: State | None = None


class Cancelled(Answer):
    """`cancel_asked`: it runs, and its worker stops it within seconds, unless it finishes first."""

    id: UUID
    account: str
    state: State
    cancel_asked: bool


class Line(Answer):
    """One line of a quote; the amounts sum to the total."""

    rule: str
    quantity: Decimal
    rate: Decimal
    amount: Decimal


class Quote(Answer):
    """The most that a job could cost by the price book in force now."""

    kind: str
    total: int
    book: int
    lines: tuple[Line, ...]


class LotPaid(Answer):
    """One lot's part in a job: `reserved` = `charged` + `returned` once it has ended."""

    lot: int
    source: str
    reserved: int
    charged: int
    returned: int
    expires_at: datetime | None


class Attempt(Answer):
    """One run of a job, and how it ended."""

    attempt: int
    started_at: datetime
    ended_at: datetime
    ending: str
    message: str | None


class Receipt(Answer):
    """Why a job cost what it did. The lines of each list sum to its amount. `sentence`: for the customer."""

    id: UUID
    account: str
    kind: str
    state: State
    reason: str | None
    sentence: str | None
    partial: bool
    book: int
    quoted: int
    reserved: int
    charged: int
    refunded: int
    outcome: str | None
    quote_lines: tuple[Line, ...]
    charge_lines: tuple[Line, ...]
    lots: tuple[LotPaid, ...]
    attempts: tuple[Attempt, ...]
    created_at: datetime
    ended_at: datetime | None


class Part(Answer):
    """Credits of one sort."""

    available: int
    held: int


class SubscriptionPart(Part):
    """Credits of the running month; gone at `expires_at`."""

    expires_at: datetime | None


class TopupPart(Part):
    """Bought credits. Without an active subscription they are `frozen`, and the first expire at `frozen_until`."""

    frozen: int
    frozen_until: datetime | None


class Balance(Answer):
    """What an account has. `spendable`: a job of that price would start now."""

    account: str
    spendable: int
    debt: int
    subscription: SubscriptionPart
    topup: TopupPart
    next_refill_at: datetime | None


class Artifact(Answer):
    """An audio file in the store."""

    artifact: UUID
    account: str
    name: str
    media_type: str
    seconds: float
    sample_rate: int
    channels: int
    bytes: int
    sha256: str
