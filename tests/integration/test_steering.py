"""What ops do to jobs: end a stuck one, cancel and retry many by a filter. Each act is in the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.books import an_output, opened
from tests.integration.cli_support import Fermata
from tests.integration.test_client import a_client, asked
from tests.servers import Database
from worker.client import Client
from worker.credits.operations import Cancel, Claim, Claimed, Fenced, Settle
from worker.credits.outcomes import Ending
from worker.credits.states import JobState
from worker.local.waiting import finished
from worker.steering import ManyDone, Steering, Wanted, in_portions
from worker.store.accounts import Accounts
from worker.store.audit import audit
from worker.store.audit_log import AuditLog
from worker.store.books import Books
from worker.store.compensations import Compensations
from worker.store.erasing import Erasing
from worker.store.errors import Refused, UnknownJob
from worker.store.prices import PriceBooks
from worker.store.workers import WorkerCard, Workers


@asynccontextmanager
async def steered(database: Database, folder: Path) -> AsyncIterator[tuple[Steering, Client]]:
    """A client with one account that has credits, and the acts of ops on it."""
    async with a_client(database, folder) as client:
        engine = client.views._engine
        compensations = Compensations(engine, Books(engine, PriceBooks()))
        yield Steering(client, Workers(engine), AuditLog(engine), compensations), client


async def submitted(client: Client, count: int = 1, **more: Any) -> list[UUID]:
    return [UUID(str((await client.submit(asked(**more), "test")).job_id)) for _ in range(count)]


async def running(client: Client) -> Claimed:
    (job,) = await submitted(client)
    claimed = await client.operations.do(Claim("ada", job, uuids.uuid7(), "w1", 30))
    assert isinstance(claimed, Claimed)
    return claimed


async def sold(client: Client, account: str = "ada") -> UUID:
    """A job that was charged 5 credits."""
    (job,) = await submitted(client, account_id=account)
    claimed = await client.operations.do(Claim(account, job, uuids.uuid7(), "w1", 30))
    assert isinstance(claimed, Claimed)
    outputs = [an_output()]
    await client.operations.do(
        Settle(account, job, claimed.token, Ending.SUCCEEDED, measured=5, outputs=outputs, claimed=claimed)
    )
    return job


async def logged(steering: Steering) -> list[tuple[str, str]]:
    """What ops did, the latest first."""
    entries = (await steering.log.entries()).entries
    return [(entry.what, entry.actor) for entry in entries if entry.what.startswith(("jobs.", "workers."))]


async def test_a_stuck_job_is_ended_refunded_and_its_token_void(database: Database, tmp_path: Path) -> None:
    """In one transaction: failed, nothing charged, all back; whoever still runs it can't settle it any more."""
    async with steered(database, tmp_path) as (steering, client):
        claimed = await running(client)
        job = claimed.job.job_id
        before = await client.reads.balance("ada")
        done = await steering.force_end(job, "hangs since noon", "olga")
        assert (job, "ada", JobState.FAILED, claimed.job.quoted) == (done.id, done.account, done.state, done.refunded)
        after = await client.reads.balance("ada")
        assert (before.spendable + claimed.job.quoted, 0) == (after.spendable, after.grants.held)
        shown = await client.reads.job(job)
        assert ("ended_by_staff", "hangs since noon", 0) == (shown.reason, shown.message, shown.charged)
        late = Settle("ada", job, claimed.token, Ending.SUCCEEDED, measured=5, outputs=[an_output()], claimed=claimed)
        assert Fenced.FENCED is await client.operations.do(late)
        assert [("jobs.force_end", "olga")] == await logged(steering)
        (entry,) = (await steering.log.entries(subject=str(job))).entries
        assert ({"state": "running", "account_id": "ada"}, done.refunded) == (
            entry.before,
            (entry.after or {})["refunded"],
        )
        assert (await audit(client.views._engine)).ok


