"""Leases: renewed together, revived while the token matches, and never a reason to wait for anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import uuid_utils.compat as uuids

from tests.integration.books import Store, opened
from tests.servers import Database
from worker.credits.operations import Cancel, Claimed, Ended, Fenced, Requeued, Settle
from worker.credits.outcomes import Ending
from worker.credits.states import JobState
from worker.store.leases import Held, Lapsed, Renewal, Standing

NONE: frozenset[Any] = frozenset()


def held_of(account: str, claimed: Claimed) -> Held:
    return Held(account, claimed.job.job_id, claimed.token)


async def lease_seconds(store: Store, held: Held) -> float:
    """How long the lease still runs."""
    sql = "SELECT extract(epoch FROM lease_until - fermata_now())::float FROM live WHERE token = $1"
    return float(await store.value(sql, held.token))


async def running(store: Store, count: int = 1, account: str = "ada", **more: Any) -> list[Held]:
    """Jobs that run."""
    await store.account(account, 10_000)
    return [held_of(account, await store.running(account, **more)) for _ in range(count)]


async def test_all_leases_of_a_process_are_renewed_together(database: Database) -> None:
    """In one call, for as long as was asked."""
    async with opened(database) as store:
        held = await running(store, 5)
        assert Renewal(NONE, NONE) == await store.leases.renew(held, 500)
        for one in held:
            assert 490 < await lease_seconds(store, one) <= 500
        assert Renewal(NONE, NONE) == await store.leases.renew([], 30)


async def test_a_lapsed_lease_is_revived_while_its_token_matches(database: Database) -> None:
    """A worker that was away for long and was not reaped goes on as if nothing had been."""
    async with opened(database) as store:
        (held,) = await running(store)
        await database.advance(timedelta(hours=1))
        assert [held.token] == [one.token for one in await store.leases.lapsed(10, 0)]
        assert Renewal(NONE, NONE) == await store.leases.renew([held], 30)
        assert [] == await store.leases.lapsed(10, 0)
        reaping = Settle("ada", held.job_id, held.token, Ending.LOST_WORKER, reap_grace_seconds=0)
        assert Fenced.FENCED is await store.operations.do(reaping)


async def test_a_reaping_that_comes_too_late_is_none(database: Database) -> None:
    """What a reaper saw may be long ago: the job was reaped by another and runs again, under another token."""
    async with opened(database) as store:
        (held,) = await running(store)
        await database.advance(timedelta(hours=1))
        (seen,) = await store.leases.lapsed(10, 3600)
        reaping = Settle("ada", seen.job_id, seen.token, Ending.LOST_WORKER, reap_grace_seconds=3600)
        assert isinstance(await store.operations.do(reaping), Requeued)
        again = held_of("ada", await store.claim("ada", held.job_id))
        assert Fenced.FENCED is await store.operations.do(reaping)
        assert Standing.RUNNING is await store.leases.standing(again)


async def test_a_token_that_is_not_the_jobs_any_more_is_reported_lost(database: Database) -> None:
    """Its neighbours are renewed; the new holder is not disturbed."""
    async with opened(database) as store:
        mine, lost = await running(store, 2)
        await database.advance(timedelta(hours=1))
        await store.leases.renew([mine], 30)
        reaping = Settle("ada", lost.job_id, lost.token, Ending.LOST_WORKER, reap_grace_seconds=3600)
        assert isinstance(await store.operations.do(reaping), Requeued)
        again = await store.claim("ada", lost.job_id)
        before = await lease_seconds(store, held_of("ada", again))
        assert Renewal(frozenset({lost.token}), NONE) == await store.leases.renew([mine, lost], 900)
        assert before >= await lease_seconds(store, held_of("ada", again))
        assert 890 < await lease_seconds(store, mine)
        assert Standing.SETTLED is await store.leases.standing(lost)
        assert Standing.RUNNING is await store.leases.standing(held_of("ada", again))
        assert Standing.NOT_OURS is await store.leases.standing(Held("ada", lost.job_id, uuids.uuid7()))


async def test_a_lease_that_is_being_settled_is_skipped_and_counts_as_renewed(database: Database) -> None:
    """A renewal waits for nobody, and stops no job that somebody is just writing the end of."""
    async with opened(database) as store, database.connection() as settling:
        locked, free = await running(store, 2)
        transaction = settling.transaction()
        await transaction.start()
        await settling.execute("SELECT 1 FROM live WHERE token = $1 FOR UPDATE", locked.token)
        async with asyncio.timeout(2):
            assert Renewal(NONE, NONE) == await store.leases.renew([locked, free], 900)
            await store.leases.report([(locked, 0.5, "half"), (free, 0.5, "half")])
        await transaction.rollback()
        assert await lease_seconds(store, locked) < 31
        assert 890 < await lease_seconds(store, free)
        assert 0.5 == await store.value("SELECT sum(progress) FROM live")


async def test_a_cancel_comes_back_with_the_renewal(database: Database) -> None:
    """Also where the row is skipped; a finished result beats it all the same."""
    async with opened(database) as store:
        wanted, unwanted = await running(store, 2)
        await store.operations.do(Cancel("ada", unwanted.job_id, "enough"))
        assert Renewal(NONE, frozenset({unwanted.token})) == await store.leases.renew([wanted, unwanted], 30)
        assert "enough" == await store.value("SELECT cancel_reason FROM live WHERE token = $1", unwanted.token)


async def test_asking_twice_to_cancel_keeps_the_first_reason(database: Database) -> None:
    """And its time."""
    async with opened(database) as store:
        (held,) = await running(store)
        await store.operations.do(Cancel("ada", held.job_id, "first"))
        first = await store.value("SELECT cancel_asked_at FROM live")
        await store.operations.do(Cancel("ada", held.job_id, "second"))
        (row,) = await store.fetch("SELECT cancel_asked_at, cancel_reason FROM live")
        assert (first, "first") == tuple(row)


async def test_what_has_lapsed_is_found_and_what_lives_is_not(database: Database) -> None:
    """By the lease, or by `ends_by` and the grace after it; oldest first, up to a limit."""
    async with opened(database) as store:
        await store.account("ada", 1000)
        overdue = held_of("ada", await store.running("ada", job_seconds=60.0))
        lapsed = held_of("ada", await store.running("ada"))
        living = held_of("ada", await store.running("ada"))
        await database.advance(timedelta(seconds=100))
        await store.leases.renew([overdue, living], 300)
        named = [Lapsed("ada", held.job_id, held.token) for held in (lapsed, overdue)]
        assert named[:1] == await store.leases.lapsed(10, 45)
        assert named == await store.leases.lapsed(10, 30)
        assert named[:1] == await store.leases.lapsed(1, 30)


async def test_queued_and_waiting_jobs_past_their_time_are_found(database: Database) -> None:
    """Running ones are the leases' business."""
    async with opened(database) as store:
        await store.account("ada", 10)
        soon: dict[str, Any] = {"job_seconds": 60.0}
        queued = await store.queued("ada", **soon)
        waiting = await store.queued("ada", quoted=50, on_insufficient="wait", **soon)
        await store.claim("ada", waiting)
        await store.running("ada", **soon)
        await store.queued("ada")
        assert [] == await store.leases.overdue(10)
        await database.advance(timedelta(seconds=61))
        assert {("ada", queued), ("ada", waiting)} == set(await store.leases.overdue(10))


