"""Wake: the safety net under pause, limits and waiting for credits, whose own wake-ups come with their causes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from config.settings import Settings
from worker.credits.operations import Wake as WakeWaiting
from worker.store.dispatching import Dispatching
from worker.store.group_commit import GroupCommit
from worker.store.upkeep import Upkeep

#: Accounts in one tick.
_LIMIT = 1000


@dataclass(slots=True)
class Wake:
    """The wake duty."""

    upkeep: Upkeep
    dispatching: Dispatching
    operations: GroupCommit[Any]
    settings: Settings

    name = "wake"

    @property
    def tick_seconds(self) -> float:
        return self.settings.hint_repeat_seconds

    async def run(self) -> float:
        """Look again at all that waits for something other than its turn."""
        await self.dispatching.recheck_waiting()
        accounts = await self.upkeep.accounts_waiting(_LIMIT)
        await asyncio.gather(*(self.operations.do(WakeWaiting(account_id)) for account_id in accounts))
        return self.tick_seconds