async def test_a_forced_end_is_our_fault(database: Database, tmp_path: Path) -> None:
    """Also where a cancel was asked for before: what its lot lost meanwhile is made good."""
    async with steered(database, tmp_path) as (steering, client):
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE lots SET expires_at = fermata_now() + interval '1 hour'")
        claimed = await running(client)
        await client.operations.do(Cancel("ada", claimed.job.job_id, "unwanted"))
        await database.advance(timedelta(hours=2))
        done = await steering.force_end(claimed.job.job_id, "stuck", "olga")
        assert JobState.FAILED is done.state
        assert claimed.job.quoted == (await client.reads.balance("ada")).spendable


async def test_only_running_jobs_are_ended_by_force(database: Database, tmp_path: Path) -> None:
    """A queued one is cancelled, an ended one stays as it is, a typing error is none of both."""
    async with steered(database, tmp_path) as (steering, client):
        (job,) = await submitted(client)
        with pytest.raises(Refused, match="does not run, it is queued: cancel it instead"):
            await steering.force_end(job, "stuck", "olga")
        await client.cancel("ada", job, "unwanted")
        with pytest.raises(Refused, match="has ended before: cancelled"):
            await steering.force_end(job, "stuck", "olga")
        with pytest.raises(UnknownJob):
            await steering.force_end(uuids.uuid7(), "stuck", "olga")
        with pytest.raises(Refused, match="reason"):
            await steering.force_end(job, " ", "olga")
        assert [] == await logged(steering)


async def test_many_are_cancelled_by_a_filter_after_a_look(database: Database, tmp_path: Path) -> None:
    """A dry run changes nothing and shows the very jobs; running ones are asked; others' are left alone."""
    async with steered(database, tmp_path) as (steering, client):
        stuck = await running(client)
        queued = await submitted(client, 3)
        wanted = Wanted(account="ada", kind="generation")
        before = await steering.cancel_many(wanted, "bad batch", "olga", dry_run=True)
        assert (4, 0, True) == (before.matched, before.changed, before.dry_run)
        assert ["queued"] * 3 == [(await client.reads.job(job)).state for job in queued]
        assert [] == await logged(steering)
        assert 0 == (await steering.cancel_many(Wanted(queue="stem_split"), "x", "olga", dry_run=False)).matched
        done = await steering.cancel_many(wanted, "bad batch", "olga", dry_run=False)
        assert ({job.id for job in before.jobs}, 4) == ({job.id for job in done.jobs}, done.changed)
        assert {stuck.job.job_id: "cancel asked", **dict.fromkeys(queued, "cancelled")} == {
            job.id: job.outcome for job in done.jobs
        }
        assert ("jobs.cancel_many", "olga") in await logged(steering)
        again = await steering.cancel_many(wanted, "bad batch", "olga", dry_run=False)
        assert [stuck.job.job_id] == [job.id for job in again.jobs]


async def test_many_are_retried_each_once(database: Database, tmp_path: Path) -> None:
    """By state and reason; again it is the same new jobs. Beyond the limit it says that there are more."""
    async with steered(database, tmp_path) as (steering, client):
        jobs = await submitted(client, 3)
        for job in jobs[:2]:
            claimed = await client.operations.do(Claim("ada", job, uuids.uuid7(), "w1", 30))
            await client.operations.do(Settle("ada", job, claimed.token, Ending.ENGINE_ERROR))
        await client.cancel("ada", jobs[2], "unwanted")
        wanted = Wanted(state=JobState.FAILED, reason="engine_error")
        assert 2 == (await steering.retry_many(wanted, "olga", dry_run=True)).matched
        first, again = [await steering.retry_many(wanted, "olga", dry_run=False) for _ in range(2)]
        assert [2, 0] == [first.changed, again.changed]
        assert {job.new_job for job in first.jobs} == {job.new_job for job in again.jobs}
        assert set(jobs[:2]) == {(await client.reads.job(job.new_job)).retry_of for job in first.jobs if job.new_job}
        one = await steering.retry_many(Wanted(state=JobState.FAILED, limit=1), "olga", dry_run=True)
        assert (1, True) == (one.matched, one.more)
        with pytest.raises(Refused, match="must be one of failed, cancelled, refused"):
            await steering.retry_many(Wanted(state=JobState.QUEUED), "olga", dry_run=True)


