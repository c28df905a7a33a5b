"""Prune: forget what the settings no longer keep. Rows go first, a bounded part at a time, then their files.

Whoever dies between the two leaves files without a row. They are found by looking through the store, as are those of
a put that was never registered; the sweep does the same for outputs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from worker.artifacts.store import ArtifactError, ArtifactStore, KeptInput
from worker.store.pruning import FIRST, Old, Pruning

#: A file without a row is left alone for so long: its put may be under way.
_ORPHAN_SECONDS_MIN = 86_400.0
#: Files that are looked up in one statement.
_LOOK_UP = 1000
#: So many files, and not one of them known, are not left by a put or by a prune that died.
_STRANGERS_MAX = 20


class AnotherStore(ArtifactError):
    """None of the files that lie there has a row: it is another database's store, and nothing was deleted."""


@dataclass(slots=True)
class Pruned:
    """What went: rows, and files (`orphans`) that had none."""

    jobs: int = 0
    inputs: int = 0
    orphans: int = 0
    events: int = 0
    deliveries: int = 0
    rehearsals: int = 0
    tokens: int = 0
    audit_log: int = 0
    months_closed: int = 0
    months_detached: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pruner:
    """Prunes one database and the store of its audio."""

    pruning: Pruning
    artifacts: ArtifactStore

    async def old(self) -> tuple[Old, list[KeptInput]]:
        """What would go now: rows, and files that have none."""
        return await self.pruning.old(), [one async for one in self._orphans()]

    async def run(self) -> Pruned:
        """Delete all of it. Raises `StoreError`, and `ArtifactError` when the rows are gone."""
        done = Pruned()
        steps = self.pruning
        await self._jobs(done)
        for name in ("events", "deliveries", "rehearsals", "tokens", "audit_log"):
            setattr(done, name, await _all(getattr(steps, name)))
        before = await steps.closed_months()
        await _all(steps.close_month)
        done.months_closed = await steps.closed_months() - before
        while (month := await steps.detach_month()) is not None:
            done.months_detached.append(month)
        await steps.drop_empty_months()
        await self._files(done)
        return done

    async def _jobs(self, done: Pruned) -> None:
        at: datetime | None = None
        more = True
        while more:
            part = await self.pruning.jobs(at)
            done.jobs += part.gone
            at, more = part.next, part.next is not None

    async def _files(self, done: Pruned) -> None:
        at, more = FIRST, True
        while more:
            page = await self.pruning.inputs(at)
            for key in page.files:
                await self.artifacts.remove(key)
            done.inputs += len(page.files)
            at, more = page.next or at, page.next is not None
        async for orphan in self._orphans():
            await self.artifacts.remove(orphan.key)
            done.orphans += 1

    async def _orphans(self) -> AsyncIterator[KeptInput]:
        """Files without a row that nobody is putting any more."""
        known, orphans, looked_at = 0, list[KeptInput](), list[KeptInput]()

        async def look() -> None:
            nonlocal known
            rows = await self.pruning.known([one.artifact_id for one in looked_at])
            known += len(rows)
            orphans.extend(one for one in looked_at if one.artifact_id not in rows)
            looked_at.clear()

        async for one in self.artifacts.inputs():
            if one.age_seconds > _ORPHAN_SECONDS_MIN:
                looked_at.append(one)
            if len(looked_at) >= _LOOK_UP:
                await look()
        await look()
        if len(orphans) > _STRANGERS_MAX and not known:
            raise AnotherStore(
                f"{self.artifacts.described} holds {len(orphans):,} inputs and the database knows none of them: "
                "none was deleted; are FERMATA_ARTIFACTS_URL and FERMATA_DATABASE_URL of one deployment?"
            )
        for orphan in orphans:
            yield orphan

    async def without_files(self) -> AsyncIterator[str]:
        """The keys of rows whose file is gone. Asks the store for each."""
        at = FIRST
        while page := await self.pruning.stored(at, _ORPHAN_SECONDS_MIN):
            for one in page:
                if not await self.artifacts.has(one.storage_key):
                    yield one.storage_key
            at = page[-1].account_id, page[-1].artifact_id


async def _all(step: Callable[[], Awaitable[int]]) -> int:
    """Do it until nothing is left; returns how many went."""
    total = 0
    while gone := await step():
        total += gone
    return total
