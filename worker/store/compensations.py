"""Money back after the end: a committed job is never un-committed, its account gets a lot instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.account_ledger import NewLot
from worker.credits.lots import LotSource
from worker.credits.page import Page
from worker.store.audit_log import acting
from worker.store.books import Books
from worker.store.database import tried_again
from worker.store.errors import Conflict, Refused, UnknownJob
from worker.store.references import check_actor, check_amount, check_reference
from worker.store.snapshots import snapshot
from worker.store.texts import NOTE_LENGTH_MAX, is_line

#: What its lot and its journal entry say.
COMPENSATION = "compensation"


@dataclass(frozen=True, slots=True)
class Compensated:
    """Credits that came for a job, until `expires_at`. `replayed`: they had come before, under the same reference."""

    job: UUID
    account: str
    credits: int
    expires_at: datetime | None
    reference: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a job was charged and what came back of it since, by the books of its account."""

    charged: int
    compensated: int
    ended: bool

    @property
    def left(self) -> int:
        return self.charged - self.compensated


@dataclass(frozen=True, slots=True)
class Mending:
    """What a job gets for a price that was too high. `before`: all compensations that came for it already.

    `mended_before`: those of them that were for its price. `due`: what comes now, or would.
    """

    before: int
    mended_before: int
    due: int


class Compensations:
    """Grants for jobs, in total at most what each was charged."""

    def __init__(self, engine: AsyncEngine, books: Books) -> None:
        self._engine = engine
        self._books = books

    @tried_again
    async def compensate(
        self, account_id: str, job_id: UUID, amount: int, reference: str, reason: str, actor: str
    ) -> Compensated:
        """Give `amount` credits for a job, once per reference; they expire like a make-good.

        Raises `UnknownAccount`, `UnknownJob`, `Conflict` for a reference that was used for something else, and
        `Refused` for a job that has not ended or an amount above what is left of its charge.
        """
        check_reference(reference)
        check_amount("amount", amount)
        _check_words(reason, actor)
        async with self._books.page(account_id) as (connection, page):
            before = (await _given(connection, account_id, [reference])).get(reference)
            if before is not None:
                if (before.job_id, before.granted) != (job_id, amount):
                    raise Conflict("reference", reference, f"was used before, for {before.granted:,} credits")
                return Compensated(job_id, account_id, amount, before.expires_at, reference, replayed=True)
            standing = (await _standings(connection, account_id, [job_id])).get(job_id)
            if standing is None:
                raise UnknownJob(job_id)
            if not standing.ended:
                raise Refused("job", "has not ended: cancel it instead")
            if amount > standing.left:
                raise Refused(
                    "amount",
                    f"at most {standing.left:,} credits: it was charged {standing.charged:,}, "
                    f"and {standing.compensated:,} were given for it before",
                )
            await acting(connection, actor)
            expires_at = _grant(page, job_id, amount, reference, reason, actor)
        return Compensated(job_id, account_id, amount, expires_at, reference, replayed=False)

    @tried_again
    async def compensate_each(
        self, account_id: str, amounts: Mapping[UUID, int], prefix: str, reason: str, actor: str
    ) -> Mapping[UUID, int]:
        """Give these jobs of one account their amounts, each once under the reference `prefix:JOB`.

        All in one transaction. Where less is left of a charge, less is given. Returns what was given now: a job that
        had its part before is left out. Raises `UnknownAccount` and `Refused`.
        """
        _check_words(reason, actor)
        async with self._books.page(account_id) as (connection, page):
            await acting(connection, actor)
            due = await _due(connection, account_id, amounts, prefix)
            for job_id, amount in due.items():
                _grant(page, job_id, amount, _reference(prefix, job_id), reason, actor)
        return due

    @tried_again
    async def mend_each(
        self, account_id: str, differences: Mapping[UUID, int], prefix: str, book: int, reason: str, actor: str
    ) -> Mapping[UUID, Mending]:
        """Give these jobs of one account what is missing of the difference to what `book` would have charged.

        Read under the account's lock: however many do it at once, by whatever books, a job's sum for its price is
        the largest difference that was asked for, never the sum of them. The first lot of a job has the reference
        `prefix:JOB`, one under another book later `prefix:JOB:BOOK`. Raises `UnknownAccount` and `Refused`.
        """
        _check_words(reason, actor)
        async with self._books.page(account_id) as (connection, page):
            await acting(connection, actor)
            found = await _mendings(connection, account_id, differences, prefix, book)
            for job_id, (mending, reference) in found.items():
                if mending.due:
                    _grant(page, job_id, mending.due, reference, reason, actor)
        return {job_id: mending for job_id, (mending, _) in found.items()}

    async def mending_each(
        self, account_id: str, differences: Mapping[UUID, int], prefix: str, book: int
    ) -> Mapping[UUID, Mending]:
        """What `mend_each` would give now. Looks only."""
        async with snapshot(self._engine) as connection:
            found = await _mendings(connection, account_id, differences, prefix, book)
        return {job_id: mending for job_id, (mending, _) in found.items()}

    async def due_each(self, account_id: str, amounts: Mapping[UUID, int], prefix: str) -> Mapping[UUID, int]:
        """What `compensate_each` would give now. Looks only."""
        async with snapshot(self._engine) as connection:
            return await _due(connection, account_id, amounts, prefix)