async def test_many_are_compensated_each_once_and_never_above_its_charge(database: Database, tmp_path: Path) -> None:
    """A part of each charge, rounded up; under one reference once; a second act gives at most the rest."""
    async with steered(database, tmp_path) as (steering, client):
        for _ in range(2):
            await sold(client)
        (free,) = await submitted(client)
        await client.cancel("ada", free, "unwanted")

        async def given(percent: int, reference: str, *, dry_run: bool = False) -> tuple[int, int, int]:
            done = await steering.compensate_many(
                Wanted(account="ada"), percent, reference, "noise", "olga", dry_run=dry_run
            )
            return done.matched, done.changed, done.credits

        before = (await client.reads.balance("ada")).spendable
        assert (3, 0, 6) == await given(50, "monday", dry_run=True)
        assert before == (await client.reads.balance("ada")).spendable
        at_once = await asyncio.gather(*(given(50, "monday") for _ in range(4)))
        assert [(3, 0, 0), (3, 0, 0), (3, 0, 0), (3, 2, 6)] == sorted(at_once)
        assert [(3, 0, 0), (3, 2, 4)] == [await given(50, "monday"), await given(100, "tuesday")]
        assert before + 10 == (await client.reads.balance("ada")).spendable
        assert [("jobs.compensate_many", "olga")] * 6 == (await logged(steering))[:6]
        for percent, reference in ((0, "x"), (101, "x"), (1, "x" * 255), (1, "x\ny")):
            with pytest.raises(Refused, match=r"percent|reference"):
                await given(percent, reference)


async def test_an_account_that_can_not_be_given_harms_no_other(database: Database, tmp_path: Path) -> None:
    """It says why, the others have theirs, the log tells what was given; again, once it can be, gives the rest."""
    async with steered(database, tmp_path) as (steering, client):
        accounts = Accounts(client.views._engine, Books(client.views._engine, PriceBooks()))
        for account in ("bob", "eve"):
            await accounts.create(account, "test")
            await accounts.grant(account, 100, f"start-{account}", "test")
        jobs = {account: await sold(client, account) for account in ("ada", "bob", "eve")}
        async with database.connection(as_owner=True) as owner:
            await owner.execute("ALTER TABLE lots ADD CONSTRAINT no_bob CHECK (account_id <> 'bob') NOT VALID")
        act = (Wanted(kind="generation"), 100, "monday", "noise", "olga")
        done = await steering.compensate_many(*act, dry_run=False)
        assert (3, 2, 1, 10) == (done.matched, done.changed, done.turned_down, done.credits)
        outcomes = {job.id: job.outcome.partition(":")[0] for job in done.jobs}
        assert dict(zip(jobs.values(), ("compensated", "turned down", "compensated"), strict=True)) == outcomes
        assert ("jobs.compensate_many", "olga") == (await logged(steering))[0]
        async with database.connection(as_owner=True) as owner:
            await owner.execute("ALTER TABLE lots DROP CONSTRAINT no_bob")
        again = await steering.compensate_many(*act, dry_run=False)
        assert (1, 0, 5) == (again.changed, again.turned_down, again.credits)
        assert (await audit(client.views._engine)).ok


async def test_any_number_is_done_in_portions(database: Database, tmp_path: Path) -> None:
    """Each portion goes on where the last one ended: none is met twice, none left out; a look counts them all."""
    async with steered(database, tmp_path) as (steering, client):
        jobs = await submitted(client, 7)
        first = await running(client)
        portion = Wanted(account="ada", limit=3)
        look = await steering.cancel_many(portion, "bad batch", "olga", dry_run=True)
        assert (3, 8, 8 * first.job.quoted, True) == (look.matched, look.total, look.total_quoted, look.more)
        behind = await steering.cancel_many(replace(portion, after=look.next), "bad batch", "olga", dry_run=True)
        assert (3, 5) == (behind.matched, behind.total)
        met: list[UUID] = []
        place: str | None = None
        for expected in (3, 3, 2):
            done = await steering.cancel_many(replace(portion, after=place), "bad batch", "olga", dry_run=False)
            assert (expected, expected, None) == (done.matched, done.changed, done.total)
            met += [job.id for job in done.jobs]
            place = done.next
            late = await submitted(client)  # none of those that were looked at: it is left alone
        assert place is None
        assert sorted([*jobs, first.job.job_id]) == sorted(met)
        assert "queued" == (await client.reads.job(late[0])).state
        retried = await in_portions(
            lambda wanted: steering.retry_many(wanted, "olga", dry_run=False),
            Wanted(account="ada", state=JobState.CANCELLED, limit=2),
        )
        assert (7, 7, 0, None, False) == (
            *(retried.matched, retried.changed, retried.turned_down),
            *(retried.next, retried.more),
        )
        for place in ("", "queued", "queued:x", f"lost:{jobs[0]}", f"failed:{jobs[0]}"):
            with pytest.raises(Refused, match="after: must be the `next` of the portion before"):
                await steering.cancel_many(replace(portion, after=place), "x", "olga", dry_run=True)


