"""Notify: tell accounts what time alone brings about: credits that expire soon, top-ups that are frozen. Once each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from config.settings import Settings
from worker.credits.notices import Notify as NotifyAccount
from worker.duties.under_way import UnderWay
from worker.store.group_commit import GroupCommit
from worker.store.notices import Notices

#: Accounts in one look, and under way at a time.
_LIMIT = 1000
#: Until the next look while there are more.
_MORE_WAIT_SECONDS = 0.1
#: Days of which a lapse is still told, after a scheduler was away.
_FROZEN_DAYS = 30.0
#: Days after which nothing can be told again under the same subject: a lot expires, a lapse ends.
_TOLD_DAYS = 400.0


@dataclass(slots=True)
class Notify:
    """The notify duty. Any number may run: the database keeps what was told."""

    notices: Notices
    operations: GroupCommit[Any]
    settings: Settings
    _under_way: UnderWay = field(init=False)

    name = "notify"

    def __post_init__(self) -> None:
        self._under_way = UnderWay(self.name, self.operations, _LIMIT)

    @property
    def tick_seconds(self) -> float:
        return self.settings.notify_tick_seconds

    async def run(self) -> float:
        """Start to tell up to 1,000 accounts; comes back soon while there are more."""
        days, limit = self.settings.expiring_notice_days, self._under_way.limit_for(_LIMIT)
        accounts = await self.notices.accounts_to_tell(days, _FROZEN_DAYS, limit)
        self._under_way.start(NotifyAccount(account_id, days) for account_id in accounts)
        if len(accounts) >= limit:
            return _MORE_WAIT_SECONDS
        await self.notices.forget(_TOLD_DAYS)
        return self.tick_seconds
