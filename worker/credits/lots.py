"""Lots and the entries that move their credits from bucket to bucket.

A lot is credits that came together. Each entry moves an amount of one lot; the buckets are the fold of the
lot's entries, and `granted = available + held + spent + expired + revoked` holds after every one of them.
Amounts are whole credits.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from worker.credits.values import interpreted, value, words

#: The most credits one lot, quote or reservation may hold. Sums of a million such still fit a bigint.
CREDITS_MAX = 10**12

#: What an account may be called, as a pattern without anchors. The schema repeats it.
ACCOUNT_ID = r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}"


@words
class LotSource(StrEnum):
    SUBSCRIPTION = "subscription"
    TOPUP = "topup"
    GRANT = "grant"  # promotions, make-goods, compensations


@words
class Move(StrEnum):
    """What an entry does to its lot."""

    GRANT = "grant"  # outside -> available
    RESERVE = "reserve"  # available -> held
    COMMIT = "commit"  # held -> spent
    REFUND = "refund"  # held -> available
    EXPIRE = "expire"  # available -> expired
    REVOKE = "revoke"  # available -> revoked


#: What one credit of each move adds to granted, available, held, spent, expired, revoked.
_EFFECTS = {
    Move.GRANT: (1, 1, 0, 0, 0, 0),
    Move.RESERVE: (0, -1, 1, 0, 0, 0),
    Move.COMMIT: (0, 0, -1, 1, 0, 0),
    Move.REFUND: (0, 1, -1, 0, 0, 0),
    Move.EXPIRE: (0, -1, 0, 0, 1, 0),
    Move.REVOKE: (0, -1, 0, 0, 0, 1),
}


@interpreted
class BrokenInvariant(AssertionError):
    """The books would become wrong. Nothing is written; a worker that meets this stops that operation."""


@interpreted
class LotsUnread(Exception):
    """A decision needs lots that were not read for it. Nothing is written; it is made again with all of them."""


@value
class Lot:
    """One lot as it stands. `lot_id` grows with age within its account."""

    lot_id: int
    source: LotSource
    granted: int
    available: int
    expires_at: datetime | None = None
    held: int = 0
    spent: int = 0
    expired: int = 0
    revoked: int = 0
    #: Bought lots that a chargeback took back: what returns from a hold is revoked at once.
    charged_back: bool = False

    def __post_init__(self) -> None:
        # Spelled out: this runs at every read and every entry.
        if (
            self.available < 0
            or self.held < 0
            or self.spent < 0
            or self.expired < 0
            or self.revoked < 0
            or self.available + self.held + self.spent + self.expired + self.revoked != self.granted
        ):
            buckets = (self.available, self.held, self.spent, self.expired, self.revoked)
            raise BrokenInvariant(f"lot {self.lot_id}: granted {self.granted} is not the sum of {buckets}")

    def expired_by(self, now: datetime) -> bool:
        """Whether its credits can't be spent any more at `now`. The very instant of expiry counts as expired."""
        return self.expires_at is not None and self.expires_at <= now


@value
class Entry:
    """One line of the journal to be written: `amount` > 0 credits of one lot make one move."""

    lot_id: int
    move: Move
    amount: int
    reason: str

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise BrokenInvariant(f"an entry of {self.amount} credits")


def moved(lot: Lot, move: Move, amount: int) -> Lot:
    """The lot after one entry.

    Raises `BrokenInvariant` if a bucket would fall below zero.
    """
    granted, available, held, spent, expired, revoked = _EFFECTS[move]
    return Lot(
        lot.lot_id,
        lot.source,
        lot.granted + granted * amount,
        lot.available + available * amount,
        lot.expires_at,
        lot.held + held * amount,
        lot.spent + spent * amount,
        lot.expired + expired * amount,
        lot.revoked + revoked * amount,
        lot.charged_back,
    )


def fold(lot: Lot, entries: list[Entry]) -> Lot:
    """The lot after all of its entries, in order."""
    for entry in entries:
        if entry.lot_id == lot.lot_id:
            lot = moved(lot, entry.move, entry.amount)
    return lot
