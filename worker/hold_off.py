"""Hold-off: a job that can't be claimed just now gives its slot and its hint mark back, and lets others go first."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

import structlog

from worker.store.dispatching import Dispatching
from worker.store.errors import StoreError

log = structlog.get_logger(__name__)

#: Seconds for jobs of an account that somebody holds. A frozen process holds it for its idle time-out at most.
BUSY_SECONDS = 1.0
#: Seconds for a job whose claim raises: a bug, or rows that no claim can read. Nobody else pays for it.
BROKEN_SECONDS = 15.0


@dataclass(slots=True)
class HoldOff:
    """What one process holds off. The rows say it to all others."""

    dispatching: Dispatching
    _busy_until: dict[str, float] = field(default_factory=dict)

    def is_busy(self, account_id: str) -> bool:
        """Whether the account was found busy a moment ago: a further claim would only wait in a slot."""
        until = self._busy_until.get(account_id)
        if until is None:
            return False
        if until > monotonic():
            return True
        del self._busy_until[account_id]
        return False

    async def busy(self, account_id: str, job_id: UUID) -> None:
        """The account is held by somebody: let its jobs wait a moment."""
        self._busy_until.setdefault(account_id, monotonic() + BUSY_SECONDS)
        await self._put(account_id, job_id, BUSY_SECONDS)

    async def broken(self, account_id: str, job_id: UUID) -> None:
        """The claim raised."""
        await self._put(account_id, job_id, BROKEN_SECONDS)

    async def _put(self, account_id: str, job_id: UUID, seconds: float) -> None:
        try:
            await self.dispatching.hold_off([(account_id, job_id)], seconds)
        except StoreError as error:
            # Its mark stays, and grows old: dispatch repeats the hint and counts it no more.
            log.warning("hint mark not cleared", job_id=str(job_id), account_id=account_id, error=str(error))
