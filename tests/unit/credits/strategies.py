"""Hypothesis strategies for the books: instants, lots and sets of lots as one account may have them.

Instants are whole hours around `NOON`, so that "expires now", "expired" and "expires later" are all common.
Amounts are small where a test counts single credits, and reach the maximum where it does not.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from worker.credits.lots import CREDITS_MAX, Lot, LotSource

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

#: From a day before noon to two days after it.
instants = st.integers(-24, 48).map(lambda hours: NOON + timedelta(hours=hours))
#: None never expires.
expiries = st.none() | instants
sources = st.sampled_from(LotSource)
few_credits = st.integers(0, 12)
any_credits = few_credits | st.sampled_from([99, 10**6, CREDITS_MAX - 1, CREDITS_MAX]) | st.integers(0, CREDITS_MAX)


@st.composite
def lots(draw: st.DrawFn, lot_id: int = 1, amounts: st.SearchStrategy[int] = few_credits) -> Lot:
    """A lot in any legal state: its buckets sum to what was granted."""
    available, held, spent, expired, revoked = (draw(amounts) for _ in range(5))
    return Lot(
        lot_id,
        draw(sources),
        available + held + spent + expired + revoked,
        available,
        draw(expiries),
        held,
        spent,
        expired,
        revoked,
        charged_back=draw(st.booleans()),
    )


@st.composite
def wallets(draw: st.DrawFn, amounts: st.SearchStrategy[int] = few_credits) -> list[Lot]:
    """All lots of one account, in no order."""
    ids = draw(st.permutations(range(1, 1 + draw(st.integers(0, 6)))))
    return [draw(lots(lot_id, amounts)) for lot_id in ids]
