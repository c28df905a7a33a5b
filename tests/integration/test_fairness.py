"""Fairness: who goes next when many wait. A round has one job of each account; between plans, priority and age."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import event

from tests.integration.books import Store, opened
from tests.servers import Database
from worker.credits.operations import Dropped, Parked
from worker.credits.outcomes import Ending
from worker.store import apply, dispatching
from worker.store import database as opening
from worker.store.driver import Statement
from worker.store.ops import Controls, Scope
from worker.store.turns import Turns

QUEUE = "generation"


async def next_jobs(store: Store, room: int = 1, point_seconds: float = 60) -> list[UUID]:
    """The jobs of one look, in their order."""
    await store.dispatching.ripen()
    return [job for _, job in (await store.dispatching.mark(QUEUE, room, 15, point_seconds)).pairs]


async def taken(store: Store, jobs: list[UUID]) -> list[UUID]:
    """The same jobs, out of the dispatcher's sight as if claimed: an hour later their hints would be repeated."""
    async with store.database.connection() as connection:
        await connection.execute("DELETE FROM due WHERE job_id = ANY($1)", jobs)
    return jobs


async def many(store: Store, account: str, count: int, **more: Any) -> list[UUID]:
    """So many queued jobs, submitted together."""
    return list(await asyncio.gather(*(store.queued(account, **more) for _ in range(count))))


# --- turns -----------------------------------------------------------------------------------------------------


async def test_ten_thousand_jobs_of_one_delay_anothers_single_job_by_one_round(database: Database) -> None:
    """Wherever the long queue has come to, and however many processes submitted it."""
    async with opened(database) as one, opened(database) as other, opened(database) as third:
        await one.account("big")
        await asyncio.gather(*(many(store, "big", 3334) for store in (one, other, third)))
        assert 10_002 == await one.value("SELECT count(DISTINCT turn) FROM due")  # never two in one round
        for n, served in enumerate((0, 1, 250)):
            assert served == len(await next_jobs(one, served))
            single = await one.queued(await one.account(f"small-{n}"))
            assert single in await next_jobs(one, 2)


async def test_accounts_take_turns_whatever_they_queued_and_when(database: Database) -> None:
    """Each look after a round has one of each; whoever comes back after a pause has saved up nothing."""
    async with opened(database) as store:
        for name, count in (("a", 30), ("b", 10), ("c", 3)):
            await many(store, await store.account(name), count)
        owner = {job: name for name, job in await store.fetch("SELECT account_id, job_id FROM due")}
        rounds = [[owner[job] for job in await next_jobs(store, room)] for room in (3, 3, 3, 2, 2)]
        assert [["a", "b", "c"]] * 3 + [["a", "b"]] * 2 == [sorted(each) for each in rounds]
        await many(store, "c", 5)
        owner |= {job: name for name, job in await store.fetch("SELECT account_id, job_id FROM due")}
        assert ["a", "b", "c"] == sorted(owner[job] for job in (await next_jobs(store, 4))[:3])


