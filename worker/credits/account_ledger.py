"""One account's lots and reservations inside one transaction, its lock held.

Every movement of credits goes through here: each method refuses first, then moves whole, so an operation that
raises leaves the ledger as it was and its neighbours in the batch unharmed. What was moved is collected as
journal lines, to be written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from worker.credits.allocation import Draw, Shortfall, allocate, shortfall_of, spendable, split
from worker.credits.lots import CREDITS_MAX, BrokenInvariant, Entry, Lot, LotSource, LotsUnread, Move, moved
from worker.credits.states import RESERVATION_MOVES, ReservationState
from worker.credits.values import value

#: Lots made in this transaction are numbered from here until the database gives them their ids: youngest of all.
NEW_LOT_IDS = 2**62

#: A make-good is good until the cycle ends, and for at least this long.
MAKE_GOOD_LIFE = timedelta(hours=24)


@value
class Reservation:
    """A hold for one job and, once settled, what became of it."""

    job_id: UUID
    amount: int
    draws: tuple[Draw, ...]
    state: ReservationState = ReservationState.HELD
    charged: int = 0
    reason: str | None = None

    @property
    def refunded(self) -> int:
        """What went back to the lots, or stays held (0 until it is settled)."""
        return 0 if self.state is ReservationState.HELD else self.amount - self.charged


@value
class NewLot:
    """What the database must be told of a lot beside its buckets."""

    source: LotSource
    reason: str
    cycle_starts_at: datetime | None = None
    reference: str | None = None
    job_id: UUID | None = None
    note: str | None = None


@value
class JournalLine:
    """An entry with the job that caused it and who did it."""

    entry: Entry
    job_id: UUID | None
    actor: str


@value
class DebtLine:
    """Credits that are owed (+) or paid (-) from here on, with the lot that they were spent from or are paid by."""

    amount: int
    cause: str
    lot_id: int
    reference: str | None
    actor: str


class AccountLedger:
    """The books of one account between its lock and its COMMIT.

    Where all that happens is that whole holds are spent, its lots need not be read: `lots` None. Whatever asks for
    them then raises `LotsUnread`, and so does a commit that gives something back.
    """

    __slots__ = (
        *("account_id", "now", "_lots", "reservations", "topups_frozen", "cycle_ends_at"),
        *("lines", "new_lots", "changed_lots", "spent_unread", "made", "settled", "debts", "raised"),
    )

    def __init__(
        self,
        account_id: str,
        now: datetime,
        lots: Iterable[Lot] | None,
        reservations: Iterable[Reservation] = (),
        *,
        topups_frozen: bool = False,
        cycle_ends_at: datetime | None = None,
    ) -> None:
        self.account_id = account_id
        self.now = now
        self._lots: dict[int, Lot] | None = None
        if lots is not None:
            self._lots = {lot.lot_id: lot for lot in lots}
        self.reservations: dict[UUID, Reservation] = {}
        for reservation in reservations:  # most often none, and a comprehension is a call of its own
            self.reservations[reservation.job_id] = reservation
        self.topups_frozen = topups_frozen
        self.cycle_ends_at = cycle_ends_at
        self.lines: list[JournalLine] = []
        self.new_lots: dict[int, NewLot] = {}
        self.changed_lots: set[int] = set()
        #: By lot, what was spent of holds on lots that were not read.
        self.spent_unread: dict[int, int] = {}
        self.made: list[UUID] = []
        self.settled: list[UUID] = []
        self.debts: list[DebtLine] = []
        #: Whether anything here made more credits spendable: waiting jobs may fit now.
        self.raised = False

    @property
    def lots(self) -> dict[int, Lot]:
        """By number. Raises `LotsUnread`."""
        if self._lots is None:
            raise LotsUnread
        return self._lots

    @property
    def lots_read(self) -> bool:
        """Whether `lots` can be asked for."""
        return self._lots is not None

    @property
    def spendable(self) -> int:
        """What a reservation may draw on at this instant."""
        return sum(spendable(lot, self.now, topups_frozen=self.topups_frozen) for lot in self.lots.values())

    def shortfall(self, amount: int) -> Shortfall:
        """What so much needs and what there is, whether or not it is enough."""
        return shortfall_of(self.lots.values(), amount, self.now, self.topups_frozen)

    @property
    def make_good_until(self) -> datetime:
        """When credits end that make something good: with the cycle, but not within a day."""
        soonest = self.now + MAKE_GOOD_LIFE
        return max(self.cycle_ends_at, soonest) if self.cycle_ends_at else soonest

    def reserve(self, job_id: UUID, amount: int, actor: str) -> Reservation | Shortfall:
        """Hold `amount` for a job over the lots in draw order, or say what is missing.

        A job has at most one reservation in its life: a second one raises `BrokenInvariant`, and so does more
        than one lot can hold, since what comes back too late is made good by one lot.
        """
        if job_id in self.reservations:
            raise BrokenInvariant(f"job {job_id} has a reservation already")
        if amount > CREDITS_MAX:
            raise BrokenInvariant(f"a reservation of {amount} credits")
        draws = allocate(list(self.lots.values()), amount, self.now, topups_frozen=self.topups_frozen)
        if isinstance(draws, Shortfall):
            return draws
        # From here on the job is affordable.
        self._write([Entry(draw.lot_id, Move.RESERVE, draw.amount, "reserved") for draw in draws], job_id, actor)
        reservation = Reservation(job_id, amount, draws)
        self.reservations[job_id] = reservation
        self.made.append(job_id)
        return reservation

    def settle(self, job_id: UUID, charge: int, reason: str, actor: str, *, our_fault: bool = False) -> Reservation:
        """End a hold: commit `charge` of it, return the rest to the very lots it came from.

        What returns to a lot that has expired meanwhile expires with it; if `our_fault`, a make-good lot of the
        same size takes its place. What returns to a charged-back lot is revoked. A hold that is not held any
        more, or a charge above it, raises `BrokenInvariant`. A charge of 0 by `commit_free` jobs is a commit:
        see `refund` for giving all back.
        """
        return self._end(job_id, charge, ReservationState.COMMITTED, reason, actor, our_fault)

    def refund(self, job_id: UUID, reason: str, actor: str, *, our_fault: bool) -> Reservation:
        """End a hold and return all of it, by the same rules as the unused rest of a commit."""
        return self._end(job_id, 0, ReservationState.REFUNDED, reason, actor, our_fault)

    def grant(self, amount: int, new: NewLot, expires_at: datetime | None, actor: str) -> int:
        """A new lot of `amount` credits; returns its provisional id.

        Raises `BrokenInvariant` unless 0 < amount <= CREDITS_MAX.
        """
        if not 0 < amount <= CREDITS_MAX:
            raise BrokenInvariant(f"a grant of {amount} credits")
        lot_id = NEW_LOT_IDS + len(self.new_lots)
        self.lots[lot_id] = Lot(lot_id, new.source, granted=0, available=0, expires_at=expires_at)
        self.new_lots[lot_id] = new
        self._write([Entry(lot_id, Move.GRANT, amount, new.reason)], new.job_id, actor)
        self.raised = True
        return lot_id

    def expire(self, lot_id: int, reason: str, actor: str) -> int:
        """Move what is available of a lot that has expired to `expired`; returns how much. Others raise."""
        lot = self.lots[lot_id]
        if not lot.expired_by(self.now):
            raise BrokenInvariant(f"lot {lot_id} has not expired")
        if lot.available:
            self._write([Entry(lot_id, Move.EXPIRE, lot.available, reason)], None, actor)
        return lot.available

    def revoke(self, lot_id: int, amount: int, reason: str, actor: str) -> None:
        """Take back `amount` of what a lot has available. Never below zero."""
        self._write([Entry(lot_id, Move.REVOKE, amount, reason)], None, actor)

    def charge_back(self, lot_id: int, actor: str) -> int:
        """Take a bought lot back: what is available is revoked, and nobody draws on it any more; returns how much.

        What is held stays held: if it comes back it is revoked then, if it is spent it becomes debt.
        """
        taken = self.lots[lot_id].available
        if taken:
            self.revoke(lot_id, taken, "chargeback", actor)
        self.lots[lot_id] = replace(self.lots[lot_id], charged_back=True)
        return taken

    def pay_debt(self, lot_id: int, amount: int, actor: str) -> None:
        """Pay `amount` of what the account owes out of a lot that has just come."""
        self.revoke(lot_id, amount, "debt", actor)
        self.debts.append(DebtLine(-amount, "paid", lot_id, None, actor))

    def _end(
        self, job_id: UUID, charge: int, state: ReservationState, reason: str, actor: str, our_fault: bool
    ) -> Reservation:
        reservation = self.reservations.get(job_id)
        if reservation is None or state not in RESERVATION_MOVES[reservation.state]:
            raise BrokenInvariant(f"job {job_id} has no hold to end")
        if self._lots is None:
            self._spend_unread(reservation, charge, reason, actor)
        else:
            self._end_draws(reservation, charge, reason, actor, our_fault)
        ended = Reservation(job_id, reservation.amount, reservation.draws, state, charge, reason)
        self.reservations[job_id] = ended
        self.settled.append(job_id)
        self.raised = self.raised or charge < reservation.amount
        return ended

    def _spend_unread(self, reservation: Reservation, charge: int, reason: str, actor: str) -> None:
        """Spend the whole hold. Whether a lot was charged back, and this is debt, is asked when it is written."""
        if charge != reservation.amount:
            raise LotsUnread
        for draw in reservation.draws:
            self.lines.append(
                JournalLine(Entry(draw.lot_id, Move.COMMIT, draw.amount, reason), reservation.job_id, actor)
            )
            self.spent_unread[draw.lot_id] = self.spent_unread.get(draw.lot_id, 0) + draw.amount

    def _end_draws(self, reservation: Reservation, charge: int, reason: str, actor: str, our_fault: bool) -> None:
        job_id = reservation.job_id
        parts = split(reservation.draws, charge)
        entries: list[Entry] = []
        owed: list[DebtLine] = []
        made_good = 0
        for part in parts:
            lot = self.lots[part.lot_id]
            if part.charged:
                entries.append(Entry(part.lot_id, Move.COMMIT, part.charged, reason))
                if lot.charged_back:
                    owed.append(DebtLine(part.charged, "spent", part.lot_id, str(job_id), actor))
            if part.returned:
                entries.append(Entry(part.lot_id, Move.REFUND, part.returned, reason))
                if lot.charged_back:
                    entries.append(Entry(part.lot_id, Move.REVOKE, part.returned, "charged_back"))
                elif lot.expired_by(self.now):
                    entries.append(Entry(part.lot_id, Move.EXPIRE, part.returned, "lot_expired"))
                    made_good += part.returned if our_fault else 0
        self._write(entries, job_id, actor)
        self.debts += owed
        if made_good:
            self._make_good(job_id, made_good, actor)

    def _make_good(self, job_id: UUID, amount: int, actor: str) -> None:
        self.grant(amount, NewLot(LotSource.GRANT, "make_good", job_id=job_id), self.make_good_until, actor)

    def _write(self, entries: list[Entry], job_id: UUID | None, actor: str) -> None:
        # Move all of them before keeping any: an entry that would break a lot leaves everything as it was.
        after: dict[int, Lot] = {}
        for entry in entries:
            lot = after.get(entry.lot_id) or self.lots[entry.lot_id]
            after[entry.lot_id] = moved(lot, entry.move, entry.amount)
        self.lots.update(after)
        self.changed_lots.update(after)
        for entry in entries:
            self.lines.append(JournalLine(entry, job_id, actor))
