"""Dispatching: which jobs are hinted next, in which order, and when again. Marks are rows; nobody waits for them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.books import Store, opened
from tests.servers import Database
from worker.credits.operations import Claimed, Dropped, Settle
from worker.credits.outcomes import Ending
from worker.store.dispatching import QueueDemand
from worker.store.workers import WorkerCard, Workers

QUEUE = "generation"


async def marked(store: Store, room: int = 100, queue: str = QUEUE) -> list[UUID]:
    """The jobs that a look hints, in their order."""
    await store.dispatching.ripen()
    return [job for _, job in (await store.dispatching.mark(queue, room, 15)).pairs]


async def pause(database: Database, scope: str, name: str, *, paused: bool = True) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO controls (scope, name, paused, at, actor) VALUES ($1, $2, $3, fermata_now(), 'test') "
            "ON CONFLICT (scope, name) DO UPDATE SET paused = $3",
            *(scope, name, paused),
        )


def a_card(worker_id: str, slots: int = 4, queues: tuple[str, ...] = (QUEUE,)) -> WorkerCard:
    return WorkerCard(worker_id, "host", 1, "1", queues, slots)


async def limited(store: Store, running_max: int, account: str = "ada") -> str:
    """An account that may run so many jobs at a time."""
    await store.account(account, 10_000)
    async with store.database.connection() as connection:
        await connection.execute("UPDATE accounts SET running_max = $1 WHERE account_id = $2", running_max, account)
    return account


# --- order and marks -------------------------------------------------------------------------------------------


async def test_the_order_is_priority_turn_and_age(database: Database) -> None:
    """The higher priority first, of that the smaller turn, of that the older job; a job's age is its id."""
    async with opened(database) as store, database.connection() as connection:
        account = await store.account("ada")
        jobs = [await store.queued(account) for _ in range(6)]
        for job, priority, turn in zip(jobs, (1, 0, 0, 0, -5, 0), (0, 2, 1, 1, 9, 0), strict=True):
            await connection.execute("UPDATE due SET priority = $1, turn = $2 WHERE job_id = $3", priority, turn, job)
        assert [jobs[n] for n in (0, 5, 2, 3, 1, 4)] == await marked(store)


async def test_a_job_is_hinted_once_and_as_many_as_there_is_room_for(database: Database) -> None:
    """What is marked is not marked again; `more` tells that others were left."""
    async with opened(database) as store:
        account = await store.account("ada")
        jobs = [await store.queued(account) for _ in range(5)]
        first = await store.dispatching.mark(QUEUE, 3, 15)
        second = await store.dispatching.mark(QUEUE, 3, 15)
        assert (jobs[:3], True) == ([job for _, job in first.pairs], first.more)
        assert (jobs[3:], False) == ([job for _, job in second.pairs], second.more)
        assert [] == await marked(store)
        await store.queued(account)
        assert [] == await marked(store, room=0)
        assert 1 == len(await marked(store, room=1))


async def test_only_due_jobs_of_the_queue_are_hinted(database: Database) -> None:
    """Not before their time, not another queue's, not a kind that is paused."""
    async with opened(database) as store:
        account = await store.account("ada")
        later = await store.value("SELECT fermata_now() + interval '1 hour'")
        early = await store.queued(account, run_at=later)
        await store.queued(account, queue="stems")
        paused = await store.queued(account, kind="vocal_conversion")
        await pause(database, "kind", "vocal_conversion")
        await pause(database, "queue", "vocal_conversion")  # another thing by the same name
        assert [] == await marked(store)
        await pause(database, "kind", "vocal_conversion", paused=False)
        assert [paused] == await marked(store)
        await database.advance(timedelta(hours=1))
        assert early in await marked(store)


async def test_a_hint_that_nobody_takes_is_repeated_with_a_growing_pause(database: Database) -> None:
    """After 15 s, 30, 60, 120, 240, and 240 from then on; without taking room from others."""
    async with opened(database) as store:
        job = await store.queued(await store.account("ada"))
        assert [job] == await marked(store)
        for pause_seconds in (15, 30, 60, 120, 240, 240, 240):
            await database.advance(timedelta(seconds=pause_seconds - 1))
            assert [] == await marked(store, room=0)
            await database.advance(timedelta(seconds=1.5))
            assert [job] == await marked(store, room=0)


