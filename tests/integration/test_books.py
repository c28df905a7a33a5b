"""The ledger and the path of a job on a real PostgreSQL: money under concurrency."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.integration.books import opened
from tests.servers import Database
from worker.credits.operations import Claimed, Ended
from worker.credits.outcomes import Ending
from worker.credits.states import JobState


async def test_a_job_is_reserved_run_and_committed(database: Database) -> None:
    """The whole price is held by the claim and spent by the settle, and the job succeeds."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        assert {"available": 70, "held": 30, "spent": 0, "expired": 0, "revoked": 0} == await store.buckets(account)
        ended = await store.settle(account, claimed)
        assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 30) == ended
        assert {"available": 70, "held": 0, "spent": 30, "expired": 0, "revoked": 0} == await store.buckets(account)


async def test_fifty_jobs_of_ten_against_a_hundred_and_five(database: Database) -> None:
    """Exactly ten of fifty concurrent claims are paid; the rest are refused and hold nothing."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 105)
        jobs = [await one.queued(account, quoted=10) for _ in range(50)]
        stores = [one, other]
        answers = await asyncio.gather(*(stores[n % 2].claim(account, job) for n, job in enumerate(jobs)))
        assert Counter({Claimed: 10, Ended: 40}) == Counter(type(answer) for answer in answers)
        assert {"available": 5, "held": 100, "spent": 0, "expired": 0, "revoked": 0} == await one.buckets(account)