async def test_compensations_of_any_number_are_given_once_each(database: Database, tmp_path: Path) -> None:
    """In portions of two; the same act again gives nothing more."""
    async with steered(database, tmp_path) as (steering, client):
        for _ in range(5):
            await sold(client)
        act = Wanted(account="ada", state=JobState.SUCCEEDED, limit=2)

        async def given(*, dry_run: bool) -> tuple[int, int, int]:
            done = await in_portions(
                lambda wanted: steering.compensate_many(wanted, 50, "monday", "noise", "olga", dry_run=dry_run), act
            )
            return done.matched, done.changed, done.credits

        look = await steering.compensate_many(act, 50, "monday", "noise", "olga", dry_run=True)
        assert (2, 6, 5, 15) == (look.matched, look.credits, look.total, look.total_credits)
        await steering.compensate_many(act, 50, "monday", "noise", "olga", dry_run=False)
        rest = await steering.compensate_many(act, 50, "monday", "noise", "olga", dry_run=True)
        assert (2, 0, 5, 9) == (rest.matched, rest.credits, rest.total, rest.total_credits)
        assert [(5, 0, 9), (5, 3, 9), (5, 0, 0)] == [await given(dry_run=dry) for dry in (True, False, False)]
        assert (await audit(client.views._engine)).ok


async def test_many_are_narrowed_by_time_and_metadata(database: Database, tmp_path: Path) -> None:
    """Those of the hour that went wrong, those of one album: all others are left alone."""
    async with steered(database, tmp_path) as (steering, client):
        (early,) = await submitted(client, metadata={"album": "blue"})
        await database.advance(timedelta(hours=2))
        blue, red = [(await submitted(client, metadata={"album": album}))[0] for album in ("blue", "red")]
        hour_ago = (await client.reads.job(blue)).created_at - timedelta(hours=1)

        async def found(**more: Any) -> set[UUID]:
            done = await steering.cancel_many(Wanted(account="ada", **more), "x", "olga", dry_run=True)
            return {job.id for job in done.jobs}

        assert {early} == await found(created_before=hour_ago)
        assert {blue, red} == await found(created_from=hour_ago)
        assert {early, blue} == await found(metadata={"album": "blue"})
        assert {blue} == await found(metadata={"album": "blue"}, created_from=hour_ago)
        with pytest.raises(Refused, match="metadata"):
            await steering.cancel_many(Wanted(metadata={"album": "blue"}), "x", "olga", dry_run=True)


async def test_one_that_can_not_be_retried_harms_no_other(database: Database, tmp_path: Path) -> None:
    """It says why; its neighbours go on."""
    async with steered(database, tmp_path) as (steering, client):
        jobs = await submitted(client, 2)
        await asyncio.gather(*(client.cancel("ada", job, "unwanted") for job in jobs))
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE jobs SET kind = 'no_more' WHERE job_id = $1", jobs[0])
        done = await steering.retry_many(Wanted(account="ada", state=JobState.CANCELLED), "olga", dry_run=False)
        assert (2, 1, 1) == (done.matched, done.changed, done.turned_down)


async def test_a_worker_hears_that_it_is_to_drain(database: Database, tmp_path: Path) -> None:
    """With its next sign of life; one that is gone or unknown is refused."""
    async with steered(database, tmp_path) as (steering, client):
        card = WorkerCard("w-7", "host", 1, "1", ["generation"], 2)
        workers = Workers(client.views._engine)
        assert not await workers.here(card)
        await steering.drain_worker("w-7", "olga")
        assert await workers.here(card)
        assert [("workers.drain", "olga")] == await logged(steering)
        await workers.gone("w-7")
        for name in ("w-7", "w-8"):
            with pytest.raises(Refused, match="is alive"):
                await steering.drain_worker(name, "olga")


