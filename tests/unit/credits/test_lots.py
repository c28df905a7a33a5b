"""A lot's buckets always sum to what was granted, and no entry takes one below zero."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.credits.strategies import NOON, any_credits, lots
from worker.credits.lots import BrokenInvariant, Entry, Lot, LotSource, Move, fold, moved

BUCKETS = ("available", "held", "spent", "expired", "revoked")
#: move, from which bucket (None: from outside), to which
MOVES = [
    ("grant", None, "available"),
    ("reserve", "available", "held"),
    ("commit", "held", "spent"),
    ("refund", "held", "available"),
    ("expire", "available", "expired"),
    ("revoke", "available", "revoked"),
]


def test_the_table_names_every_move() -> None:
    """A new move can't be added without saying from where to where."""
    assert [row[0] for row in MOVES] == list(Move)


@pytest.mark.parametrize(("move", "source", "target"), MOVES)
@given(lot=lots(), amount=st.integers(1, 12))
def test_a_move_takes_from_one_bucket_and_gives_to_another(
    move: str, source: str | None, target: str, lot: Lot, amount: int
) -> None:
    """Nothing else changes, and what the source bucket doesn't have can't be moved."""
    before = {bucket: getattr(lot, bucket) for bucket in BUCKETS}
    if source is not None and before[source] < amount:
        with pytest.raises(BrokenInvariant):
            moved(lot, Move(move), amount)
        return
    expected = dict(before)
    expected[target] += amount
    if source is not None:
        expected[source] -= amount
    after = moved(lot, Move(move), amount)
    assert expected == {bucket: getattr(after, bucket) for bucket in BUCKETS}
    assert lot.granted + (amount if source is None else 0) == after.granted
    assert (lot.lot_id, lot.source, lot.expires_at) == (after.lot_id, after.source, after.expires_at)


@pytest.mark.parametrize("off", [-1, 1])
@given(lot=lots(amounts=any_credits))
def test_a_lot_whose_buckets_do_not_sum_to_its_grant_cannot_exist(off: int, lot: Lot) -> None:
    """One credit too many or too few is refused when the lot is read or made."""
    with pytest.raises(BrokenInvariant, match="is not the sum"):
        Lot(1, lot.source, lot.granted + off, lot.available, None, lot.held, lot.spent, lot.expired, lot.revoked)


@pytest.mark.parametrize("bucket", range(5))
def test_a_bucket_below_zero_cannot_exist(bucket: int) -> None:
    """Not even where the sum is right."""
    available, held, spent, expired, revoked = (-1 if bucket == number else 1 for number in range(5))
    with pytest.raises(BrokenInvariant):
        Lot(1, LotSource.GRANT, 3, available, None, held, spent, expired, revoked)


@given(lot=lots(), entries=st.lists(st.tuples(st.sampled_from(Move), st.integers(1, 6)), max_size=12))
def test_the_fold_of_legal_entries_is_the_sum_of_their_moves(lot: Lot, entries: list[tuple[Move, int]]) -> None:
    """Entry by entry each bucket is what came in less what went out; entries of other lots do nothing."""
    counted = {bucket: getattr(lot, bucket) for bucket in BUCKETS}
    written = []
    routes = {move: (source, target) for move, source, target in MOVES}
    for move, amount in entries:
        source, target = routes[move]
        if source is not None and counted[source] < amount:
            continue
        if source is not None:
            counted[source] -= amount
        counted[target] += amount
        written += [Entry(lot.lot_id, move, amount, "test"), Entry(lot.lot_id + 1, Move.GRANT, 5, "another lot's")]
    after = fold(lot, written)
    assert counted == {bucket: getattr(after, bucket) for bucket in BUCKETS}
    assert after.granted == sum(counted.values())


@pytest.mark.parametrize(("move", "amount"), list(product(Move, [0, -1])))
def test_an_entry_moves_at_least_one_credit(move: Move, amount: int) -> None:
    """An entry of nothing, or of less, is no entry."""
    with pytest.raises(BrokenInvariant):
        Entry(1, move, amount, "test")


def test_the_very_instant_of_expiry_counts_as_expired() -> None:
    """Until the microsecond before it the credits can be spent; a lot without expiry never expires."""
    lot = Lot(1, LotSource.GRANT, 1, 1, NOON)
    assert [False, True, True] == [lot.expired_by(NOON + timedelta(microseconds=by)) for by in (-1, 0, 1)]
    assert not Lot(1, LotSource.TOPUP, 1, 1).expired_by(NOON.replace(year=9999))
