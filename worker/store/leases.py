"""Leases of running jobs: renewed together, revived while the token matches, reaped by the scheduler alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading, transaction
from worker.store.texts import storable

#: What `fermata_now()` must be, but for white space.
CLOCK_BODY = "SELECT clock_timestamp()"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Held:
    """A job that a process runs, as it is named to the store."""

    account_id: str
    job_id: UUID
    token: UUID


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal learned. Jobs in neither set are fine."""

    lost: frozenset[UUID]  # tokens that are not the job's any more
    cancel_asked: frozenset[UUID]  # tokens whose job is no longer wanted


@dataclass(frozen=True, slots=True)
class Lapsed:
    """A running job whose worker is gone, or that runs past its `ends_by`."""

    account_id: str
    job_id: UUID
    token: UUID


class Standing(StrEnum):
    """What a token stands for when an answer was lost."""

    RUNNING = "running"  # the claim is ours; a settle did not happen
    SETTLED = "settled"
    NOT_OURS = "not_ours"


class Leases:
    """Renewals of one process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def renew(self, held: Sequence[Held], lease_seconds: float) -> Renewal:
        """Renew every lease whose token matches, lapsed or not, in one statement.

        A row that somebody has locked is being settled: it is skipped and counts as renewed.
        """
        keys = _keys(held)
        async with transaction(self._engine, "renew", by_key=True) as connection:
            await connection.execute(_RENEW, {**keys, "seconds": lease_seconds})
            rows = (await connection.execute(_STANDING, keys)).all()
        mine = {row.token for row in rows}
        asked = {row.token for row in rows if row.cancel_asked_at is not None}
        return Renewal(frozenset(one.token for one in held if one.token not in mine), frozenset(asked))

    async def report(self, progress: Sequence[tuple[Held, float, str]]) -> None:
        """Write how far jobs are, within 0 and 1. Skips rows that are locked; the next report tells more anyway."""
        keys = _keys([one for one, _, _ in progress])
        fractions = {
            "fractions": [_within(fraction) for _, fraction, _ in progress],
            "stages": [storable(stage) for *_, stage in progress],
        }
        async with transaction(self._engine, "report_progress", by_key=True) as connection:
            await connection.execute(_REPORT, {**keys, **fractions})

    async def remember(self, held: Held, state: Mapping[str, Any]) -> bool:
        """Keep what the engine must know in another attempt. False: the job is not ours any more."""
        values = {"account": held.account_id, "job": held.job_id, "token": held.token}
        async with transaction(self._engine, "remember") as connection:
            result = await connection.execute(_REMEMBER, {**values, "state": _encode(state).decode()})
        return bool(result.rowcount == 1)

    async def standing(self, held: Held) -> Standing:
        """What became of a token, for whoever lost the answer to a claim or a settle."""
        async with reading(self._engine) as connection:
            found = await connection.scalar(
                _STANDING_OF_ONE, {"account": held.account_id, "job": held.job_id, "token": held.token}
            )
        return Standing(found) if found else Standing.NOT_OURS

    async def lapsed(self, limit: int, grace_seconds: float) -> list[Lapsed]:
        """Running jobs whose lease has lapsed, or that are `grace_seconds` past their `ends_by`."""
        async with reading(self._engine, by_key=True) as connection:
            rows = await connection.execute(_LAPSED, {"limit": limit, "grace": grace_seconds})
            return [Lapsed(row.account_id, row.job_id, row.token) for row in rows]

    async def overdue(self, limit: int) -> list[tuple[str, UUID]]:
        """Queued and waiting jobs whose `ends_by` has passed."""
        async with reading(self._engine, by_key=True) as connection:
            rows = await connection.execute(_OVERDUE, {"limit": limit})
            return [(row.account_id, row.job_id) for row in rows]


def _within(fraction: float) -> float:
    """Engines may say anything: one wrong figure must not keep the others from being written."""
    return min(fraction, 1.0) if fraction >= 0 else 0.0  # not a number is not above 0 either


def _keys(held: Sequence[Held]) -> dict[str, Any]:
    return {
        "accounts": [one.account_id for one in held],
        "jobs": [one.job_id for one in held],
        "tokens": [one.token for one in held],
    }


async def read_clock(engine: AsyncEngine) -> datetime:
    """The only time that decides anything."""
    async with reading(engine) as connection:
        now: datetime = (await connection.execute(_CLOCK)).scalar_one()
        return now


async def clock_is_ours(engine: AsyncEngine) -> bool:
    """Whether `fermata_now()` is the migration's own. Tests put another in its place, to set it ahead."""
    async with reading(engine) as connection:
        body = await connection.scalar(_CLOCK_BODY)
    return " ".join((body or "").split()) == CLOCK_BODY