def test_people_steer_too(fermata: Fermata) -> None:
    """`jobs cancel-many`, `retry-many`, `force-end` and `drain`: the same acts, with a look before."""
    fermata.account("ada", 1000)
    submit = ("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    job = fermata.ok(*submit)["id"]
    look = fermata.ok("jobs", "cancel-many", "--account", "ada", "--reason", "x", "--dry-run")
    assert (1, True, [job]) == (look["matched"], look["dry_run"], [one["id"] for one in look["jobs"]])
    assert "nothing was done" in fermata("jobs", "cancel-many", "--account", "ada", "--reason", "x", "--dry-run").out
    assert "cancel it instead" in fermata("jobs", "force-end", job, "--reason", "stuck").err
    assert 1 == fermata.ok("jobs", "cancel-many", "--account", "ada", "--reason", "x")["changed"]
    retried = fermata.ok("jobs", "retry-many", "--state", "cancelled")
    assert (1, job) == (retried["changed"], fermata.ok("jobs", "show", retried["jobs"][0]["new_job"])["retry_of"])
    narrow = ("--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z", "--metadata", "album=blue")
    for verb in (("cancel-many",), ("compensate-many", "--percent", "50", "--reference", "monday")):
        late = fermata.ok("jobs", *verb, "--account", "ada", "--reason", "x", "--dry-run", *narrow)
        assert (0, True) == (late["matched"], late["dry_run"])
    more = [fermata.ok(*submit)["id"] for _ in range(3)]
    part = ("jobs", "cancel-many", "--account", "ada", "--reason", "x", "--limit", "2")
    look = fermata.ok(*part, "--dry-run")
    assert (2, 4, True) == (look["matched"], look["total"], look["more"])
    assert "4 job(s) match in all" in fermata(*part, "--dry-run").out
    assert 2 == fermata.ok(*part, "--dry-run", "--after", look["next"])["matched"]
    whole = fermata.ok(*part, "--all")
    assert (4, 4, None, []) == (whole["matched"], whole["changed"], whole["next"], whole["jobs"])
    assert {"cancelled"} == {fermata.ok("jobs", "show", job)["state"] for job in more}
    assert "after: must be" in fermata(*part, "--after", "nowhere").err
    assert "no state 'lost'" in fermata("jobs", "retry-many", "--state", "lost").err
    assert "no worker 'w-9' is alive" in fermata("drain", "w-9").err


async def test_the_log_has_why_many_were_stopped_until_they_are_erased(database: Database, tmp_path: Path) -> None:
    """As it was typed, of cancels and compensations; an erasure of the account takes it out."""
    async with steered(database, tmp_path) as (steering, client):
        await sold(client)
        await submitted(client)
        await steering.cancel_many(Wanted(account="ada"), "sent twice", "olga", dry_run=False)
        await steering.compensate_many(Wanted(account="ada"), 50, "monday", "noise", "olga", dry_run=False)

        async def why() -> list[tuple[str, object]]:
            entries = (await steering.log.entries(subject="ada")).entries
            return [(one.what, (one.after or {}).get("reason")) for one in entries if one.what.startswith("jobs.")]

        assert [("jobs.compensate_many", "noise"), ("jobs.cancel_many", "sent twice")] == await why()
        erasing = Erasing(client.views._engine)
        await erasing.begin("ada", "kim", "ticket 4711")
        assert await erasing.log("ada", 0) is not None
        assert [("jobs.compensate_many", None), ("jobs.cancel_many", None)] == await why()


async def test_one_job_is_tried_again_with_a_reason(database: Database, tmp_path: Path) -> None:
    """It stands in the log beside the new job, once however often it is asked."""
    async with steered(database, tmp_path) as (steering, client):
        (job,) = await submitted(client)
        await client.cancel("ada", job, "unwanted")
        first, again = [await steering.retry(job, "it was wanted", "olga") for _ in range(2)]
        assert (first.job_id, False, True) == (again.job_id, first.replayed, again.replayed)
        (entry,) = (await steering.log.entries(subject=str(job))).entries
        told = {"account_id": "ada", "new_job": str(first.job_id), "reason": "it was wanted"}
        assert ("jobs.retry", "olga", told) == (entry.what, entry.actor, entry.after)
        with pytest.raises(Refused, match="reason"):
            await steering.retry(job, " ", "olga")


def test_the_answer_is_no_where_every_job_was_turned_down(fermata: Fermata) -> None:
    """1, in one portion or in all; 0 where one was done, and where nothing matched."""
    fermata.account("ada", 100)
    song = ("generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    for _ in range(2):
        job = fermata.ok("jobs", "submit", *song)["id"]
        fermata.ok("jobs", "cancel", job)
    many = ("jobs", "retry-many", "--state", "cancelled")
    assert 0 == fermata(*many, "--account", "ada", "--kind", "stem_split").code
    finished(_without_a_kind(fermata.database, job))
    assert 0 == fermata(*many, "--dry-run").code
    assert 0 == fermata(*many).code  # one of two
    finished(_without_a_kind(fermata.database))
    for more in ((), ("--all",)):
        answer = fermata(*many, *more)
        assert (1, True) == (answer.code, "0 changed, 2 turned down" in answer.out)


async def _without_a_kind(database: Database, job: str | None = None) -> None:
    """Its request can't be asked again: what it was of is not run any more."""
    async with database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE jobs SET request = '{}' WHERE $1::uuid IS NULL OR job_id = $1::uuid", job)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("cancel-many", "--reason", "x", "--kind", "song"), "kind: no kind 'song'; there are generation, "),
        (
            ("cancel-many", "--reason", "x", "--queue", "song", "--all"),
            "queue: no queue 'song'; there are generation, ",
        ),
        (("retry-many", "--reason", "engine_failur"), "reason: no job ends for 'engine_failur'; there are "),
        (
            ("compensate-many", "--percent", "5", "--reference", "r", "--reason", "x", "--ended-for", "succeded"),
            "ended_for: no job ends for 'succeded'; there are ",
        ),
    ],
)
def test_a_misspelt_filter_is_no_empty_answer(fermata: Fermata, arguments: tuple[str, ...], line: str) -> None:
    """It is named with what there is, before anybody believes that nothing matched."""
    answer = fermata("jobs", *arguments)
    assert 2 == answer.code
    assert answer.complaint.startswith(f"fermata: {line}")


