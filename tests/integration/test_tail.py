"""Following jobs: every step is told once, also those whose transactions commit late."""

from __future__ import annotations

import json

from tests.integration.books import opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.local.waiting import finished
from worker.store.reads_tail import Tail


async def test_each_step_is_told_once(database: Database) -> None:
    """What started and what ended since the first look, of the account that was asked for."""
    async with opened(database) as store:
        for account in ("ada", "bob"):
            await store.account(account, 100)
        await store.running("ada", 1)  # before anybody looked
        tail, hers = Tail(store.engine), Tail(store.engine, "ada")
        assert [] == await tail.steps() == await hers.steps()
        first, other = await store.running("ada", 10), await store.running("bob", 10)
        both = {first.job.job_id, other.job.job_id}
        assert [("running", both)] == [("running", {step.job for step in await tail.steps()})]
        await store.settle("ada", first, measured=7)
        (ended,) = await tail.steps()
        assert (first.job.job_id, "succeeded", "succeeded", 7) == (ended.job, ended.state, ended.reason, ended.charged)
        assert [] == await tail.steps()
        assert {first.job.job_id} == {step.job for step in await hers.steps()}


async def test_a_step_that_commits_late_is_told_too(database: Database) -> None:
    """Its time is before the last one told."""
    async with opened(database) as store, database.connection(as_owner=True) as late:
        await store.account("ada", 100)
        tail = Tail(store.engine)
        await tail.steps()
        claimed = await store.running("ada", 10)
        transaction = late.transaction()
        await transaction.start()
        await late.execute(
            "INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged) "
            "VALUES ('bob', fermata_now(), 'ended', gen_random_uuid(), 'failed', 'k', 'k', 'engine_error', 0)"
        )
        await store.settle("ada", claimed)
        assert ["succeeded"] == [step.state for step in await tail.steps()]
        await transaction.commit()
        assert ["failed"] == [step.state for step in await tail.steps()]


def test_people_see_the_overview_and_follow_jobs(fermata: Fermata) -> None:
    """`queues` has the verdict, the pace and what is held beside its lists; `jobs tail` is a line a step."""

    async def busy() -> None:
        async with opened(fermata.database) as store:
            await store.account("ada", 100)
            await store.running("ada", 10)

    finished(busy())
    shown = fermata.ok("queues")
    assert {"queues", "workers", "verdict", "warnings", "credits", "pace", "pauses"} == set(shown)
    assert (10, 1) == (shown["credits"]["held"], shown["queues"][0]["running"])
    out = fermata("queues").out
    assert "10 credits are held" in out
    assert "! No scheduler has ever run on this database: no job will start." in out
    answer = fermata("jobs", "tail", "--seconds", "1", "--json")
    assert (0, []) == (answer.code, [json.loads(line) for line in answer.out.splitlines()])
