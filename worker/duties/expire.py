"""Expire: write down what time has done to lots. They were unspendable from the instant; this is the journal."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from config.settings import Settings
from worker.credits.operations import Expire as ExpireLots
from worker.store.group_commit import GroupCommit
from worker.store.upkeep import Upkeep

#: Accounts in one tick.
_LIMIT = 1000


@dataclass(slots=True)
class Expire:
    """The expire duty."""

    upkeep: Upkeep
    operations: GroupCommit[Any]
    settings: Settings

    name = "expire"

    @property
    def tick_seconds(self) -> float:
        return self.settings.expire_tick_seconds

    async def run(self) -> float:
        """Expire and close lots of up to 1,000 accounts; comes back at once while there are more."""
        accounts = await self.upkeep.accounts_to_expire(_LIMIT)
        await asyncio.gather(*(self.operations.do(ExpireLots(account_id)) for account_id in accounts))
        return 0.0 if len(accounts) >= _LIMIT else self.tick_seconds
