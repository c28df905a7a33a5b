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


def _reference(prefix: str, job_id: UUID) -> str:
    return f"{prefix}:{job_id}"


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
