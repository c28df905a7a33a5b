"""What Fermata answers. Further keys may come and are kept: `job.model_extra`."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

#: A job in one of these states has ended and never changes again.
ENDED = frozenset({"succeeded", "failed", "cancelled", "refused"})


class Answer(BaseModel):
    """A document of theirs."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Submitted(Answer):
    """A job that is stored. `quoted`: the most that it will cost. `replayed`: it was there already, by its key.

    `position`: about so many jobs stand in its queue, this one among them; None where that is not known.
    """

    id: UUID
    account: str
    kind: str
    state: str
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
    """A job as it stands. Credits; `progress` from 0 to 1."""

    id: UUID
    account: str
    kind: str
    state: str
    quoted: int
    charged: int
    partial: bool
    reason: str | None
    message: str | None
    waiting_for: str | None
    outputs: tuple[Output, ...]
    progress: float

    @property
    def ended(self) -> bool:
        """Whether it never changes again."""
        return self.state in ENDED


class Cancelled(Answer):
    """`cancel_asked`: it runs, and its worker stops it within seconds, unless it finishes first."""

    id: UUID
    account: str
    state: str
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


class Balance(Answer):
    """What an account has. `spendable`: a job of that price would start now."""

    account: str
    spendable: int
    debt: int
    subscription: dict[str, Any]
    topup: dict[str, Any]
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
