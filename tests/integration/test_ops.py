"""Pausing, resuming and limiting: what is held, what goes on, and what a resume lets go."""

from __future__ import annotations

import asyncio
from itertools import permutations
from uuid import UUID

import asyncpg
import pytest

from tests.integration.books import ACTOR, Store, opened
from tests.servers import Database
from worker.credits.operations import Claimed, Dropped
from worker.store.errors import Refused, UnknownAccount
from worker.store.ops import Controls, Scope, Switched
from worker.store.reads import Reads

#: What to pause so that a generation of ada's is held.
SCOPES = [(Scope.QUEUE, "generation"), (Scope.KIND, "generation"), (Scope.ACCOUNT, "ada")]


async def waits_for(store: Store) -> dict[UUID, str | None]:
    """Of all due jobs, what the claim that dropped them wrote down."""
    return {row["job_id"]: row["waits_for"] for row in await store.fetch("SELECT job_id, waits_for FROM due")}


@pytest.mark.parametrize(("scope", "name"), SCOPES)
async def test_a_pause_holds_and_a_resume_lets_go(database: Database, scope: Scope, name: str) -> None:
    """Nothing is claimed while it is paused; once it is resumed the dropped job is to be dispatched, and runs."""
    async with opened(database) as store:
        account, controls = await store.account("ada", 100), Controls(store.engine, ["generation"])
        assert Switched(scope, name, True, True, 0) == await controls.pause(scope, name, "upgrade", ACTOR)
        job_id = await store.queued(account)
        assert Dropped.PAUSED == await store.claim(account, job_id)
        assert {job_id: "paused"} == await waits_for(store)
        assert Switched(scope, name, False, True, 1) == await controls.resume(scope, name, ACTOR)
        assert {job_id: None} == await waits_for(store)
        assert isinstance(await store.claim(account, job_id), Claimed)


@pytest.mark.parametrize(("scope", "name"), SCOPES)
async def test_twice_is_once(database: Database, scope: Scope, name: str) -> None:
    """Whoever repeats a pause or resume learns that it was so before."""
    async with opened(database) as store:
        await store.account("ada")
        controls = Controls(store.engine, ["generation"])
        assert not (await controls.resume(scope, name, ACTOR)).changed
        assert (await controls.pause(scope, name, "upgrade", ACTOR)).changed
        assert not (await controls.pause(scope, name, "upgrade", ACTOR)).changed
        assert (await controls.resume(scope, name, ACTOR)).changed


async def test_a_pause_lets_running_jobs_end(database: Database) -> None:
    """It keeps jobs from starting, it doesn't stop them."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        for scope, name in SCOPES:
            await Controls(store.engine, ["generation"]).pause(scope, name, "upgrade", ACTOR)
        await store.settle(account, claimed)
        assert 30 == (await store.buckets(account))["spent"]


@pytest.mark.parametrize(("one", "other"), [*permutations(SCOPES, 2)])
async def test_a_resume_leaves_what_another_pause_holds(
    database: Database, one: tuple[Scope, str], other: tuple[Scope, str]
) -> None:
    """Queue, kind and account are paused each for its own reason: all must be let go."""
    async with opened(database) as store:
        account, controls = await store.account("ada", 100), Controls(store.engine, ["generation"])
        await controls.pause(*one, "upgrade", ACTOR)
        await controls.pause(*other, "overdue", ACTOR)
        job_id = await store.queued(account)
        await store.claim(account, job_id)
        assert 0 == (await controls.resume(*one, ACTOR)).freed
        assert {job_id: "paused"} == await waits_for(store)
        assert 1 == (await controls.resume(*other, ACTOR)).freed


@pytest.mark.parametrize(("scope", "name"), SCOPES)
async def test_a_resume_frees_its_own_only(database: Database, scope: Scope, name: str) -> None:
    """Marks that another pause has left are left to its own resume, and to the dispatcher's recheck."""
    async with opened(database) as store:
        controls = Controls(store.engine, ["generation"])
        for account_id in ("ada", "bob"):
            await store.account(account_id, 100)
            await controls.pause(Scope.ACCOUNT, account_id, "", ACTOR)
        mine, other = await store.queued("ada"), await store.queued("bob", queue="stems", kind="stems")
        await store.claim("ada", mine)
        await store.claim("bob", other)
        async with database.connection() as connection:
            await connection.execute("UPDATE accounts SET paused = false")
        await controls.resume(scope, name, ACTOR)
        assert {mine: None, other: "paused"} == await waits_for(store)


async def test_a_resume_wakes_the_dispatcher(database: Database) -> None:
    """Jobs that were never tried wait for no tick either."""
    async with opened(database) as store, database.connection() as listener:
        await store.account("ada")
        controls = Controls(store.engine, ["generation"])
        await controls.pause(Scope.QUEUE, "generation", "upgrade", ACTOR)
        woken = asyncio.Event()
        await listener.add_listener("fermata_due", lambda *_: woken.set())
        await controls.resume(Scope.QUEUE, "generation", ACTOR)
        async with asyncio.timeout(5):
            await woken.wait()


