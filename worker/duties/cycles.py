"""Cycles: begin those that are due, also where nobody asks for a job. A claim that comes first does it itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from config.settings import Settings
from worker.credits.subscribing import Turn
from worker.duties.under_way import UnderWay
from worker.store.group_commit import GroupCommit
from worker.store.upkeep import Upkeep

#: Accounts in one look, and under way at a time, and so in one transaction. Together with the wait this is the pace:
#: 100,000 that are due in the same minute take about one, and leave others room. Who is in a hurry turns by a claim.
_LIMIT = 200
#: Until the next look while there are more.
_MORE_WAIT_SECONDS = 0.1


@dataclass(slots=True)
class Cycles:
    """The cycles duty. Any number may run: the account's lock and the cycle's row let each begin once."""

    upkeep: Upkeep
    operations: GroupCommit[Any]
    settings: Settings
    _under_way: UnderWay = field(init=False)

    name = "cycles"

    def __post_init__(self) -> None:
        self._under_way = UnderWay(self.name, self.operations, _LIMIT)

    @property
    def tick_seconds(self) -> float:
        return self.settings.cycles_tick_seconds

    async def run(self) -> float:
        """Start to turn up to 200 accounts; comes back soon while there are more."""
        limit = self._under_way.limit_for(_LIMIT)
        accounts = await self.upkeep.accounts_to_turn(limit)
        self._under_way.start(Turn(account_id) for account_id in accounts)
        return _MORE_WAIT_SECONDS if len(accounts) >= limit else self.tick_seconds