async def test_a_batch_of_submits_costs_the_same_statements_as_one(database: Database) -> None:
    """However many jobs and accounts are in it."""
    async with opened(database, batch_max=500) as store:
        accounts = [await store.account(f"a{n}") for n in range(50)]
        said: list[str] = []
        event.listen(store.engine.sync_engine, "before_cursor_execute", lambda *call: said.append(call[2]))
        await asyncio.gather(*(store.queued(accounts[n % 50]) for n in range(2000)))
        batches = -(-2000 // 500)
        # replays, book, accounts, turns and the INSERT; the first batch also loads the books of prices and plans
        assert 5 * batches + 2 == len(said), said


async def test_turns_that_were_lost_are_told_by_what_is_queued(database: Database) -> None:
    """A crash of PostgreSQL empties the unlogged table: an account's next job still goes behind its others."""
    async with opened(database) as store, database.connection(as_owner=True) as owner:
        await many(store, await store.account("big"), 5)
        await owner.execute("TRUNCATE turns")
        last = await store.queued("big")
        assert [0, 1, 2, 3, 4, 5] == [row[0] for row in await store.fetch("SELECT turn FROM due ORDER BY turn")]
        assert 5 == await store.value("SELECT turn FROM due WHERE job_id = $1", last)


async def test_turns_below_their_queues_are_forgotten(database: Database) -> None:
    """They decide nothing: the queue's own turn is higher. Others stay."""
    async with opened(database) as store:
        await many(store, await store.account("big"), 20)
        await store.queued(await store.account("small"))
        await next_jobs(store, 10)
        assert 1 == await Turns(store.engine).forget()
        assert ["big"] == [row[0] for row in await store.fetch("SELECT account_id FROM turns")]


async def test_jobs_for_later_take_their_turns_when_their_time_has_come(database: Database) -> None:
    """A thousand booked for one instant stand in no look's way before, and delay nobody by more than a round then."""
    async with opened(database) as store:
        later = await store.value("SELECT fermata_now() + interval '1 hour'")
        await many(store, await store.account("big"), 1200, run_at=later)
        await many(store, await store.account("other"), 40)
        assert 40 == len(await next_jobs(store, 100))
        await database.advance(timedelta(hours=1))
        while await store.dispatching.ripen():
            pass
        assert 1200 == await store.value("SELECT count(DISTINCT turn) FROM due WHERE account_id = 'big'")
        single = await store.queued(await store.account("small"))
        assert single in await next_jobs(store, 2)


# --- coming back -----------------------------------------------------------------------------------------------


async def test_a_retry_goes_ahead_of_what_was_submitted_since(database: Database) -> None:
    """Its account's long queue is not between, and neither is anybody else's later job."""
    async with opened(database) as store:
        first = await store.queued(await store.account("ada", 1000))
        await many(store, "ada", 50)
        await next_jobs(store, 20)
        claimed = await store.claim("ada", first)
        await many(store, await store.account("bob"), 3)
        await store.settle("ada", claimed, Ending.HANDED_BACK)
        assert [first] == await next_jobs(store)


async def test_woken_jobs_keep_their_order_and_go_one_a_round(database: Database) -> None:
    """The eldest at once; a thousand more don't stand before another's single job."""
    async with opened(database) as store:
        await store.account("ada")
        jobs = sorted(await many(store, "ada", 30, on_insufficient="wait"))
        await next_jobs(store, 30)
        answers = await asyncio.gather(*(store.claim("ada", job) for job in jobs))
        assert {Parked} == {type(answer) for answer in answers}
        await store.accounts.grant("ada", 1000, "came", "test")
        bob = await store.queued(await store.account("bob"))
        assert [jobs[0], bob, jobs[1], jobs[2]] == await next_jobs(store, 4)


async def test_a_pause_saves_up_no_turns(database: Database) -> None:
    """Resumed, an account's old backlog goes one a round with the others', not ahead of them all."""
    async with opened(database) as store:
        controls = Controls(store.engine)
        await many(store, await store.account("big"), 50)
        await controls.pause(Scope.ACCOUNT, "big", "", "test")
        for job in await next_jobs(store, 50):
            assert Dropped.PAUSED is await store.claim("big", job)
        for _ in range(3):
            await taken(store, await many(store, await store.account("bob"), 40))
        assert 1 == len(await many(store, "bob", 1))
        assert 1 == len(await next_jobs(store))
        assert 50 == (await controls.resume(Scope.ACCOUNT, "big", "test")).freed
        later = await store.queued("big")
        single = await store.queued(await store.account("small"))
        assert single in await next_jobs(store, 2)
        assert 51 == await store.value("SELECT count(DISTINCT turn) FROM due WHERE account_id = 'big'")
        assert later == await store.value("SELECT job_id FROM due ORDER BY turn DESC LIMIT 1")


# --- priority --------------------------------------------------------------------------------------------------


async def test_the_plans_priority_is_the_jobs(database: Database) -> None:
    """Higher goes first; it is pinned at submit."""
    async with opened(database) as store:
        for name, plan in (("s", "starter"), ("c", "creator"), ("l", "label")):
            await store.accounts.subscribe(await store.account(name), plan, "start", "test")
        jobs = {name: await store.queued(name) for name in ("s", "c", "l")}
        assert [jobs["l"], jobs["c"], jobs["s"]] == await next_jobs(store, 3)
        assert [10, 20, 30] == [row[0] for row in await store.fetch("SELECT priority FROM jobs ORDER BY priority")]


async def test_a_waiting_job_overtakes_a_higher_priority_by_its_age(database: Database) -> None:
    """A point of priority is worth a minute: after 21 minutes ten newcomers of 20 points more let it go first."""
    async with opened(database) as store:
        await store.account("low")
        await store.account("high")
        old = await store.queued("low", priority=10)
        await database.advance(timedelta(minutes=19))
        newer = await store.queued("high", priority=30)
        assert [newer] == await taken(store, await next_jobs(store))
        await database.advance(timedelta(minutes=2))
        await many(store, "high", 10, priority=30)
        assert [old] == await next_jobs(store)


async def test_priority_never_breaks_the_turns_of_one_plan(database: Database) -> None:
    """Old jobs behind a young one of the same priority don't pull it forward past a higher one."""
    async with opened(database) as store:
        old = sorted(await many(store, await store.account("big"), 3, priority=10))
        assert old[:1] == await taken(store, await next_jobs(store))
        await database.advance(timedelta(minutes=30))
        young = await store.queued(await store.account("small"), priority=10)
        high = await store.queued(await store.account("high"), priority=30)
        assert [high, young, *old[1:]] == await next_jobs(store, 4)


async def test_without_a_worth_of_age_the_eldest_goes_first(database: Database) -> None:
    """`priority_point_seconds` 0 turns priority off between plans."""
    async with opened(database) as store:
        low = await store.queued(await store.account("low"), priority=0)
        high = await store.queued(await store.account("high"), priority=100)
        assert [low, high] == await next_jobs(store, 2, point_seconds=0)


# --- cost ------------------------------------------------------------------------------------------------------


async def test_a_look_reads_as_many_rows_as_it_has_room_for(database: Database) -> None:
    """With 500,000 queued: of each priority the next few, by index, and no more."""
    room, priorities = 20, 3
    async with database.connection(as_owner=True) as owner:
        index = await owner.fetchval("SELECT pg_get_indexdef('due_unhinted'::regclass)")
        for name in (
            "unhinted",
            "hinted",
            "waiting",
            "later",
            "ends_by",
        ):  # filled first, indexed then: ten times as fast
            await owner.execute(f"DROP INDEX due_{name}")
        await owner.execute(
            "INSERT INTO due (account_id, job_id, queue, kind, priority, turn, since, not_before, ends_by) "
            "SELECT 'a' || n % 1000, CAST(lpad(to_hex(n), 32, '0') AS uuid), $1, 'k', n % $2, n / 1000, now(), now(), "
            "now() + '1 day' FROM generate_series(1, 500000) AS n",
            *(QUEUE, priorities),
        )
        await owner.execute(index)
        await owner.execute("ANALYZE due")
        mark = Statement(str(dispatching._MARK))
        values = {"queue": QUEUE, "room": room, "repeat": 15.0, "point": 60.0}
        await owner.execute(opening._BY_KEY.replace("LOCAL ", "").lstrip("; "))
        plan = await owner.fetchval(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {mark.sql}", *(values[name] for name in mark.names)
        )
        scans = [node for node in _nodes(json.loads(plan)[0]["Plan"]) if "Scan" in node["Node Type"]]
        of_due = [node for node in scans if node.get("Relation Name") == "due"]
        assert {"Index Scan", "Index Only Scan", "Tid Scan"} >= {node["Node Type"] for node in of_due}, plan
        read = sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in of_due
        )
        assert room <= read <= (priorities + 1) * room + priorities + 1, plan


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


async def test_the_next_of_a_full_account_is_found_by_index(database: Database) -> None:
    """However many of its jobs wait for its limit, the end of one reads as many as may run, in their order."""
    async with opened(database) as store, database.connection(as_owner=True) as owner:
        await store.account("ada", 1000)
        await owner.execute("UPDATE accounts SET running_max = 2")
        await owner.execute(
            "INSERT INTO due (account_id, job_id, queue, kind, priority, turn, since, not_before, ends_by, waits_for) "
            "SELECT 'ada', gen_random_uuid(), $1, 'k', 0, n, now(), now(), now() + interval '1 day', 'account_limit' "
            "FROM generate_series(1, 20000) AS n",
            QUEUE,
        )
        await owner.execute("ANALYZE due")
        plan = await owner.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {apply._MAKE_ROOM.sql}", ["ada"])
        scans = [node for node in _nodes(json.loads(plan)[0]["Plan"]) if node.get("Alias") == "w"]
        assert [("Index Scan", 2)] == [(node["Node Type"], node["Actual Rows"]) for node in scans], plan
        freed = await store.fetch("SELECT turn FROM due WHERE waits_for IS NULL ORDER BY turn")
        assert [1, 2] == [row[0] for row in freed]