@pytest.mark.parametrize("why", ["limit", "flush"])
async def test_the_pauses_begin_anew_with_each_mark(database: Database, why: str) -> None:
    """What became of earlier hints, a claim that dropped them or a flush, does not delay the repeats of this one."""
    async with opened(database) as store:
        account = await limited(store, 1)
        await store.running(account)
        job = await store.queued(account)
        for _ in range(5):
            assert [job] == await marked(store)
            if why == "limit":
                assert Dropped.ACCOUNT_LIMIT is await store.claim(account, job)
                await limited(store, 2)
                await store.dispatching.recheck_waiting()
                await limited(store, 1)
            else:
                await store.dispatching.forget_marks()
        assert [job] == await marked(store)
        for pause_seconds in (15, 30, 60):
            await database.advance(timedelta(seconds=pause_seconds + 0.5))
            assert [job] == await marked(store, room=0)


async def test_a_claim_takes_the_job_out_of_the_dispatchers_sight(database: Database) -> None:
    """Also its repeats; a retry comes back unmarked, at its own time."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        job = await store.queued(account)
        await marked(store)
        claimed = await store.claim(account, job)
        await database.advance(timedelta(seconds=16))
        assert [] == await marked(store)
        await store.operations.do(Settle(account, job, claimed.token, Ending.ENGINE_FAILURE, backoff_first_seconds=60))
        assert [] == await marked(store)
        await database.advance(timedelta(seconds=60))
        assert [job] == await marked(store)


async def test_a_claim_that_came_too_early_gives_its_mark_back(database: Database) -> None:
    """A hint that overtook its own back-off harms nothing: the job is hinted again in time."""
    async with opened(database) as store, database.connection() as connection:
        account = await store.account("ada", 100)
        job = await store.queued(account)
        await marked(store)
        await connection.execute("UPDATE due SET not_before = fermata_now() + interval '5 seconds'")
        assert Dropped.NOT_BEFORE is await store.claim(account, job)
        assert [] == await marked(store)
        await database.advance(timedelta(seconds=5))
        assert [job] == await marked(store)


async def test_two_dispatchers_never_hint_the_same_job(database: Database) -> None:
    """Looking at once they share the queue, and neither waits for the other."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        jobs = await asyncio.gather(*(one.queued(account) for _ in range(200)))
        found = await asyncio.gather(*(marked((one, other)[n % 2], room=30) for n in range(10)))
        hinted = [job for part in found for job in part] + await marked(one, room=200)
        assert (sorted(jobs), 200) == (sorted(hinted), len(hinted))


async def test_a_locked_row_is_left_for_the_next_look(database: Database) -> None:
    """A claim that is writing it holds up no dispatcher and no duty: what would wait could deadlock."""
    async with opened(database) as store, database.connection() as claiming:
        account = await store.account("ada")
        jobs = [await store.queued(account) for _ in range(4)]
        await marked(store, room=2)
        await claiming.execute("UPDATE due SET waits_for = 'paused' WHERE job_id = ANY($1)", jobs[2:3])
        transaction = claiming.transaction()
        await transaction.start()
        await claiming.execute("SELECT 1 FROM due WHERE job_id <> $1 FOR UPDATE", jobs[1])
        async with asyncio.timeout(2):
            assert [] == await marked(store)
            assert 1 == await store.dispatching.forget_marks()
            assert 0 == await store.dispatching.recheck_waiting()
            await store.dispatching.unhint([(account, job) for job in jobs])
            assert jobs[1:2] == await marked(store)
        await transaction.rollback()
        assert (1, jobs[2:]) == (await store.dispatching.recheck_waiting(), await marked(store))


async def test_after_a_flush_all_marks_are_forgotten(database: Database) -> None:
    """Their hints are gone: each is hinted again at the next look."""
    async with opened(database) as store:
        account = await store.account("ada")
        jobs = [await store.queued(account) for _ in range(4)]
        await marked(store, room=3)
        assert 3 == await store.dispatching.forget_marks()
        assert 0 == await store.dispatching.forget_marks()
        assert jobs == await marked(store)


