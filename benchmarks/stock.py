"""What the ledger is measured on: accounts with credits and jobs in their queue, made by the product's own code."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import uuid_utils.compat as uuids

from benchmarks.crew import Desk
from worker.credits.account_ledger import NewLot
from worker.credits.lots import LotSource
from worker.credits.page import Page
from worker.local.roles import dsn
from worker.store.ids import new_id
from worker.store.submits import NewJob, Submission, Submitted, SubmitView

ACTOR = "benchmark"
ACCOUNTS = 10_000
#: Credits of each lot: enough that nothing is ever refused.
CREDITS = 10**9
#: What a job is quoted, and charged.
PRICE = 12

#: A job to claim: its account and its id.
JobKey = tuple[str, UUID]


@dataclass(frozen=True, slots=True)
class Stocking:
    """Gives an account what a paying customer has: this cycle's credits, and maybe a top-up."""

    account_id: str
    topped_up: bool
    job_id: None = None

    def decide(self, page: Page) -> None:
        """Grant one lot or two."""
        start = datetime(2026, 1, 1, tzinfo=UTC)
        monthly = NewLot(LotSource.SUBSCRIPTION, "cycle", cycle_starts_at=start)
        page.ledger.grant(CREDITS, monthly, page.now + timedelta(days=30), ACTOR)
        if self.topped_up:
            page.ledger.grant(CREDITS, NewLot(LotSource.TOPUP, "topup", reference="first"), None, ACTOR)


@dataclass(frozen=True, slots=True)
class Asked:
    """A submission of a job without inputs."""

    account_id: str
    idempotency_key: str
    body_hash: bytes = bytes(32)
    artifact_ids: Sequence[UUID] = ()
    voice: None = None

    def decide(self, view: SubmitView) -> NewJob:
        """Always the same price."""
        return NewJob(
            job_id=new_id(),  # as the client makes it
            kind="generation",
            queue="generation",
            request={"prompt": "a slow waltz for two pianos", "seconds": 30, "model": "standard", "seed": 7},
            inputs={},
            metadata={},
            quoted=PRICE,
            book_id=view.book_id,
            plan=view.plan,
            on_insufficient="refuse",
            max_credits=None,
            run_at=None,
            ends_by=None,
            job_seconds=86_400.0,
            failures_max=3,
            actor=ACTOR,
        )


async def accounts_made(url: str, count: int = ACCOUNTS) -> list[str]:
    """That many subscribed accounts, every second with a top-up beside its monthly credits."""
    ids = [f"customer-{number:05d}" for number in range(count)]
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(_INSERT_ACCOUNTS, ids, ACTOR)
    finally:
        await connection.close()
    desk = Desk.opened(url)
    await asyncio.gather(
        *(desk.operations.do(Stocking(one, topped_up=number % 2 == 1)) for number, one in enumerate(ids))
    )
    await desk.close()
    return ids


async def jobs_queued(url: str, accounts: Sequence[str], count: int) -> list[JobKey]:
    """That many queued jobs over the accounts, in the order of their submits."""
    desk = Desk.opened(url)
    chosen = random.choices(accounts, k=count)
    asked: list[Submission] = [Asked(account_id, str(uuids.uuid7())) for account_id in chosen]
    answers: list[Submitted] = await asyncio.gather(*(desk.submits.do(one) for one in asked))
    await desk.close()
    return [(answer.account_id, answer.job_id) for answer in answers]


async def drift(url: str) -> int:
    """Lots whose buckets are not what their journal says, plus holds that are left: 0, or the figures count nothing."""
    connection = await asyncpg.connect(dsn(url))
    try:
        return int(await connection.fetchval(_DRIFT, timeout=120))
    finally:
        await connection.close()


_INSERT_ACCOUNTS = """
    INSERT INTO accounts (account_id, created_at, plan, cycle_ends_at, actor)
    SELECT account_id, fermata_now(), 'creator', fermata_now() + interval '30 days', $2
    FROM unnest($1::text[]) AS u (account_id)
"""

_DRIFT = """
    WITH folded AS (
        SELECT account_id, lot_id,
               sum(amount) FILTER (WHERE move = 'commit') AS spent,
               sum(amount) FILTER (WHERE move = 'reserve') AS reserved,
               sum(amount) FILTER (WHERE move = 'refund') AS refunded
        FROM journal
        GROUP BY account_id, lot_id
    )
    SELECT (SELECT count(*)
            FROM lots
            LEFT JOIN folded USING (account_id, lot_id)
            WHERE lots.spent <> COALESCE(folded.spent, 0)
               OR lots.held <> COALESCE(folded.reserved, 0) - COALESCE(folded.spent, 0) - COALESCE(folded.refunded, 0))
         + (SELECT count(*) FROM reservations WHERE state = 'held')
         + (SELECT count(*) FROM lots WHERE held <> 0)
"""
