"""A job that can't be paid: what it is told, where that can be read, and what a waiting one is told meanwhile."""

from __future__ import annotations

import asyncio
from uuid import UUID

from tests.integration.books import ACTOR, opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.credits.operations import Claimed, Ended, Parked
from worker.credits.outcomes import Ending
from worker.credits.refusals import HeldBy, Refusal
from worker.local.waiting import finished
from worker.store.reads import Reads


async def test_a_refusal_says_what_is_missing_and_where_it_is(database: Database) -> None:
    """In the answer of the claim, with the job, with its receipt: needed, available, held by whom, and which pack."""
    async with opened(database) as store:
        account = await store.account("ada", 150)
        async with database.connection() as connection:
            await connection.execute("UPDATE accounts SET plan = 'creator'")
        one, other = await store.running(account, 60), await store.running(account, 80)
        await store.settle(account, other, Ending.ENGINE_FAILURE)  # queued again: it keeps its hold
        refused = await store.queued(account, 50)
        answer = await store.claim(account, refused)
        assert isinstance(answer, Ended)
        expected = Refusal(
            needed=50,
            available=10,
            held=140,
            held_by=(HeldBy(other.job.job_id, 80), HeldBy(one.job.job_id, 60)),
            frozen=0,
            pack=answer.refusal.pack if answer.refusal else None,
        )
        assert expected == answer.refusal
        assert expected.pack is not None
        assert ("small", 100) == (expected.pack.name, expected.pack.credits)
        reads = Reads(store.engine)
        assert expected == (await reads.job(refused)).shortfall == (await reads.receipt(refused)).shortfall
        # Kept as it was said, whatever comes after.
        await store.accounts.grant(account, 1000, "late", "test")
        assert expected == (await reads.job(refused)).shortfall
        assert None is (await reads.job(one.job.job_id)).shortfall


async def test_a_refusal_names_what_is_frozen(database: Database) -> None:
    """Top-ups without a subscription are there, but not spendable, and no pack would change that."""
    async with opened(database) as store:
        await store.accounts.topup(await store.account("ada"), "bought", "test", amount=70)
        answer = await store.claim("ada", await store.queued("ada", 10))
        assert Refusal(needed=10, available=0, held=0, held_by=(), frozen=70, pack=None) == answer.refusal


async def test_refused_neighbours_are_told_each_its_own(database: Database) -> None:
    """Claims that travel in one batch, of several accounts, some paid, some not."""
    async with opened(database) as store:
        jobs = [await store.submitted(await store.account(f"a{available}", available)) for available in (5, 15, 3)]
        answers = await asyncio.gather(*(store.claim(account, job) for account, job in jobs))
        assert [Ended, Claimed, Ended] == [type(answer) for answer in answers]
        assert [5, 3] == [answers[place].refusal.available for place in (0, 2)]


async def test_a_waiting_job_is_told_how_it_stands_now(database: Database) -> None:
    """Not when it was parked: what is missing shrinks as credits come. Woken, it is told nothing."""
    async with opened(database) as store:
        job = await store.queued(await store.account("ada", 3), 10, on_insufficient="wait")
        assert isinstance(await store.claim("ada", job), Parked)
        reads = Reads(store.engine)
        before = (await reads.job(job)).shortfall
        await store.accounts.grant("ada", 4, "some", "test")
        after = (await reads.job(job)).shortfall
        assert [(10, 3), (10, 7)] == [(told.needed, told.available) for told in (before, after) if told]
        await store.accounts.grant("ada", 3, "more", "test")
        assert None is (await reads.job(job)).shortfall