async def _due(
    connection: AsyncConnection, account_id: str, amounts: Mapping[UUID, int], prefix: str
) -> dict[UUID, int]:
    """What is still to be given of these amounts: nothing under a reference that was used, no more than is left."""
    before = await _given(connection, account_id, [_reference(prefix, job_id) for job_id in amounts])
    standings = await _standings(connection, account_id, list(amounts))
    due = {job_id: min(amounts[job_id], standing.left) for job_id, standing in standings.items() if standing.ended}
    return {job_id: amount for job_id, amount in due.items() if amount > 0 and _reference(prefix, job_id) not in before}


async def _mendings(
    connection: AsyncConnection, account_id: str, differences: Mapping[UUID, int], prefix: str, book: int
) -> dict[UUID, tuple[Mending, str]]:
    """For each job what is missing, and the reference under which it would come.

    What was given for another reason lessens only what is left of the charge: a song that clicked was too dear too.
    """
    standings = await _standings(connection, account_id, list(differences))
    references = {job_id: (_reference(prefix, job_id), _reference(prefix, job_id, book)) for job_id in differences}
    used = await _given(connection, account_id, [one for both in references.values() for one in both])
    mended = await _mended(connection, account_id, list(differences), prefix)
    found = {}
    for job_id, standing in standings.items():
        # A reference that somebody used by hand for something else takes nothing from this job.
        free = next((one for one in references[job_id] if one not in used), None)
        missing = differences[job_id] - mended.get(job_id, 0)
        due = max(0, min(missing, standing.left)) if standing.ended and free is not None else 0
        found[job_id] = Mending(standing.compensated, mended.get(job_id, 0), due), free or ""
    return found


def _reference(prefix: str, job_id: UUID, book: int | None = None) -> str:
    return f"{prefix}:{job_id}" if book is None else f"{prefix}:{job_id}:{book}"


def _grant(page: Page, job_id: UUID, amount: int, reference: str, reason: str, actor: str) -> datetime:
    expires_at = page.ledger.make_good_until
    new = NewLot(LotSource.GRANT, COMPENSATION, reference=reference, job_id=job_id, note=reason)
    page.ledger.grant(amount, new, expires_at, actor)
    return expires_at


def _check_words(reason: str, actor: str) -> None:
    check_actor(actor)
    if not is_line(reason, NOTE_LENGTH_MAX) or not reason.strip():
        raise Refused("reason", f"must be 1 to {NOTE_LENGTH_MAX} printable characters on one line")


async def _given(connection: AsyncConnection, account_id: str, references: Sequence[str]) -> dict[str, Any]:
    rows = await connection.execute(_GIVEN, {"account": account_id, "references": references})
    return {row.reference: row for row in rows}


async def _mended(connection: AsyncConnection, account_id: str, jobs: Sequence[UUID], prefix: str) -> dict[UUID, int]:
    values = {"account": account_id, "jobs": jobs, "reason": COMPENSATION, "prefix": prefix}
    return {row.job_id: row.granted for row in await connection.execute(_MENDED, values)}


async def _standings(connection: AsyncConnection, account_id: str, jobs: Sequence[UUID]) -> dict[UUID, _Standing]:
    rows = await connection.execute(_STANDINGS, {"account": account_id, "jobs": jobs, "reason": COMPENSATION})
    return {row[0]: _Standing(*row[1:]) for row in rows}


_GIVEN = text("""
    SELECT reference, job_id, granted, expires_at
    FROM lots
    WHERE account_id = :account
      AND source = 'grant'
      AND reference = ANY(CAST(:references AS text[]))
""")

#: Whatever book it was compared with.
_MENDED = text("""
    SELECT job_id, CAST(sum(granted) AS bigint) AS granted
    FROM lots
    WHERE account_id = :account
      AND job_id = ANY(CAST(:jobs AS uuid[]))
      AND reason = :reason
      AND starts_with(concat(reference, ':'), concat(CAST(:prefix AS text), ':', job_id, ':'))
    GROUP BY job_id
""")

_STANDINGS = text("""
    WITH given AS (
        SELECT job_id, CAST(sum(granted) AS bigint) AS granted
        FROM lots
        WHERE account_id = :account
          AND job_id = ANY(CAST(:jobs AS uuid[]))
          AND reason = :reason
        GROUP BY job_id
    )
    SELECT j.job_id, COALESCE(j.charged, 0), COALESCE(g.granted, 0), j.ended_at IS NOT NULL
    FROM jobs AS j
    LEFT JOIN given AS g USING (job_id)
    WHERE j.account_id = :account
      AND j.job_id = ANY(CAST(:jobs AS uuid[]))
    ORDER BY j.job_id
""")
