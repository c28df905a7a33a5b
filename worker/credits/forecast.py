"""What will be left over when credits end: spending goes on at its pace, soonest-expiring credits first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.credits.allocation import spendable
from worker.credits.lots import Lot

#: Spending is looked at over so long.
LOOK_BACK = timedelta(days=30)

#: An account is taken to have spent for at least so long: the first song of a new one is no pace.
LOOK_BACK_MIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """At the cycle's end: credits that are likely to be spent by then, and those likely to expire unused."""

    at: datetime
    spent_by_then: int
    expires_unused: int


def forecast_of(lots: Iterable[Lot], spent: int, since: datetime, now: datetime, cycle_ends_at: datetime) -> Forecast:
    """What expires unused by the cycle's end if credits go on to be spent as the `spent` ones since `since`.

    Held credits count as spent. Of what is available the part that expires by then goes first, as in every draw.
    """
    expiring = sum(
        spendable(lot, now, topups_frozen=False)
        for lot in lots
        if lot.expires_at is not None and lot.expires_at <= cycle_ends_at
    )
    over = max(now - since, LOOK_BACK_MIN)
    will_spend = round(spent * ((cycle_ends_at - now) / over))
    return Forecast(cycle_ends_at, will_spend, max(0, expiring - will_spend))