async def test_a_job_that_does_not_wait_may_overtake_those_that_do(database: Database) -> None:
    """It takes what is there; one that would wait queues behind the older, though it would fit."""
    async with opened(database) as store:
        await store.account("ada", 50)
        for price in (100, 40):
            assert isinstance(
                await store.claim("ada", await store.queued("ada", price, on_insufficient="wait")), Parked
            )
        assert isinstance(await store.claim("ada", await store.queued("ada", 30)), Claimed)
        assert 2 == await store.value("SELECT count(*) FROM parked")
        await store.accounts.grant("ada", 120, "more", "test")
        woken = [row[0] for row in await store.fetch("SELECT job_id FROM due ORDER BY job_id")]
        assert [Claimed, Claimed] == [type(await store.claim("ada", job)) for job in woken]


def test_people_read_it_too(database: Database, fermata: Fermata) -> None:
    """`jobs show` and `jobs receipt` have it in words and under `shortfall`."""

    async def refused() -> UUID:
        async with opened(database) as store:
            job = await store.queued(await store.account("ada", 7), 10)
            await store.claim("ada", job)
            return job

    job = finished(refused())
    for verb in ("show", "receipt"):
        assert "needed 10, available 7" in fermata("jobs", verb, str(job)).out
        told = fermata.ok("jobs", verb, str(job))["shortfall"]
        assert {"needed": 10, "available": 7, "held": 0, "held_by": [], "frozen": 0, "pack": None} == told


async def test_the_pack_that_would_do_pays_the_debt_too(database: Database) -> None:
    """What an account owes is paid by its next top-up first: the pack that is named covers both."""
    async with opened(database) as store:
        await store.account("ada")
        await store.accounts.subscribe("ada", "starter", "start", "test")
        await store.accounts.topup("ada", "bought", "test", amount=100)
        await store.settle("ada", await store.running("ada", 250))
        await store.accounts.chargeback("ada", "bought", "test")
        refused = await store.claim("ada", await store.queued("ada", 50))
        assert isinstance(refused, Ended)
        assert refused.refusal is not None
        assert refused.refusal.pack is not None
        await store.accounts.topup("ada", "again", "test", pack=refused.refusal.pack.name)
        assert isinstance(await store.claim("ada", await store.queued("ada", 50)), Claimed)


async def test_a_job_behind_one_that_is_woken_in_the_same_batch_is_not_left_behind(database: Database) -> None:
    """A settle and the claim of a younger job travel together: the elder is woken, the younger fits beside it."""
    async with opened(database) as store:
        await store.account("ada", 100)
        blocker = await store.running("ada", 90)
        elder = await store.queued("ada", 50, on_insufficient="wait")
        assert isinstance(await store.claim("ada", elder), Parked)
        younger = await store.queued("ada", 20, on_insufficient="wait")
        await asyncio.gather(store.settle("ada", blocker, measured=0), store.claim("ada", younger))
        assert 0 == await store.value("SELECT count(*) FROM parked")
        for job in (elder, younger):
            assert isinstance(await store.claim("ada", job), Claimed)


async def test_however_many_wait_as_many_as_fit_are_woken_at_once(database: Database) -> None:
    """They are read in portions, oldest first, until one does not fit."""
    async with opened(database) as store:
        await store.account("ada", 0)
        waiting = [await store.queued("ada", 1, on_insufficient="wait") for _ in range(40)]
        await asyncio.gather(*(store.claim("ada", job) for job in waiting))
        assert 40 == await store.value("SELECT count(*) FROM parked")
        await store.accounts.grant("ada", 30, "gift-1", ACTOR)
        assert 10 == await store.value("SELECT count(*) FROM parked")
        youngest_queued = await store.value("SELECT max(job_id::text) FROM due")
        assert str(waiting[29]) == youngest_queued


async def test_a_job_that_costs_nothing_waits_for_nobody(database: Database) -> None:
    """It takes no credits from those that wait for them."""
    async with opened(database) as store:
        await store.account("ada", 10)
        assert isinstance(await store.claim("ada", await store.queued("ada", 50, on_insufficient="wait")), Parked)
        assert isinstance(await store.claim("ada", await store.queued("ada", 0, on_insufficient="wait")), Claimed)
