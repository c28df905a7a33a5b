"""Wake: the safety net under pause, limits and waiting for credits, whose own wake-ups come with their causes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from config.settings import Settings
from worker.credits.operations import Wake as WakeWaiting
from worker.duties.under_way import UnderWay
from worker.store.dispatching import Dispatching
from worker.store.group_commit import GroupCommit
from worker.store.upkeep import Upkeep

#: Accounts in one look, and under way at a time.
_LIMIT = 1000


@dataclass(slots=True)
class Wake:
    """The wake duty."""

    upkeep: Upkeep
    dispatching: Dispatching
    operations: GroupCommit[Any]
    settings: Settings
    _under_way: UnderWay = field(init=False)
    _after: str = ""

    name = "wake"

    def __post_init__(self) -> None:
        self._under_way = UnderWay(self.name, self.operations, _LIMIT)

    @property
    def tick_seconds(self) -> float:
        return self.settings.hint_repeat_seconds

    async def run(self) -> float:
        """Look again at all that waits for something other than its turn."""
        await self.dispatching.recheck_waiting()
        limit = self._under_way.limit_for(_LIMIT)
        accounts = await self.upkeep.accounts_waiting(self._after, limit)
        # The next look goes on behind these, and after the last one from the first: each has its turn.
        self._after = accounts[-1] if len(accounts) == limit else ""
        self._under_way.start(WakeWaiting(account_id) for account_id in accounts)
        return self.tick_seconds
