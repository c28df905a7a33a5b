"""Mending a wrong price book: what its jobs would have cost under another one, and the difference given back."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from worker.credits.price_book import PriceBook
from worker.credits.rehearsal import PastJob, charge_under, endings_by_hold
from worker.store.compensations import Compensations, Mending
from worker.store.past_jobs import PastJobs

#: Jobs of one account that are compensated in one transaction.
TOGETHER_MAX = 500

#: What came for a job's price is found again by this, whichever book it was compared with.
REFERENCE = "overcharged"

#: Of a job whose row is gone meanwhile.
_NOTHING = Mending(0, 0, 0)


@dataclass(frozen=True, slots=True)
class OverchargedJob:
    """A job that would have cost less. `given`: credits that came for it now, None where nothing was to be given.

    `to_give`: what compensating would give for it, after this. `given_before`: what had come for it, for any reason.
    """

    job: UUID
    account: str
    kind: str
    charged: int
    would: int
    given: int | None = None
    to_give: int = 0
    given_before: int = 0

    @property
    def difference(self) -> int:
        return self.charged - self.would


@dataclass(frozen=True, slots=True)
class Overcharged:
    """The jobs under `book` that would have cost less under `under`; `worst` are those with most too much.

    `compensated`: False for a look, in which nothing was given. `given` sums what came now: of each job's difference
    what is missing, no more than what is left of its charge. `to_give` sums what compensating would give after this:
    of a look what it is a look at. `given_before` sums all compensations that these jobs had, `mended_before` those
    of them that were for their price. `unfinished`: jobs that still carry the book, and what they were quoted.
    """

    book: int
    under: int
    compensated: bool
    looked_at: int
    jobs: int
    accounts: int
    credits: int
    given: int
    unpriced: int
    worst: tuple[OverchargedJob, ...]
    to_give: int = 0
    given_before: int = 0
    mended_before: int = 0
    unfinished: int = 0
    unfinished_quoted: int = 0


@dataclass(slots=True)
class _Found:
    """What is kept of all that is found: sums, and the worst."""

    worst_max: int
    looked_at: int = 0
    jobs: int = 0
    accounts: int = 0
    credits: int = 0
    given: int = 0
    to_give: int = 0
    given_before: int = 0
    mended_before: int = 0
    unpriced: int = 0
    _last: str = ""
    _worst: list[tuple[int, int, OverchargedJob]] = field(default_factory=list)

    def add(self, job: OverchargedJob, mended_before: int) -> None:
        self.jobs += 1
        self.accounts += job.account != self._last
        self._last = job.account
        self.credits += job.difference
        self.given += job.given or 0
        self.to_give += job.to_give
        self.given_before += job.given_before
        self.mended_before += mended_before
        heapq.heappush(self._worst, (job.difference, -self.jobs, job))
        if len(self._worst) > self.worst_max:
            heapq.heappop(self._worst)

    @property
    def worst(self) -> tuple[OverchargedJob, ...]:
        return tuple(job for _, _, job in sorted(self._worst, reverse=True))


class Overcharges:
    """Looks for them, and gives back what was too much."""

    def __init__(self, past: PastJobs, compensations: Compensations) -> None:
        self._past = past
        self._compensations = compensations

    async def found(
        self, book: tuple[int, datetime], under: tuple[int, PriceBook], worst_max: int, give: tuple[str, str] | None
    ) -> Overcharged:
        """Every job that `book` (its number, and since when it is in force) priced, compared with another book.

        `give`: why and by whom what is missing of the difference is granted; None to look only. Interrupted and
        started again, it goes on where it was.
        """
        found = _Found(worst_max)
        async for batch in self._batches(book, under[1], found):
            differences = {job.job: job.difference for job in batch}
            mended = await self._mended(batch[0].account, differences, under[0], give)
            for job in batch:
                mending = mended.get(job.job, _NOTHING)
                told = replace(job, given_before=mending.before)
                told = replace(told, given=mending.due) if give is not None else replace(told, to_give=mending.due)
                found.add(told, mending.mended_before)
        unfinished = await self._past.unfinished(book[0])
        return Overcharged(
            book=book[0],
            under=under[0],
            compensated=give is not None,
            looked_at=found.looked_at,
            jobs=found.jobs,
            accounts=found.accounts,
            credits=found.credits,
            given=found.given,
            unpriced=found.unpriced,
            worst=found.worst,
            to_give=found.to_give,
            given_before=found.given_before,
            mended_before=found.mended_before,
            unfinished=unfinished.jobs,
            unfinished_quoted=unfinished.quoted,
        )

    async def _mended(
        self, account: str, differences: Mapping[UUID, int], under: int, give: tuple[str, str] | None
    ) -> Mapping[UUID, Mending]:
        if give is None:
            return await self._compensations.mending_each(account, differences, REFERENCE, under)
        return await self._compensations.mend_each(account, differences, REFERENCE, under, *give)

    async def _batches(
        self, book: tuple[int, datetime], other: PriceBook, found: _Found
    ) -> AsyncIterator[Sequence[OverchargedJob]]:
        """Overcharged jobs, those of one account together."""
        period = replace(await self._past.period(book=book[0]), since=book[1])
        batch: list[OverchargedJob] = []
        async for page in self._past.pages(period, endings_by_hold(other), with_lots=False):
            found.looked_at += len(page.jobs)
            for job in await asyncio.to_thread(_overcharged, page.jobs, other, found):
                if batch and (batch[0].account != job.account or len(batch) == TOGETHER_MAX):
                    yield batch
                    batch = []
                batch.append(job)
        if batch:
            yield batch


def _overcharged(jobs: Sequence[PastJob], other: PriceBook, found: _Found) -> list[OverchargedJob]:
    dearer = []
    for job in jobs:
        would = charge_under(other, job) if job.charged else 0
        if would is None:
            found.unpriced += 1
        elif would < job.charged:
            dearer.append(OverchargedJob(job.job_id, job.account_id, job.kind, job.charged, would))
    return dearer
