"""Which hinted jobs this process can run. The others are left in the queue, unclaimed and uncounted, for who can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

import structlog

from worker.store.dispatching import Dispatching
from worker.store.errors import StoreError
from worker.store.tiers import Lacked, Tiers

log = structlog.get_logger(__name__)

#: Seconds before a job is hinted again that another living worker can run: the next hint may find that one.
ELSEWHERE_SECONDS = 1.0
#: Seconds before it is hinted again if nobody can. Long: it must not keep the queue's other jobs from their slots.
NOWHERE_SECONDS = 15.0
#: Seconds between two warnings of one tier.
WARN_SECONDS = 60.0


@dataclass(slots=True)
class Fitting:
    """Judges hints before anything is claimed. Costs nothing where the process lacks no tier."""

    tiers: Tiers
    dispatching: Dispatching
    #: "kind/tier" of what its engines can't make.
    lacks: frozenset[str]
    _warned_at: dict[str, float] = field(default_factory=dict)

    async def fitting(self, pairs: Sequence[tuple[str, UUID]]) -> list[tuple[str, UUID]]:
        """Those that may be claimed here. For the others their marks are cleared, and others go first for a while.

        Where the books don't answer none is: the hints are repeated.
        """
        if not self.lacks:
            return list(pairs)
        try:
            lacked = await self.tiers.lacked(pairs, self.lacks)
            for elsewhere, seconds in ((True, ELSEWHERE_SECONDS), (False, NOWHERE_SECONDS)):
                if others := [(one.account_id, one.job_id) for one in lacked if one.elsewhere is elsewhere]:
                    await self.dispatching.hold_off(others, seconds)
        except StoreError as error:
            log.warning("hints dropped", jobs=len(pairs), error=str(error))
            return []
        self._warn(lacked)
        ours = {(one.account_id, one.job_id) for one in lacked}
        return [pair for pair in pairs if pair not in ours]

    def _warn(self, lacked: Sequence[Lacked]) -> None:
        for tier in sorted({one.tier for one in lacked if not one.elsewhere}):
            if monotonic() - self._warned_at.get(tier, float("-inf")) >= WARN_SECONDS:
                self._warned_at[tier] = monotonic()
                log.warning("no living worker makes this tier, its jobs wait", tier=tier)
