"""Why jobs could not be paid: kept with a refused one as it was then, looked up for a waiting one as it is now.

Read only where something was refused; the claims that can pay never come here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.allocation import Shortfall, allocate
from worker.credits.operations import Ended
from worker.credits.page import Page
from worker.credits.refusals import HeldBy, Refusal, refusal_of
from worker.store.gather import PageOperation
from worker.store.plan_books import PlanBooks
from worker.store.reads_accounts import read_lots


async def explained(
    connection: AsyncConnection,
    pages: Mapping[str, Page],
    operations: Sequence[PageOperation],
    answers: list[Any],
    plans: PlanBooks,
) -> list[Any]:
    """The answers, those about jobs that were just refused for want of credits with their whole explanation, kept.

    Within the transaction that refuses, under the accounts' locks.
    """
    refused = {
        place: answer
        for place, answer in enumerate(answers)
        if isinstance(answer, Ended) and answer.shortfall is not None
    }
    if not refused:
        return answers
    book = await plans.current(connection)
    accounts = [operations[place].account_id for place in refused]
    holds, debts = await _holds(connection, sorted(set(accounts))), await debts_of(connection, sorted(set(accounts)))
    for place, account_id in zip(refused, accounts, strict=True):
        shortfall, frozen = refused[place].shortfall, pages[account_id].ledger.topups_frozen
        assert shortfall is not None
        refusal = refusal_of(
            shortfall, holds.get(account_id, ()), book, topups_frozen=frozen, debt=debts.get(account_id, 0)
        )
        refused[place] = replace(refused[place], refusal=refusal)
    await connection.execute(
        _KEEP,
        {
            "accounts": accounts,
            "jobs": [operations[place].job_id for place in refused],
            "bodies": [msgspec.json.encode(answer.refusal).decode() for answer in refused.values()],
        },
    )
    return [refused.get(place, answer) for place, answer in enumerate(answers)]


async def kept_refusal(connection: AsyncConnection, account_id: str, job_id: UUID) -> Refusal | None:
    """What was said when the job was refused; None for jobs that were not."""
    body = await connection.scalar(_KEPT, {"account": account_id, "job": job_id})
    return None if body is None else msgspec.convert(body, Refusal)


async def refusal_now(connection: AsyncConnection, account_id: str, needed: int, plans: PlanBooks) -> Refusal | None:
    """Why an account can't pay so much now; None if it can."""
    now, topups_frozen, lots = await read_lots(connection, account_id)
    shortfall = allocate(lots, needed, now, topups_frozen=topups_frozen)
    if not isinstance(shortfall, Shortfall):
        return None
    holds = await _holds(connection, [account_id])
    book = await plans.current(connection)
    debt = (await debts_of(connection, [account_id])).get(account_id, 0)
    return refusal_of(shortfall, holds.get(account_id, ()), book, topups_frozen=topups_frozen, debt=debt)


async def debts_of(connection: AsyncConnection, account_ids: Sequence[str]) -> dict[str, int]:
    """What these accounts owe, by account: the next top-ups pay it first."""
    rows = await connection.execute(_DEBTS, {"accounts": account_ids})
    return {row.account_id: row.owed for row in rows}


async def _holds(connection: AsyncConnection, account_ids: Sequence[str]) -> dict[str, list[HeldBy]]:
    holds: dict[str, list[HeldBy]] = {}
    for row in (await connection.execute(_HOLDS, {"accounts": account_ids})).all():
        holds.setdefault(row.account_id, []).append(HeldBy(row.job_id, row.amount))
    return holds


#: Running jobs, and queued ones that ran before. Reservations have no index over what claims and settles change, and
#: of a long queue a thousand are enough to name twenty.
_HOLDS = text("""
    SELECT r.account_id, r.job_id, r.amount
    FROM unnest(CAST(:accounts AS text[])) AS wanted (account_id)
    CROSS JOIN LATERAL (
        (
            SELECT job_id
            FROM live
            WHERE account_id = wanted.account_id
            LIMIT 1000
        )
        UNION ALL
        (
            SELECT job_id
            FROM due
            WHERE account_id = wanted.account_id
            ORDER BY job_id
            LIMIT 1000
        )
    ) AS open
    CROSS JOIN LATERAL (
        SELECT account_id, job_id, amount
        FROM reservations
        WHERE account_id = wanted.account_id
          AND job_id = open.job_id
          AND state = 'held'
          AND amount > 0
        OFFSET 0
    ) AS r
""")

_DEBTS = text("""
    SELECT account_id, CAST(sum(amount) AS bigint) AS owed
    FROM debts
    WHERE account_id = ANY(CAST(:accounts AS text[]))
    GROUP BY account_id
""")

_KEEP = text("""
    INSERT INTO refusals (account_id, job_id, body)
    SELECT u.account_id, u.job_id, u.body
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:bodies AS jsonb[]))
         AS u (account_id, job_id, body)
""")

_KEPT = text("""
    SELECT body
    FROM refusals
    WHERE account_id = :account
      AND job_id = :job
""")
