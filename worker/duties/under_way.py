"""Operations that a duty has started and nobody waits for: one held or broken account holds up only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import UUID

import structlog

from worker.store.errors import LedgerUnavailable, LedgerUnfit, OutcomeUnknown, StoreError
from worker.store.gather import PageOperation
from worker.store.group_commit import GroupCommit

log = structlog.get_logger(__name__)

#: Seconds for which something broken is let be: people must mend it, and each try is a log entry.
BROKEN_REST_SECONDS = 10.0

#: An account's job, or the account as a whole: one operation of each is under way at a time.
Key = tuple[str, UUID | None]


@dataclass(slots=True)
class UnderWay:
    """What one duty has under way, at most `most` operations. Answers are logged, never raised."""

    name: str
    operations: GroupCommit[Any]
    most: int
    _tasks: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _rests_until: dict[Key, float] = field(default_factory=dict)

    def limit_for(self, fresh: int) -> int:
        """How many a duty must read to find so many that are neither under way nor resting."""
        now = monotonic()
        self._rests_until = {key: until for key, until in self._rests_until.items() if until > now}
        return fresh + len(self._tasks) + len(self._rests_until)

    def start(self, operations: Iterable[PageOperation]) -> int:
        """Start those that are neither under way nor resting, as far as there is room; returns how many."""
        started = 0
        for operation in operations:
            key = (operation.account_id, operation.job_id)
            if len(self._tasks) < self.most and key not in self._tasks and key not in self._rests_until:
                self._tasks[key] = asyncio.create_task(self._run(key, operation), name=f"{self.name} {key}")
                started += 1
        return started

    async def _run(self, key: Key, operation: PageOperation) -> None:
        account_id, job_id = key
        about = {"duty": self.name, "account_id": account_id, **({"job_id": str(job_id)} if job_id else {})}
        try:
            await self.operations.do(operation)
        except LedgerUnfit as error:
            self._turned_away(key, about, error)
        except (LedgerUnavailable, OutcomeUnknown) as error:
            log.warning("not done, the next tick tries again", **about, error=str(error))
        except StoreError as error:
            self._turned_away(key, about, error)
        except Exception:
            log.exception("failed", **about)
            self._rests_until[key] = monotonic() + BROKEN_REST_SECONDS
        finally:
            del self._tasks[key]

    def _turned_away(self, key: Key, about: dict[str, str], error: StoreError) -> None:
        """Whether it is a mistake of ours or an operator's to mend: it won't go through at the next tick."""
        log.warning("turned away", **about, error=str(error))
        self._rests_until[key] = monotonic() + BROKEN_REST_SECONDS