_CLOCK = text("SELECT fermata_now()")

_CLOCK_BODY = text("SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure('fermata_now()')")

_RENEW = text("""
    UPDATE live AS l
    SET lease_until = fermata_now() + make_interval(secs => :seconds)
    FROM (
        SELECT m.account_id, m.job_id
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[]))
             AS u (account_id, job_id, token)
        JOIN live AS m ON m.account_id = ANY(ARRAY[u.account_id]) AND m.job_id = ANY(ARRAY[u.job_id])
                      AND m.token = ANY(ARRAY[u.token])
        ORDER BY u.account_id, u.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE l.account_id = ANY(ARRAY[mine.account_id])
      AND l.job_id = ANY(ARRAY[mine.job_id])
""")

_STANDING = text("""
    SELECT l.token, l.cancel_asked_at
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[]))
         AS u (account_id, job_id, token)
    JOIN live AS l ON l.account_id = ANY(ARRAY[u.account_id]) AND l.job_id = ANY(ARRAY[u.job_id])
                 AND l.token = ANY(ARRAY[u.token])
""")

_REPORT = text("""
    UPDATE live AS l
    SET progress = mine.fraction, stage = mine.stage, progress_at = fermata_now()
    FROM (
        SELECT m.account_id, m.job_id, u.fraction, u.stage
        FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[]),
                    CAST(:fractions AS double precision[]), CAST(:stages AS text[]))
             AS u (account_id, job_id, token, fraction, stage)
        JOIN live AS m ON m.account_id = ANY(ARRAY[u.account_id]) AND m.job_id = ANY(ARRAY[u.job_id])
                      AND m.token = ANY(ARRAY[u.token])
        ORDER BY u.account_id, u.job_id
        FOR UPDATE OF m SKIP LOCKED
    ) AS mine
    WHERE l.account_id = ANY(ARRAY[mine.account_id])
      AND l.job_id = ANY(ARRAY[mine.job_id])
""")

_REMEMBER = text("""
    UPDATE live
    SET engine_state = CAST(:state AS jsonb)
    WHERE account_id = :account
      AND job_id = :job
      AND token = :token
""")

_STANDING_OF_ONE = text("""
    SELECT 'running'
    FROM live
    WHERE account_id = :account AND job_id = :job AND token = :token
    UNION ALL
    SELECT 'settled'
    FROM attempts
    WHERE account_id = :account AND job_id = :job AND token = :token
""")

_LAPSED = text("""
    SELECT account_id, job_id, token
    FROM live
    CROSS JOIN (SELECT fermata_now() AS now) AS clock
    WHERE account_id >= ''  -- all, by the index: the table's pages are mostly of rows that have gone
      AND (lease_until <= clock.now OR ends_by + make_interval(secs => :grace) <= clock.now)
    ORDER BY lease_until
    LIMIT :limit
""")

_OVERDUE = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    )
    (
        SELECT d.account_id, d.job_id
        FROM due AS d, clock
        WHERE d.ends_by <= clock.now
        LIMIT :limit
    )
    UNION ALL
    (
        SELECT p.account_id, p.job_id
        FROM parked AS p, clock
        WHERE p.ends_by <= clock.now
        LIMIT :limit
    )
""")
