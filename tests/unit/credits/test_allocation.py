"""Which lots pay for a reservation, and what of it is spent and returned at the end."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.credits.strategies import NOON, any_credits, wallets
from worker.credits.allocation import Draw, Shortfall, Split, allocate, draw_order, spendable, split
from worker.credits.lots import BrokenInvariant, Lot, LotSource

draws = st.lists(st.integers(1, 9), max_size=6).map(
    lambda amounts: tuple(Draw(10 + number, amount) for number, amount in enumerate(amounts))
)


def a_lot(lot_id: int, available: int, hours: float | None = None, source: str = "grant", **more: bool) -> Lot:
    """A lot that expires so many hours after noon, or never."""
    expires_at = None if hours is None else NOON + timedelta(hours=hours)
    return Lot(lot_id, LotSource(source), available, available, expires_at, **more)


def may_be_drawn_on(lot: Lot, *, frozen: bool) -> bool:
    """The rule in other words: alive, not taken back, not frozen."""
    alive = lot.expires_at is None or NOON < lot.expires_at
    return alive and not lot.charged_back and not (frozen and lot.source == "topup")


@given(wallet=wallets(), amount=st.integers(0, 80), frozen=st.booleans())
def test_credits_are_drawn_as_if_one_by_one(wallet: list[Lot], amount: int, frozen: bool) -> None:
    """Each credit comes from the usable lot that expires first, the oldest of those; never-expiring ones last."""
    purse = {lot.lot_id: lot.available for lot in wallet if may_be_drawn_on(lot, frozen=frozen)}
    by_id = {lot.lot_id: lot for lot in wallet}
    taken: list[int] = []
    while len(taken) < amount and any(purse.values()):
        expiring = [i for i, left in purse.items() if left and by_id[i].expires_at is not None]
        others = [i for i, left in purse.items() if left and by_id[i].expires_at is None]
        first = min(expiring, key=lambda i: (by_id[i].expires_at, i)) if expiring else min(others)
        purse[first] -= 1
        taken.append(first)
    answer = allocate(wallet, amount, NOON, topups_frozen=frozen)
    if len(taken) < amount:
        assert isinstance(answer, Shortfall)
        assert (amount, len(taken)) == (answer.needed, answer.available)
    else:
        assert isinstance(answer, tuple)
        assert list(Counter(taken).items()) == [(draw.lot_id, draw.amount) for draw in answer]


@given(wallet=wallets(any_credits), amount=any_credits, frozen=st.booleans())
def test_an_allocation_sums_exactly_and_never_overdraws(wallet: list[Lot], amount: int, frozen: bool) -> None:
    """Also at the largest amounts: what is drawn is the price, and no lot gives more than it has."""
    by_id = {lot.lot_id: lot for lot in wallet}
    answer = allocate(wallet, amount, NOON, topups_frozen=frozen)
    there = sum(lot.available for lot in wallet if may_be_drawn_on(lot, frozen=frozen))
    if isinstance(answer, Shortfall):
        assert there == answer.available < amount
        return
    assert amount == sum(draw.amount for draw in answer) <= there
    assert len(answer) == len({draw.lot_id for draw in answer})
    for draw in answer:
        assert may_be_drawn_on(by_id[draw.lot_id], frozen=frozen)
        assert 0 < draw.amount <= by_id[draw.lot_id].available


@given(wallet=wallets(), amount=st.integers(0, 40), data=st.data())
def test_the_order_in_which_lots_were_read_changes_nothing(wallet: list[Lot], amount: int, data: st.DataObject) -> None:
    """Any order of rows gives the same draws, or the same shortfall."""
    shuffled = data.draw(st.permutations(wallet))
    assert allocate(wallet, amount, NOON) == allocate(shuffled, amount, NOON)
    assert [lot.lot_id for lot in draw_order(wallet)] == [lot.lot_id for lot in draw_order(shuffled)]


def test_subscription_credits_go_before_topups_and_the_soonest_expiry_first() -> None:
    """Soonest expiry, then never-expiring; ties by age."""
    wallet = [
        a_lot(1, 5, None, "topup"),
        a_lot(2, 5, 48, "subscription"),
        a_lot(3, 5, 24, "grant"),
        a_lot(4, 5, None, "grant"),
        a_lot(5, 5, 24, "subscription"),
    ]
    assert (Draw(3, 5), Draw(5, 5), Draw(2, 5), Draw(1, 5), Draw(4, 2)) == allocate(wallet, 22, NOON)


@pytest.mark.parametrize(
    ("lot", "frozen", "expected"),
    [
        (a_lot(1, 7, None), False, 7),
        (a_lot(1, 7, 0), False, 0),  # the very instant
        (a_lot(1, 7, 0.001), False, 7),
        (a_lot(1, 7, -1), False, 0),
        (a_lot(1, 7, None, "topup"), False, 7),
        (a_lot(1, 7, None, "topup"), True, 0),
        (a_lot(1, 7, None, "grant"), True, 7),  # what was given is not frozen
        (a_lot(1, 7, None, "subscription"), True, 7),
        (a_lot(1, 7, None, "topup", charged_back=True), False, 0),
    ],
)
def test_what_of_a_lot_can_be_spent(lot: Lot, frozen: bool, expected: int) -> None:
    """Nothing of expired, frozen or charged-back lots."""
    assert expected == spendable(lot, NOON, topups_frozen=frozen)


def test_a_shortfall_says_what_is_there_but_out_of_reach() -> None:
    """Needed, spendable, held by other jobs, frozen: each by its name, nothing twice."""
    wallet = [
        a_lot(1, 5),
        a_lot(2, 40, None, "topup"),
        a_lot(3, 80, -1, "topup"),  # expired: not even frozen
        Lot(4, LotSource.GRANT, 9, 2, None, held=7),
    ]
    assert Shortfall(needed=10, available=7, held=7, frozen=40) == allocate(wallet, 10, NOON, topups_frozen=True)


@given(wallet=wallets())
def test_a_free_job_draws_on_nothing(wallet: list[Lot]) -> None:
    """Also with an empty wallet: a price of 0 is always affordable."""
    assert () == allocate(wallet, 0, NOON)


def test_less_than_nothing_cannot_be_reserved() -> None:
    """A negative price is a bug of ours, not a way to make credits."""
    with pytest.raises(BrokenInvariant):
        allocate([a_lot(1, 5)], -1, NOON)


@given(hold=draws, data=st.data())
def test_a_split_spends_in_draw_order_and_returns_the_rest(hold: tuple[Draw, ...], data: st.DataObject) -> None:
    """As if the charge were taken one by one from the first draw on."""
    one_by_one = [draw.lot_id for draw in hold for _ in range(draw.amount)]
    charge = data.draw(st.integers(0, len(one_by_one)))
    spent = Counter(one_by_one[:charge])
    expected = tuple(Split(draw.lot_id, spent[draw.lot_id], draw.amount - spent[draw.lot_id]) for draw in hold)
    assert expected == split(hold, charge)


@given(hold=draws, by=st.integers(1, 5))
def test_a_charge_stays_within_the_hold(hold: tuple[Draw, ...], by: int) -> None:
    """Neither above what is held nor below nothing."""
    for charge in (-by, sum(draw.amount for draw in hold) + by):
        with pytest.raises(BrokenInvariant):
            split(hold, charge)