async def test_jobs_that_found_no_slot_are_hinted_elsewhere_at_once(database: Database) -> None:
    """Unknown pairs and those that were claimed meanwhile are none of its business; the dispatcher is woken."""
    async with opened(database) as store, database.connection() as listener:
        account = await store.account("ada", 100)
        jobs = [await store.queued(account) for _ in range(3)]
        await marked(store)
        await store.claim(account, jobs[2])
        woken: list[str] = []
        await listener.add_listener("fermata_due", lambda *args: woken.append(args[2]))
        await store.dispatching.unhint([(account, job) for job in [*jobs[1:], uuids.uuid7()]] + [("nobody", jobs[0])])
        await listener.fetchval("SELECT 1")
        assert ["fermata_due"] == woken
        assert [jobs[1]] == await marked(store)
        await store.dispatching.unhint([])


# --- pauses and limits -----------------------------------------------------------------------------------------


async def test_a_settle_lets_the_next_job_of_a_full_account_go(database: Database) -> None:
    """Dropped at the limit, it waits unhinted; the end of a running one makes it due, as many as there is room for."""
    async with opened(database) as store:
        account = await limited(store, 2)
        jobs = [await store.queued(account) for _ in range(5)]
        first, second, *dropped = [await store.claim(account, job) for job in jobs]
        assert [Claimed, Claimed] == [type(first), type(second)]
        assert [Dropped.ACCOUNT_LIMIT] * 3 == dropped
        assert [] == await marked(store)
        await store.settle(account, first)
        hinted = await marked(store)
        assert jobs[2:4] == hinted
        answers = [await store.claim(account, job) for job in hinted]
        assert [Claimed, Dropped] == [type(answer) for answer in answers]
        assert 2 == await store.value("SELECT count(*) FROM live")


async def test_a_full_account_takes_no_place_from_others(database: Database) -> None:
    """Its other jobs stand aside; the queue goes on."""
    async with opened(database) as store:
        full, other = await limited(store, 1), await store.account("bob", 100)
        await store.running(full)
        waiting = [await store.queued(full) for _ in range(3)]
        for job in await marked(store, room=3):
            await store.claim(full, job)
        bobs = await store.queued(other)
        assert [bobs] == await marked(store, room=3)
        assert set(waiting).isdisjoint(await marked(store))


@pytest.mark.parametrize("why", ["account", "queue", "kind"])
async def test_what_was_dropped_for_a_pause_goes_on_after_it(database: Database, why: str) -> None:
    """The recheck is the safety net; while the pause lasts the job is dropped again, not run."""
    async with opened(database) as store, database.connection() as connection:
        account = await store.account("ada", 100)
        job = await store.queued(account)
        if why == "account":
            await connection.execute("UPDATE accounts SET paused = true")
        else:
            await pause(database, why, QUEUE)
        assert Dropped.PAUSED is await store.claim(account, job)
        assert "paused" == await store.value("SELECT waits_for FROM due")
        if why == "account":
            assert 0 == await store.dispatching.recheck_waiting()
            await connection.execute("UPDATE accounts SET paused = false")
        else:
            await pause(database, why, QUEUE, paused=False)
        assert 1 == await store.dispatching.recheck_waiting()
        assert [job] == await marked(store)
        assert isinstance(await store.claim(account, job), Claimed)


async def test_the_recheck_leaves_full_accounts_alone(database: Database) -> None:
    """Until one of their jobs has ended, or the limit was lifted."""
    async with opened(database) as store:
        account = await limited(store, 1)
        await store.running(account)
        job = await store.queued(account)
        await store.claim(account, job)
        assert 0 == await store.dispatching.recheck_waiting()
        await limited(store, 2)
        assert 1 == await store.dispatching.recheck_waiting()


# --- demand ----------------------------------------------------------------------------------------------------


async def test_demand_counts_the_slots_of_those_who_live_and_take_hints(database: Database) -> None:
    """Not of draining, ended or unseen processes; running and hinted jobs fill slots."""
    async with opened(database) as store:
        workers, account = Workers(store.engine), await store.account("ada", 1000)
        await workers.here(a_card("unseen", 100))
        await database.advance(timedelta(seconds=60))
        await workers.here(a_card("a", 4, (QUEUE, "stems")))
        await workers.here(a_card("b", 3))
        await workers.here(a_card("draining", 50), draining=True)
        await workers.here(a_card("gone", 50))
        await workers.gone("gone")
        await store.running(account)
        assert [QueueDemand(QUEUE, 7, 2, 1, 0, False, None), QueueDemand("stems", 4, 1, 0, 0, False, None)] == (
            await store.dispatching.demand(30, 15)
        )
        await store.queued(account)
        await store.queued(account)
        assert (True, 6) == (
            (await store.dispatching.demand(30, 15))[0].ready,
            (await store.dispatching.demand(30, 15))[0].free,
        )
        await marked(store, room=1)
        demand = (await store.dispatching.demand(30, 15))[0]
        assert (1, 1, 5, True) == (demand.running, demand.hinted, demand.free, demand.ready)
        await pause(database, "queue", QUEUE)
        assert ["stems"] == [demand.queue for demand in await store.dispatching.demand(30, 15)]