async def test_a_claim_and_a_resume_of_its_account_wait_for_each_other(database: Database) -> None:
    """A claim that saw the pause and commits late leaves no job behind that nobody wakes."""
    async with opened(database) as store, database.connection() as claiming:
        account, controls = await store.account("ada", 100), Controls(store.engine)
        await controls.pause(Scope.ACCOUNT, account, "", ACTOR)
        job_id = await store.queued(account)
        claim = claiming.transaction()
        await claim.start()
        await claiming.execute("SELECT FROM accounts FOR NO KEY UPDATE")
        await claiming.execute("UPDATE due SET waits_for = 'paused'")
        resuming = asyncio.create_task(controls.resume(Scope.ACCOUNT, account, ACTOR))
        async with database.connection() as watching:
            await until_somebody_waits(watching)
        await claim.commit()
        assert 1 == (await resuming).freed
        assert {job_id: None} == await waits_for(store)


async def until_somebody_waits(watching: asyncpg.Connection) -> None:
    """For a lock, within five seconds."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(5):
        while not await watching.fetchval(waiting):  # noqa: ASYNC110  see below
            await asyncio.sleep(0.005)  # another session's waiting raises no event here


async def test_who_paused_what_and_why_is_on_record(database: Database) -> None:
    """Queues and kinds in their list, accounts by an event."""
    async with opened(database) as store:
        await store.account("ada")
        controls = Controls(store.engine, ["generation"])
        await controls.pause(Scope.QUEUE, "generation", "upgrade", "eve")
        await controls.limit("generation", 7, "joe")
        await controls.pause(Scope.ACCOUNT, "ada", "unpaid", "eve")
        await controls.pause(Scope.ACCOUNT, "ada", "again", "eve")
        await controls.resume(Scope.ACCOUNT, "ada", "joe", "paid")
        [shown] = await controls.controls()
        [queue] = await Reads(store.engine).queues()
        events = await store.fetch("SELECT what, reason, body ->> 'actor' AS actor FROM events ORDER BY seq")
    assert (Scope.QUEUE, "generation", True, 7, "upgrade", "joe") == (
        *(shown.scope, shown.name, shown.paused, shown.running_max, shown.reason, shown.actor),
    )
    assert (True, "upgrade", 7) == (queue.paused, queue.pause_reason, queue.running_max)
    assert [("paused", "unpaid", "eve"), ("resumed", "paid", "joe")] == [tuple(event) for event in events]


async def test_a_limit_is_set_and_taken_away(database: Database) -> None:
    """A pause in between leaves it as it is."""
    async with opened(database) as store:
        controls = Controls(store.engine, ["generation"])
        await controls.limit("generation", 7, ACTOR)
        await controls.pause(Scope.QUEUE, "generation", "", ACTOR)
        assert [7] == [shown.running_max for shown in await controls.controls()]
        await controls.limit("generation", None, ACTOR)
        assert [(None, True)] == [(shown.running_max, shown.paused) for shown in await controls.controls()]


@pytest.mark.parametrize("running_max", [0, -1, 1_000_001])
async def test_a_limit_out_of_bounds_is_refused(database: Database, running_max: int) -> None:
    """No limit of nothing: that is a pause."""
    async with opened(database) as store:
        with pytest.raises(Refused, match="running_max: must be from 1 to 1,000,000; to run none, pause the queue"):
            await Controls(store.engine, ["generation"]).limit("generation", running_max, ACTOR)


async def test_what_nobody_knows_is_refused_by_name(database: Database) -> None:
    """A mistyped name must not leave somebody in the belief that something stands still."""
    async with opened(database) as store:
        controls = Controls(store.engine, ["generation", "stem_split"])
        for asked in (
            controls.pause(Scope.QUEUE, "generations", "", ACTOR),
            controls.resume(Scope.QUEUE, "generations", ACTOR),
            controls.limit("generations", 5, ACTOR),
        ):
            with pytest.raises(Refused, match="queue: no queue 'generations'; there are generation, stem_split"):
                await asked
        with pytest.raises(Refused, match="kind: no kind 'stem'; there are generation, stem_split"):
            await controls.pause(Scope.KIND, "stem", "", ACTOR)
        with pytest.raises(UnknownAccount, match="no account 'nobody'"):
            await controls.pause(Scope.ACCOUNT, "nobody", "", ACTOR)
        assert () == await controls.controls()


async def test_a_queue_is_known_by_its_jobs_and_workers(database: Database) -> None:
    """Also to a process that knows no kinds."""
    async with opened(database) as store:
        await store.queued(await store.account("ada"), queue="gpu", kind="generation")
        controls = Controls(store.engine)
        assert (await controls.pause(Scope.QUEUE, "gpu", "", ACTOR)).changed
        assert (await controls.pause(Scope.KIND, "generation", "", ACTOR)).changed
        with pytest.raises(Refused, match="no kind 'gpu'"):
            await controls.pause(Scope.KIND, "gpu", "", ACTOR)


async def test_a_reason_has_a_bound(database: Database) -> None:
    """A line, not a book."""
    async with opened(database) as store:
        with pytest.raises(Refused, match="reason: must have at most 500 characters"):
            await Controls(store.engine, ["generation"]).pause(Scope.QUEUE, "generation", "x" * 501, ACTOR)
