"""The books of one account against a model that knows nothing of buckets: every single credit lies somewhere.

The model moves credits one at a time; the ledger moves sums over lots. After each step both must tell the same,
the journal must fold to the buckets, and a step that was refused must have changed nothing.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.credits.strategies import NOON, expiries, sources
from worker.credits.account_ledger import NEW_LOT_IDS, AccountLedger, JournalLine, NewLot, Reservation
from worker.credits.allocation import Draw, Shortfall
from worker.credits.lots import CREDITS_MAX, BrokenInvariant, Lot, LotSource, LotsUnread, Move, fold
from worker.credits.states import ReservationState

JOB = UUID(int=1)
OTHER = UUID(int=2)


def a_ledger(*lots: Lot, now: datetime = NOON, cycle_ends_at: datetime | None = None) -> AccountLedger:
    """An account with these lots at noon, nothing frozen."""
    return AccountLedger("ada", now, lots, cycle_ends_at=cycle_ends_at)


def a_lot(lot_id: int, available: int, hours: float | None = None, source: str = "grant", **more: Any) -> Lot:
    """A lot that expires so many hours after noon, or never."""
    expires_at = None if hours is None else NOON + timedelta(hours=hours)
    return Lot(lot_id, LotSource(source), available + more.get("held", 0), available, expires_at, **more)


def held_on(lot: Lot, amount: int) -> tuple[Lot, Reservation]:
    """The lot with a hold of JOB on it, as a later transaction reads both."""
    holding = replace(lot, available=lot.available - amount, held=lot.held + amount)
    return holding, Reservation(JOB, amount, (Draw(lot.lot_id, amount),))


def written(ledger: AccountLedger) -> list[tuple[int, str, int, str]]:
    """The journal: lot, move, amount, reason. Lots made in this transaction are numbered -1, -2 …"""
    return [
        (_shown(line.entry.lot_id), line.entry.move.value, line.entry.amount, line.entry.reason)
        for line in ledger.lines
    ]


def _shown(lot_id: int) -> int:
    return lot_id if lot_id < NEW_LOT_IDS else NEW_LOT_IDS - lot_id - 1


def everything(ledger: AccountLedger) -> Any:
    """All that an operation may change."""
    return deepcopy(
        (
            ledger.lots,
            ledger.reservations,
            ledger.lines,
            ledger.new_lots,
            ledger.changed_lots,
            ledger.made,
            ledger.settled,
            ledger.raised,
        )
    )


# --- what comes back -------------------------------------------------------------------------------------------


def test_a_reservation_over_several_lots_is_settled_on_exactly_these() -> None:
    """The charge is spent in draw order; the rest goes back where it came from, though another lot is fuller."""
    ledger = a_ledger(a_lot(1, 30, 24), a_lot(2, 50, 48), a_lot(3, 500, None, "topup"))
    assert ledger.reserve(JOB, 90, "w") == Reservation(JOB, 90, (Draw(1, 30), Draw(2, 50), Draw(3, 10)))
    ended = ledger.settle(JOB, 35, "succeeded", "w")
    assert (ReservationState.COMMITTED, 35, 55) == (ended.state, ended.charged, ended.refunded)
    assert [
        (1, "reserve", 30, "reserved"),
        (2, "reserve", 50, "reserved"),
        (3, "reserve", 10, "reserved"),
        (1, "commit", 30, "succeeded"),
        (2, "commit", 5, "succeeded"),
        (2, "refund", 45, "succeeded"),
        (3, "refund", 10, "succeeded"),
    ] == written(ledger)
    assert [(0, 30), (45, 5), (500, 0)] == [(lot.available, lot.spent) for lot in ledger.lots.values()]


@pytest.mark.parametrize(
    ("cycle_ends_hours", "expected_hours"),
    [(None, 24), (1, 24), (23.99, 24), (24.01, 24.01), (300, 300), (-5, 24)],
)
def test_our_failure_makes_good_what_came_back_too_late(cycle_ends_hours: float | None, expected_hours: float) -> None:
    """Until the end of the cycle, and for at least 24 hours."""
    ends_at = None if cycle_ends_hours is None else NOON + timedelta(hours=cycle_ends_hours)
    lot, hold = held_on(a_lot(1, 40, -1), 40)
    ledger = AccountLedger("ada", NOON, [lot], [hold], cycle_ends_at=ends_at)
    ledger.refund(JOB, "engine_crashed", "w", our_fault=True)
    assert [
        (1, "refund", 40, "engine_crashed"),
        (1, "expire", 40, "lot_expired"),
        (-1, "grant", 40, "make_good"),
    ] == written(ledger)
    (made,) = ledger.new_lots.items()
    assert NewLot(LotSource.GRANT, "make_good", job_id=JOB) == made[1]
    assert NOON + timedelta(hours=expected_hours) == ledger.lots[made[0]].expires_at
    assert (40, True) == (ledger.spendable, ledger.raised)


def test_what_the_customer_gave_up_expires_with_its_lot() -> None:
    """A cancel brings nothing back from a lot that has expired meanwhile: no make-good, but not silently gone."""
    lot, hold = held_on(a_lot(1, 40, 0), 40)
    ledger = AccountLedger("ada", NOON, [lot], [hold])
    ledger.refund(JOB, "cancelled", "w", our_fault=False)
    assert [(1, "refund", 40, "cancelled"), (1, "expire", 40, "lot_expired")] == written(ledger)
    assert (0, 40, {}) == (ledger.spendable, ledger.lots[1].expired, ledger.new_lots)


@pytest.mark.parametrize("our_fault", [True, False])
@pytest.mark.parametrize("hours", [None, -1, 5])
def test_what_comes_back_to_a_charged_back_lot_is_revoked(hours: float | None, our_fault: bool) -> None:
    """Whatever the reason and whether or not it has expired: the money went back already."""
    lot, hold = held_on(a_lot(1, 40, hours, "topup", charged_back=True), 30)
    ledger = AccountLedger("ada", NOON, [lot], [hold])
    ledger.settle(JOB, 10, "partial", "w", our_fault=our_fault)
    assert [
        (1, "commit", 10, "partial"),
        (1, "refund", 20, "partial"),
        (1, "revoke", 20, "charged_back"),
    ] == written(ledger)
    assert {} == ledger.new_lots


def test_only_the_expired_part_of_a_mixed_hold_is_made_good() -> None:
    """A lot that still lives takes its own part back; the make-good has exactly the size of the rest."""
    gone, living = replace(a_lot(1, 0, -1, held=30)), replace(a_lot(2, 5, 48, held=20))
    hold = Reservation(JOB, 50, (Draw(1, 30), Draw(2, 20)))
    ledger = AccountLedger("ada", NOON, [gone, living], [hold])
    ledger.settle(JOB, 12, "partial", "w", our_fault=True)
    assert [18] == [ledger.lots[lot_id].granted for lot_id in ledger.new_lots]
    assert (25, 18, 12) == (ledger.lots[2].available, ledger.lots[1].expired, ledger.lots[1].spent)


def test_a_whole_commit_makes_nothing_good_and_raises_nothing() -> None:
    """Nothing came back, so nobody who waits for credits is woken."""
    lot, hold = held_on(a_lot(1, 40, -1), 40)
    ledger = AccountLedger("ada", NOON, [lot], [hold])
    ledger.settle(JOB, 40, "succeeded", "w", our_fault=True)
    assert ({}, False) == (ledger.new_lots, ledger.raised)


def test_whole_holds_are_spent_without_their_lots() -> None:
    """What two holds took of one lot adds up; the journal says each."""
    first, second = Reservation(JOB, 12, (Draw(1, 5), Draw(2, 7))), Reservation(OTHER, 3, (Draw(2, 3),))
    ledger = AccountLedger("ada", NOON, None, [first, second])
    for hold in (first, second):
        ended = ledger.settle(hold.job_id, hold.amount, "succeeded", "w", our_fault=False)
        assert replace(hold, state=ReservationState.COMMITTED, charged=hold.amount, reason="succeeded") == ended
    assert [(1, "commit", 5, "succeeded"), (2, "commit", 7, "succeeded"), (2, "commit", 3, "succeeded")] == written(
        ledger
    )
    assert ({1: 5, 2: 10}, [JOB, OTHER], False) == (ledger.spent_unread, ledger.settled, ledger.raised)


@pytest.mark.parametrize(
    "asked",
    [
        lambda ledger: ledger.settle(JOB, 11, "partial", "w"),
        lambda ledger: ledger.settle(JOB, 13, "succeeded", "w"),
        lambda ledger: ledger.settle(JOB, 0, "succeeded", "w"),
        lambda ledger: ledger.refund(JOB, "cancelled", "w", our_fault=False),
        lambda ledger: ledger.reserve(OTHER, 1, "w"),
        lambda ledger: ledger.reserve(OTHER, 0, "w"),
        lambda ledger: ledger.shortfall(1),
        lambda ledger: ledger.spendable,
        lambda ledger: ledger.grant(1, NewLot(LotSource.GRANT, "gift"), None, "w"),
        lambda ledger: ledger.expire(1, "expired", "w"),
        lambda ledger: ledger.revoke(1, 1, "taken", "w"),
        lambda ledger: ledger.charge_back(1, "w"),
    ],
)
def test_whatever_else_needs_lots_that_were_not_read_asks_for_them(asked: Any) -> None:
    """An account without lots to look at is not an account without credits."""
    ledger = AccountLedger("ada", NOON, None, [Reservation(JOB, 12, (Draw(1, 12),))])
    with pytest.raises(LotsUnread):
        asked(ledger)
    assert ([], {}, []) == (ledger.lines, ledger.spent_unread, ledger.settled)


def test_a_free_job_has_a_reservation_too() -> None:
    """Of nothing, without draws, and it ends once like any other."""
    ledger = a_ledger()
    assert Reservation(JOB, 0, ()) == ledger.reserve(JOB, 0, "w")
    ledger.settle(JOB, 0, "succeeded", "w")
    with pytest.raises(BrokenInvariant):
        ledger.refund(JOB, "cancelled", "w", our_fault=False)
    assert [] == ledger.lines


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        lambda ledger: ledger.reserve(JOB, 1, "w"),  # a second hold
        lambda ledger: ledger.reserve(OTHER, -1, "w"),
        lambda ledger: ledger.settle(JOB, 21, "succeeded", "w"),
        lambda ledger: ledger.settle(JOB, -1, "succeeded", "w"),
        lambda ledger: ledger.settle(OTHER, 0, "succeeded", "w"),
        lambda ledger: ledger.refund(OTHER, "cancelled", "w", our_fault=True),
        lambda ledger: ledger.grant(0, NewLot(LotSource.GRANT, "grant"), None, "w"),
        lambda ledger: ledger.grant(CREDITS_MAX + 1, NewLot(LotSource.GRANT, "grant"), None, "w"),
        lambda ledger: ledger.expire(1, "expired", "w"),  # it lives
        lambda ledger: ledger.revoke(1, 31, "chargeback", "w"),
        lambda ledger: ledger.revoke(1, 0, "chargeback", "w"),
        lambda ledger: ledger.revoke(1, -5, "chargeback", "w"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(what: Any) -> None:
    """Each method refuses before it moves anything: its neighbours in the batch go on with true books."""
    lot, hold = held_on(a_lot(1, 50, 24), 20)
    ledger = AccountLedger("ada", NOON, [lot, a_lot(2, 5, -1)], [hold])
    before = everything(ledger)
    with pytest.raises(BrokenInvariant):
        what(ledger)
    assert before == everything(ledger)


def test_a_shortfall_holds_nothing() -> None:
    """Not being able to pay is an answer, not half a reservation."""
    ledger = a_ledger(a_lot(1, 9))
    before = everything(ledger)
    assert Shortfall(10, 9, 0, 0) == ledger.reserve(JOB, 10, "w")
    assert before == everything(ledger)


def test_a_hold_that_could_not_be_made_good_whole_is_never_made() -> None:
    """Its refund might have to be one lot, and a lot holds 10^12 at most."""
    ledger = a_ledger(a_lot(1, CREDITS_MAX, 1), a_lot(2, CREDITS_MAX, 1))
    before = everything(ledger)
    with pytest.raises(BrokenInvariant):
        ledger.reserve(JOB, CREDITS_MAX + 1, "w")
    assert before == everything(ledger)


# --- any sequence ----------------------------------------------------------------------------------------------


class Credit:
    """One credit: the lot it was born in, and where it lies now."""

    def __init__(self, lot: dict[str, Any]) -> None:
        self.lot = lot
        self.place: Any = "available"  # or ("held", job), "spent", "expired", "revoked"


class AccountOfSingleCredits(RuleBasedStateMachine):
    """Random lives of one account: each transaction a fresh ledger over what the last one left."""

    @initialize(frozen=st.booleans())
    def open_account(self, frozen: bool) -> None:
        self.now = NOON
        self.frozen = frozen
        self.cycle_ends_at = NOON + timedelta(hours=30)
        self.credits: list[Credit] = []
        self.model_lots: list[dict[str, Any]] = []
        self.journal: list[JournalLine] = []
        self.lots: list[Lot] = []
        self.reservations: dict[UUID, Reservation] = {}
        self.jobs = 0
        self._begin()

    def _begin(self) -> None:
        self.ledger = AccountLedger(
            "ada",
            self.now,
            self.lots,
            self.reservations.values(),
            topups_frozen=self.frozen,
            cycle_ends_at=self.cycle_ends_at,
        )

    def _refused(self, call: Any) -> None:
        before = everything(self.ledger)
        with pytest.raises(BrokenInvariant):
            call()
        assert before == everything(self.ledger)

    def _born(self, lot_id: int, amount: int, source: str, expires_at: datetime | None) -> None:
        lot = {"id": lot_id, "source": source, "expires_at": expires_at, "charged_back": False}
        self.model_lots.append(lot)
        self.credits += [Credit(lot) for _ in range(amount)]

    def _dead(self, lot: dict[str, Any]) -> bool:
        return lot["expires_at"] is not None and not lot["expires_at"] > self.now

    def _usable(self, credit: Credit) -> bool:
        frozen = self.frozen and credit.lot["source"] == "topup"
        return credit.place == "available" and not (self._dead(credit.lot) or credit.lot["charged_back"] or frozen)

    def _in_draw_order(self, credits: list[Credit]) -> list[Credit]:  # noqa: A002  credits are credits
        def rank(credit: Credit) -> Any:
            expires_at = credit.lot["expires_at"]
            return (expires_at is None, expires_at or NOON, credit.lot["id"])

        return sorted(credits, key=rank)

    @rule(source=sources, amount=st.integers(1, 15), expires_at=expiries)
    def grant(self, source: LotSource, amount: int, expires_at: datetime | None) -> None:
        lot_id = self.ledger.grant(amount, NewLot(source, "grant"), expires_at, "test")
        self._born(lot_id, amount, source.value, expires_at)

    @rule(amount=st.integers(0, 25))
    def reserve(self, amount: int) -> None:
        self.jobs += 1
        job_id = UUID(int=self.jobs)
        usable = self._in_draw_order([credit for credit in self.credits if self._usable(credit)])
        answer = self.ledger.reserve(job_id, amount, "test")
        assert (len(usable) < amount) is isinstance(answer, Shortfall)
        if isinstance(answer, Reservation):
            for credit in usable[:amount]:
                credit.place = ("held", job_id)
            self._refused(lambda: self.ledger.reserve(job_id, amount, "test"))

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 10**6), part=st.integers(0, 100), our_fault=st.booleans(), whole=st.booleans())
    def settle(self, which: int, part: int, our_fault: bool, whole: bool) -> None:
        job_id = UUID(int=1 + which % self.jobs)
        hold = self.ledger.reservations.get(job_id)
        if hold is None or hold.state is not ReservationState.HELD:
            self._refused(lambda: self.ledger.settle(job_id, 0, "succeeded", "test"))
            self._refused(lambda: self.ledger.refund(job_id, "cancelled", "test", our_fault=our_fault))
            return
        self._refused(lambda: self.ledger.settle(job_id, hold.amount + 1, "succeeded", "test"))
        lots_before = set(self.ledger.lots)
        charge = 0 if whole else hold.amount * part // 100
        if whole:
            self.ledger.refund(job_id, "ended", "test", our_fault=our_fault)
        else:
            self.ledger.settle(job_id, charge, "ended", "test", our_fault=our_fault)
        mine = self._in_draw_order([credit for credit in self.credits if credit.place == ("held", job_id)])
        late = 0
        for number, credit in enumerate(mine):
            if number < charge:
                credit.place = "spent"
            elif credit.lot["charged_back"]:
                credit.place = "revoked"
            elif self._dead(credit.lot):
                credit.place = "expired"
                late += 1
            else:
                credit.place = "available"
        made_good = set(self.ledger.lots) - lots_before
        assert len(made_good) == (1 if late and our_fault else 0)
        for lot_id in made_good:
            self._born(lot_id, late, "grant", max(self.cycle_ends_at, self.now + timedelta(days=1)))

    @precondition(lambda self: self.model_lots)
    @rule(which=st.integers(0, 10**6), amount=st.integers(1, 20))
    def revoke(self, which: int, amount: int) -> None:
        lot = self.model_lots[which % len(self.model_lots)]
        there = [credit for credit in self.credits if credit.lot is lot and credit.place == "available"]
        if amount > len(there):
            self._refused(lambda: self.ledger.revoke(lot["id"], amount, "chargeback", "test"))
            return
        self.ledger.revoke(lot["id"], amount, "chargeback", "test")
        for credit in there[:amount]:
            credit.place = "revoked"

    @precondition(lambda self: self.model_lots)
    @rule(which=st.integers(0, 10**6))
    def expire(self, which: int) -> None:
        lot = self.model_lots[which % len(self.model_lots)]
        if not self._dead(lot):
            self._refused(lambda: self.ledger.expire(lot["id"], "expired", "test"))
            return
        there = [credit for credit in self.credits if credit.lot is lot and credit.place == "available"]
        assert len(there) == self.ledger.expire(lot["id"], "expired", "test")
        for credit in there:
            credit.place = "expired"

    @rule(hours=st.integers(0, 30), charged_back=st.booleans(), thaw=st.booleans())
    def commit_and_go_on_later(self, hours: int, charged_back: bool, thaw: bool) -> None:
        """The transaction ends: new lots get their numbers, and time passes until the next."""
        numbers = {lot_id: 1 + number for number, lot_id in enumerate(self.ledger.lots)}
        self.lots = [replace(lot, lot_id=numbers[lot_id]) for lot_id, lot in self.ledger.lots.items()]
        self.reservations = {
            job_id: replace(one, draws=tuple(replace(draw, lot_id=numbers[draw.lot_id]) for draw in one.draws))
            for job_id, one in self.ledger.reservations.items()
        }
        self.journal += [
            replace(line, entry=replace(line.entry, lot_id=numbers[line.entry.lot_id])) for line in self.ledger.lines
        ]
        for lot in self.model_lots:
            lot["id"] = numbers[lot["id"]]
        if charged_back and self.lots:
            self.lots[0] = replace(self.lots[0], charged_back=True)
            self.model_lots[[lot["id"] for lot in self.model_lots].index(self.lots[0].lot_id)]["charged_back"] = True
        self.frozen = self.frozen and not thaw
        self.now += timedelta(hours=hours)
        self._begin()

    @invariant()
    def every_lot_has_the_credits_that_lie_in_it(self) -> None:
        for lot in self.model_lots:
            mine = [credit.place for credit in self.credits if credit.lot is lot]
            held = sum(isinstance(place, tuple) for place in mine)
            told = self.ledger.lots[lot["id"]]
            assert (len(mine), held) == (told.granted, told.held)
            for place in ("available", "spent", "expired", "revoked"):
                assert mine.count(place) == getattr(told, place)

    @invariant()
    def spendable_is_what_could_be_drawn(self) -> None:
        assert sum(map(self._usable, self.credits)) == self.ledger.spendable

    @invariant()
    def the_journal_folds_to_the_buckets(self) -> None:
        entries = [line.entry for line in [*self.journal, *self.ledger.lines]]
        for lot in self.ledger.lots.values():
            empty = replace(lot, granted=0, available=0, held=0, spent=0, expired=0, revoked=0)
            assert lot == fold(empty, entries)

    @invariant()
    def what_is_held_is_what_open_reservations_hold(self) -> None:
        hold = [one for one in self.ledger.reservations.values() if one.state is ReservationState.HELD]
        assert sum(one.amount for one in hold) == sum(lot.held for lot in self.ledger.lots.values())
        assert all(one.amount == sum(draw.amount for draw in one.draws) for one in self.ledger.reservations.values())

    @invariant()
    def what_was_charged_is_what_was_spent(self) -> None:
        charged = sum(one.charged for one in self.ledger.reservations.values())
        entries = [line.entry for line in [*self.journal, *self.ledger.lines]]
        assert charged == sum(entry.amount for entry in entries if entry.move is Move.COMMIT)
        assert charged == sum(lot.spent for lot in self.ledger.lots.values())


TestAccountOfSingleCredits = AccountOfSingleCredits.TestCase
TestAccountOfSingleCredits.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