async def test_more_than_a_page_of_jobs_are_stopped_by_one_command(database: Database, fermata: Fermata) -> None:
    """1,100 of them, past every limit of one portion; without narrowing by time."""
    async with opened(database) as store:
        await store.account("ada", 10_000)
        await asyncio.gather(*(store.queued("ada", 1) for _ in range(1_100)))
        look = await asyncio.to_thread(fermata.ok, "jobs", "cancel-many", "--reason", "x", "--dry-run")
        assert (1_000, 1_100) == (look["matched"], look["total"])
        done = await asyncio.to_thread(fermata.ok, "jobs", "cancel-many", "--reason", "x", "--all")
        assert (1_100, 1_100, 0) == (done["matched"], done["changed"], done["turned_down"])
        assert 1_100 == await store.value("SELECT count(*) FROM jobs WHERE state = 'cancelled'")


async def test_a_look_at_all_in_portions_counts_them_once(database: Database, tmp_path: Path) -> None:
    """Else each portion would look at all that follow: a million jobs, five hundred times a million."""
    async with opened(database) as store, steered(database, tmp_path) as (steering, _):
        await store.account("ada", 100)
        for _ in range(5):
            await store.queued("ada", 2)
        totals = []

        async def look(wanted: Wanted) -> ManyDone:
            done = await steering.cancel_many(wanted, "x", "olga", dry_run=True)
            totals.append(done.total)
            return done

        whole = await in_portions(look, Wanted(limit=2))
    assert [5, None, None] == totals
    assert (5, 5, 10, 10) == (whole.matched, whole.total, whole.quoted, whole.total_quoted)