async def test_what_waits_in_redis_for_full_slots_is_not_hinted_past(database: Database) -> None:
    """While other queues fill every slot, an old mark is no lost hint: the queue's backlog stays in its order here, and
    a job that comes back from a killed worker does not stand behind all of it in Redis."""
    async with opened(database) as store:
        workers, account = Workers(store.engine), await store.account("ada", 1000)
        hot = await store.account("hot", 1000)
        running = [await store.running(account) for _ in range(2)]
        back = await store.running(hot, queue="stems")  # on a third slot, whose worker is dead
        async with store.database.connection() as connection:
            await connection.execute("UPDATE live SET worker_id = 'dead' WHERE queue = 'stems'")
        backlog = [await store.queued(account, queue="stems") for _ in range(8)]

        async def looked() -> list[UUID]:
            await workers.here(a_card("w1", 2, (QUEUE, "stems")))
            demand = {demand.queue: demand for demand in await store.dispatching.demand(30, 15)}["stems"]
            return await marked(store, demand.free, "stems")

        first = await looked()
        assert backlog[: len(first)] == first
        for _ in range(4):
            await database.advance(timedelta(seconds=20))
            assert set(await looked()) <= set(first)  # repeats only
        await store.settle(hot, back, Ending.LOST_WORKER)
        await store.settle(account, running[0])
        await store.claim(account, first[0])
        await store.settle(account, running[1])
        assert back.job.job_id in await looked()  # room again: before the rest of the backlog
        assert 5 < await store.value("SELECT count(*) FROM due WHERE hinted_at IS NULL AND queue = 'stems'")


async def test_a_worker_that_says_it_is_here_wakes_the_dispatcher_once(database: Database) -> None:
    """At its start: there may be room. Its heartbeats wake nobody; cards of the long gone are forgotten."""
    async with opened(database) as store, database.connection() as listener:
        workers, woken = Workers(store.engine), list[str]()
        await listener.add_listener("fermata_due", lambda *args: woken.append(args[2]))
        for _ in range(3):
            await workers.here(a_card("a"))
        await listener.fetchval("SELECT 1")
        assert ["fermata_due"] == woken
        await database.advance(timedelta(hours=1))
        await workers.here(a_card("b"))
        assert (1, 0) == (await workers.forget(1800), await workers.forget(1800))


# --- beside the books ------------------------------------------------------------------------------------------


async def test_dispatchers_and_duties_never_deadlock_with_claims(database: Database) -> None:
    """Marks are made, forgotten, cleared and rechecked, in any order, over rows that batches claim and return."""
    async with opened(database) as one, opened(database) as other:
        accounts = [await limited(one, 3, f"a{n}") for n in range(6)]
        jobs = [await one.submitted(accounts[n % 6]) for n in range(90)]
        done = asyncio.Event()

        async def again_and_again(*calls: Any) -> None:
            while not done.is_set():
                for call in calls:
                    await call()

        busy = [
            asyncio.create_task(again_and_again(*calls))
            for calls in (
                (one.dispatching.forget_marks, lambda: marked(one, 20)),
                (other.dispatching.recheck_waiting, other.dispatching.forget_marks),
                (lambda: other.dispatching.unhint(jobs[::-1]), lambda: marked(other, 50)),
                (one.dispatching.recheck_waiting,),
            )
        ]
        for turn in range(6):
            store, order = (one, other)[turn % 2], jobs[:: (-1) ** turn]
            claims = await asyncio.gather(*(store.claim(account, job) for account, job in order))
            running = [
                (account, claim) for (account, _), claim in zip(order, claims, strict=True) if type(claim) is Claimed
            ]
            await asyncio.gather(*(store.settle(account, claim, Ending.HANDED_BACK) for account, claim in running))
        done.set()
        await asyncio.gather(*busy)
        assert 90 == await one.value("SELECT count(*) FROM due")
