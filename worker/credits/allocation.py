"""Which lots pay for a reservation, and how a hold is split when its job ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from worker.credits.lots import BrokenInvariant, Lot, LotSource
from worker.credits.values import value

_NEVER = datetime.max.replace(tzinfo=UTC)


@value
class Draw:
    """The part of a reservation on one lot."""

    lot_id: int
    amount: int


@value
class Shortfall:
    """Why a price can't be paid: what it needs, what is spendable, what is there but held or frozen."""

    needed: int
    available: int
    held: int
    frozen: int


@value
class Split:
    """One draw at the end of its job: what is spent for good, what goes back to its lot."""

    lot_id: int
    charged: int
    returned: int


def draw_order(lots: Iterable[Lot]) -> list[Lot]:
    """Soonest expiry first, never-expiring last, ties by age: subscription credits go before top-ups."""
    return sorted(lots, key=_draw_key)


def _draw_key(lot: Lot) -> tuple[datetime, int]:
    return lot.expires_at or _NEVER, lot.lot_id


def spendable(lot: Lot, now: datetime, *, topups_frozen: bool) -> int:
    """The credits of one lot that a reservation may draw on at `now`."""
    if lot.expired_by(now) or lot.charged_back or (topups_frozen and lot.source is LotSource.TOPUP):
        return 0
    return lot.available


def allocate(
    lots: Sequence[Lot], amount: int, now: datetime, *, topups_frozen: bool = False
) -> tuple[Draw, ...] | Shortfall:
    """The draws that pay `amount`, in draw order, or why it can't be paid.

    Guarantees: the draws sum to exactly `amount`; none is above what its lot has available; no expired, frozen
    or charged-back lot is drawn on; a free job (0) gets no draws. Works on any order of `lots`.
    """
    if amount < 0:
        raise BrokenInvariant(f"a reservation of {amount} credits")
    # Most accounts hold one or two lots, and most claims fit the first: no sums until they are needed.
    draws: list[Draw] = []
    missing = amount
    for lot in draw_order(lots) if len(lots) > 1 else lots:
        if missing == 0:
            break
        part = min(missing, spendable(lot, now, topups_frozen=topups_frozen))
        if part > 0:
            draws.append(Draw(lot.lot_id, part))
            missing -= part
    if missing:
        return shortfall_of(lots, amount, now, topups_frozen)
    return tuple(draws)


def split(draws: Sequence[Draw], charge: int) -> tuple[Split, ...]:
    """What each draw spends and returns when `charge` of the whole hold is committed.

    Spends in draw order. Guarantees: charged and returned sum to the draws; 0 <= `charge` <= the hold, else
    `BrokenInvariant`.
    """
    held = sum(draw.amount for draw in draws)
    if not 0 <= charge <= held:
        raise BrokenInvariant(f"a charge of {charge} on a hold of {held}")
    parts = []
    for draw in draws:
        charged = min(charge, draw.amount)
        charge -= charged
        parts.append(Split(draw.lot_id, charged, draw.amount - charged))
    return tuple(parts)


def shortfall_of(lots: Collection[Lot], amount: int, now: datetime, topups_frozen: bool) -> Shortfall:
    """What `amount` needs and what there is, spendable and not."""
    live = [lot for lot in lots if not lot.expired_by(now)]
    return Shortfall(
        needed=amount,
        available=sum(spendable(lot, now, topups_frozen=topups_frozen) for lot in live),
        held=sum(lot.held for lot in lots),
        frozen=sum(lot.available for lot in live if topups_frozen and lot.source is LotSource.TOPUP),
    )
