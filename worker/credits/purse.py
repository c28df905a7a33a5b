"""What an account could spend in a time that is over, to try out whether it could have paid other prices."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PurseLot:
    """Credits that could be spent from one time until another; None: for ever."""

    since: datetime
    until: datetime | None
    credits: int


@dataclass(slots=True)
class _Left:
    since: datetime
    until: datetime
    credits: int


class Purse:
    """Pays costs in about the order in which they came, in draw order. Freezes are not looked at."""

    def __init__(self, lots: Iterable[PurseLot]) -> None:
        left = (_Left(lot.since, lot.until or _NEVER, lot.credits) for lot in lots)
        # Draw order: soonest expiry first, ties by age.
        self._lots = deque(sorted(left, key=lambda lot: (lot.until, lot.since)))
        #: Costs that could not be paid, and when the first of them came.
        self.unpaid = 0
        self.short_at: datetime | None = None

    def pay(self, cost: int, at: datetime) -> bool:
        """Take `cost` credits from what there is at that time, all or nothing."""
        while self._lots and (not self._lots[0].credits or self._lots[0].until <= at):
            self._lots.popleft()
        draws: list[tuple[_Left, int]] = []
        missing = cost
        for lot in self._lots:
            if not missing:
                break
            part = min(missing, lot.credits) if lot.since <= at else 0
            draws.append((lot, part))
            missing -= part
        if missing:
            self.unpaid += 1
            self.short_at = self.short_at or at
            return False
        for lot, part in draws:
            lot.credits -= part
        return True