async def test_what_an_engine_remembers_is_handed_to_the_next_attempt(database: Database) -> None:
    """Under its token only."""
    async with opened(database) as store:
        (held,) = await running(store)
        assert await store.leases.remember(held, {"task": "t-1"})
        assert not await store.leases.remember(Held("ada", held.job_id, uuids.uuid7()), {"task": "wrong"})
        await store.operations.do(Settle("ada", held.job_id, held.token, Ending.HANDED_BACK))
        again = await store.claim("ada", held.job_id)
        assert {"task": "t-1"} == again.order.engine_state
        await store.operations.do(Settle("ada", held.job_id, again.token, Ending.HANDED_BACK))
        third = await store.claim("ada", held.job_id)
        assert (3, {"task": "t-1"}) == (third.attempt, third.order.engine_state)
        assert not await store.leases.remember(held, {"task": "late"})


@pytest.mark.parametrize("stage", ["nul \0 inside", "half \ud800 a character"])
async def test_odd_words_of_an_engine_stop_no_report(database: Database, stage: str) -> None:
    """One job's stage can't keep the progress of the others from being written; fractions stay within 0 and 1."""
    async with opened(database) as store:
        held = await running(store, 4)
        fractions = [0.25, 7.0, -1.0, float("nan")]
        await store.leases.report([(one, f, stage) for one, f in zip(held, fractions, strict=True)])
        rows = await store.fetch("SELECT progress, stage FROM live ORDER BY job_id")
        assert [0.25, 1.0, 0.0, 0.0] == [row["progress"] for row in rows]
        assert {stage.replace("\0", "").replace("\ud800", "?")} == {row["stage"] for row in rows}


@pytest.mark.parametrize("message", ["nul \0 inside", "half \ud800 a character", "x" * 100_000])
async def test_odd_words_of_an_engine_keep_no_job_from_its_end(database: Database, message: str) -> None:
    """The end of a run is written whatever an engine or a provider said."""
    async with opened(database) as store:
        (held,) = await running(store)
        answer = await store.operations.do(Settle("ada", held.job_id, held.token, Ending.ENGINE_ERROR, message=message))
        assert Ended(JobState.FAILED, Ending.ENGINE_ERROR, 0) == answer
        said = message.replace("\0", "").replace("\ud800", "?")
        for table in ("jobs", "attempts"):
            assert said == await store.value(f"SELECT message FROM {table}")


async def test_renewals_and_settles_of_the_same_jobs_never_deadlock(database: Database) -> None:
    """Renewed in any order by several processes while they are settled in batches."""
    async with opened(database) as one, opened(database) as other:
        held = await running(one, 60)
        done = asyncio.Event()

        async def renew(store: Store, names: Sequence[Held]) -> None:
            while not done.is_set():
                await store.leases.renew(names, 30)
                await store.leases.report([(name, 0.5, "on") for name in names])

        renewing = [
            asyncio.create_task(renew(store, names))
            for store, names in ((one, held), (other, held[::-1]), (other, held[::2] + held[1::2]))
        ]
        for part in range(0, 60, 10):
            answers = await asyncio.gather(
                *(
                    one.operations.do(Settle("ada", name.job_id, name.token, Ending.CANCELLED_RUNNING))
                    for name in held[part : part + 10]
                )
            )
            assert [0] * 10 == [answer.charged for answer in answers]
        done.set()
        await asyncio.gather(*renewing)
