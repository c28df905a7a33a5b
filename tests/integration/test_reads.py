"""What people are told of accounts, jobs and queues, on a real database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids
from sqlalchemy import text

from tests.integration.books import ACTOR, Store, an_output, opened
from tests.servers import Database
from worker.cli import jobs_shown
from worker.cli.output import rendered
from worker.credits.operations import Cancel
from worker.credits.outcomes import Ending
from worker.credits.prices import Line, Usage
from worker.credits.states import JobState
from worker.store.errors import LedgerUnavailable, Refused, UnknownAccount, UnknownJob
from worker.store.past_jobs import PastJobs
from worker.store.reads import Reads
from worker.store.reads_job_lists import JobsPage
from worker.store.reads_jobs import WaitingFor
from worker.store.reads_queues import QueueShown, WorkerState
from worker.store.reads_receipts import LotGiven
from worker.store.snapshots import snapshot
from worker.store.workers import WorkerCard, Workers

HOUR = timedelta(hours=1)


def in_(delta: timedelta) -> datetime:
    """A time to come, for expiries whose exact instant doesn't matter."""
    return datetime.now(UTC) + delta


async def execute(store: Store, sql: str, *values: Any) -> None:
    """Bring about what no operation of this store does yet."""
    async with store.database.connection(as_owner=True) as connection:
        await connection.execute(sql, *values)


# --- balances --------------------------------------------------------------------------------------------------


async def test_a_balance_has_the_public_keys(database: Database) -> None:
    """The keys of the document are a promise: none is ever taken away."""
    async with opened(database) as store:
        await store.account("ada")
        balance = asdict(await Reads(store.engine).balance("ada"))
    promised = {"account", "subscription", "topup", "grants", "spendable", "debt", "next_refill_at"}
    promised |= {"plan", "next_plan", "status", "active_until", "forecast", "spent"}
    assert promised == balance.keys()
    assert {"available", "held", "expires_at"} == balance["subscription"].keys()
    assert {"available", "held", "frozen", "frozen_until"} == balance["topup"].keys()


async def test_a_balance_tells_each_source_apart(database: Database) -> None:
    """Subscription, top-ups and grants each say what is available and held; spendable is what is available of all."""
    async with opened(database) as store:
        account = await store.account("ada", 50)
        subscribed = await store.accounts.subscribe(account, "starter", "s-1", ACTOR)
        await store.accounts.topup(account, "t-1", ACTOR, amount=200)
        await store.running(account, quoted=subscribed.credits + 30)
        balance = await Reads(store.engine).balance(account)
    # The cycle's lot expires first, then the two that never do, by age: the grant came before the top-up.
    assert (0, subscribed.credits) == (balance.subscription.available, balance.subscription.held)
    assert (20, 30) == (balance.grants.available, balance.grants.held)
    assert (200, 0, 0, None) == (
        balance.topup.available,
        balance.topup.held,
        balance.topup.frozen,
        balance.topup.frozen_until,
    )
    assert 220 == balance.spendable
    assert subscribed.cycle_ends_at == balance.subscription.expires_at == balance.next_refill_at


async def test_expired_credits_are_gone_though_nobody_swept_them(database: Database) -> None:
    """A balance is judged by the database's clock, not by what a duty has written."""
    async with opened(database) as store:
        account = await store.account("ada", 50, expires_at=in_(HOUR))
        before = await Reads(store.engine).balance(account)
        await database.advance(2 * HOUR)
        after = await Reads(store.engine).balance(account)
        assert 50 == await store.value("SELECT available FROM lots")
    assert (50, 50, True) == (before.spendable, before.grants.available, before.grants.expires_at is not None)
    assert (0, 0, None) == (after.spendable, after.grants.available, after.grants.expires_at)


async def test_an_expiry_is_shown_of_what_can_still_expire(database: Database) -> None:
    """A gift that is all spent has no end to be watched."""
    async with opened(database) as store:
        account = await store.account("ada", 50, expires_at=in_(HOUR))
        await store.settle(account, await store.running(account, quoted=50))
        balance = await Reads(store.engine).balance(account)
    assert (0, None) == (balance.grants.available, balance.grants.expires_at)


async def test_top_ups_freeze_with_the_subscription_and_are_gone_after_the_grace(database: Database) -> None:
    """A lapse freezes what was bought for 30 days; frozen credits are shown, not spendable, and then gone."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.subscribe(account, "starter", "s-1", ACTOR)
        await store.accounts.topup(account, "t-1", ACTOR, amount=200)
        lapse = (await store.accounts.cancel(account, "c-1", ACTOR)).active_until
        assert lapse is not None
        await database.advance(timedelta(days=32))
        frozen = await Reads(store.engine).balance(account)
        await database.advance(timedelta(days=30))
        gone = await Reads(store.engine).balance(account)
    assert (0, 200, lapse + timedelta(days=30)) == (
        frozen.topup.available,
        frozen.topup.frozen,
        frozen.topup.frozen_until,
    )
    assert (0, None) == (frozen.spendable, frozen.next_refill_at)
    assert (0, 0, None) == (gone.topup.available, gone.topup.frozen, gone.topup.frozen_until)


async def test_the_grace_counts_from_a_purchase_after_the_lapse(database: Database) -> None:
    """A lot bought on a lapsed account is born frozen, and has its whole grace."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.subscribe(account, "starter", "s-1", ACTOR)
        await store.accounts.cancel(account, "c-1", ACTOR, at_once=True)
        await database.advance(timedelta(days=29))
        await store.accounts.topup(account, "t-1", ACTOR, amount=200)
        bought_at = await store.value("SELECT created_at FROM lots WHERE source = 'topup'")
        balance = await Reads(store.engine).balance(account)
    assert (200, bought_at + timedelta(days=30)) == (balance.topup.frozen, balance.topup.frozen_until)


async def test_who_never_subscribed_has_frozen_top_ups_without_an_end(database: Database) -> None:
    """There is no lapse to count from; the credits are shown, and wait for a subscription."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.topup(account, "t-1", ACTOR, amount=200)
        balance = await Reads(store.engine).balance(account)
    assert (0, 200, None, 0) == (
        balance.topup.available,
        balance.topup.frozen,
        balance.topup.frozen_until,
        balance.spendable,
    )


async def test_no_refill_follows_a_subscription_that_ends_with_its_cycle(database: Database) -> None:
    """Cancelled to the end of the cycle: its credits stay until then, and nothing follows."""
    async with opened(database) as store:
        account = await store.account("ada")
        subscribed = await store.accounts.subscribe(account, "starter", "s-1", ACTOR)
        await store.accounts.cancel(account, "c-1", ACTOR)
        balance = await Reads(store.engine).balance(account)
    assert (subscribed.credits, None) == (balance.spendable, balance.next_refill_at)


async def test_a_debt_is_the_sum_of_what_is_owed_and_paid(database: Database) -> None:
    """A chargeback of spent credits is owed until top-ups have paid it."""
    async with opened(database) as store:
        account = await store.account("ada")
        debt = "INSERT INTO debts (account_id, amount, cause, at, actor) VALUES ('ada', $1, $2, fermata_now(), 'test')"
        await execute(store, debt, 70, "chargeback")
        await execute(store, debt, -20, "paid")
        balance = await Reads(store.engine).balance(account)
    assert 50 == balance.debt


async def test_credits_that_were_charged_back_are_not_spendable(database: Database) -> None:
    """The balance and a reservation agree on what may be drawn on."""
    async with opened(database) as store:
        account = await store.account("ada", 50)
        await execute(store, "UPDATE lots SET charged_back = true")
        balance = await Reads(store.engine).balance(account)
    assert 0 == balance.spendable


async def test_nobody_has_no_balance_and_no_journal(database: Database) -> None:
    """An account that doesn't exist is an error, not an empty answer."""
    async with opened(database) as store:
        reads = Reads(store.engine)
        for asked in (reads.balance("nobody"), reads.journal("nobody"), reads.jobs("nobody")):
            with pytest.raises(UnknownAccount, match="nobody"):
                await asked


async def test_the_journal_is_read_in_pages_without_gaps(database: Database) -> None:
    """Every movement of credits, in order, each once, with the lot's source and the job."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        await store.settle(account, claimed, measured=20)
        reads = Reads(store.engine)
        first = await reads.journal(account, limit=2)
        assert first.next is not None
        second = await reads.journal(account, after_seq=first.next, limit=2)
    job = claimed.job.job_id
    assert [
        ("grant", "grant", 100, None),
        ("reserve", "grant", 30, job),
        ("commit", "grant", 20, job),
        ("refund", "grant", 10, job),
    ] == [(entry.move, entry.source, entry.amount, entry.job) for entry in (*first.entries, *second.entries)]
    assert (None, 2, 2) == (second.next, len(first.entries), len(second.entries))


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_page_has_a_bound(database: Database, limit: int) -> None:
    """Nobody asks for a million rows at once."""
    async with opened(database) as store:
        reads = Reads(store.engine)
        for asked in (reads.jobs(limit=limit), reads.journal("ada", limit=limit)):
            with pytest.raises(Refused, match="limit"):
                await asked


# --- one job ---------------------------------------------------------------------------------------------------


async def test_a_job_is_shown_through_its_life(database: Database) -> None:
    """Queued, running and succeeded, with what was reserved, charged and returned."""
    async with opened(database) as store:
        account, reads = await store.account("ada", 100), Reads(store.engine)
        job_id = await store.queued(account, quoted=30)
        queued = await reads.job(job_id)
        claimed = await store.claim(account, job_id)
        await execute(store, "UPDATE live SET progress = 0.25, stage = 'singing'")
        running = await reads.job(job_id)
        song = an_output(seconds=10)
        await store.settle(account, claimed, measured=20, outputs=[song])
        ended = await reads.job(job_id, account)
    assert ("ada", "generation", JobState.QUEUED, 30) == (queued.account, queued.kind, queued.state, queued.quoted)
    assert (0, 0, 0, 0, 0.0) == (queued.attempts, queued.reserved, queued.charged, queued.refunded, queued.progress)
    assert (JobState.RUNNING, 1, 30, 0, 0, 0.25, "singing", None) == (
        *(running.state, running.attempts, running.reserved, running.charged, running.refunded),
        *(running.progress, running.stage, running.waiting_for),
    )
    assert (JobState.SUCCEEDED, 30, 20, 10, 1.0, "succeeded", None, False) == (
        *(ended.state, ended.reserved, ended.charged, ended.refunded),
        *(ended.progress, ended.reason, ended.waiting_for, ended.partial),
    )
    assert [(song.artifact_id, "song", 10.0)] == [(out.artifact, out.name, out.seconds) for out in ended.outputs]


async def test_a_shown_job_has_the_public_keys(database: Database) -> None:
    """The keys of the document are a promise: none is ever taken away."""
    async with opened(database) as store:
        shown = asdict(await Reads(store.engine).job(await store.queued(await store.account("ada"))))
    promised = {"id", "account", "kind", "state", "quoted", "book", "replayed", "attempts", "reserved", "charged"}
    promised |= {"refunded", "partial", "reason", "waiting_for", "outputs", "progress"}
    assert set() == promised - shown.keys()


async def test_a_failed_job_shows_that_all_came_back(database: Database) -> None:
    """Nothing charged, everything returned, and why."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        await store.settle(account, claimed, Ending.ENGINE_ERROR, message="no sound")
        shown = await Reads(store.engine).job(claimed.job.job_id)
    assert (JobState.FAILED, 30, 0, 30, "engine_error", "no sound", ()) == (
        *(shown.state, shown.reserved, shown.charged, shown.refunded, shown.reason, shown.message, shown.outputs),
    )


async def test_a_job_of_another_account_is_unknown(database: Database) -> None:
    """Whoever may see one account learns nothing of another's jobs, not even that they exist."""
    async with opened(database) as store:
        job_id = await store.queued(await store.account("ada"))
        await store.account("bob")
        reads = Reads(store.engine)
        for asked in (reads.job(job_id, "bob"), reads.receipt(job_id, "bob"), reads.job(uuids.uuid7())):
            with pytest.raises(UnknownJob):
                await asked


async def _run_at(store: Store) -> UUID:
    return await store.queued("ada", run_at=in_(HOUR))


async def _backoff(store: Store) -> UUID:
    claimed = await store.running("ada")
    await store.settle("ada", claimed, Ending.ENGINE_FAILURE, backoff_first_seconds=600.0, backoff_max_seconds=600.0)
    return claimed.job.job_id


async def _paused_account(store: Store) -> UUID:
    await execute(store, "UPDATE accounts SET paused = true")
    return await store.queued("ada")


async def _paused_queue(store: Store) -> UUID:
    await _control(store, "queue", paused=True)
    return await store.queued("ada")


async def _paused_kind(store: Store) -> UUID:
    await _control(store, "kind", paused=True)
    return await store.queued("ada")


async def _credits(store: Store) -> UUID:
    job_id = await store.queued("ada", quoted=1000, on_insufficient="wait")
    await store.claim("ada", job_id)
    return job_id


async def _account_limit(store: Store) -> UUID:
    await store.running("ada")
    await execute(store, "UPDATE accounts SET running_max = 1")
    return await store.queued("ada")


async def _queue_limit(store: Store) -> UUID:
    await store.running("ada")
    await _control(store, "queue", running_max=1)
    return await store.queued("ada")


async def _no_worker(store: Store) -> UUID:
    return await store.queued("ada", queue="stems")


async def _lost_worker(store: Store) -> UUID:
    await store.database.advance(timedelta(seconds=31))
    return await store.queued("ada")


async def _draining_worker(store: Store) -> UUID:
    await execute(store, "UPDATE workers SET draining = true")
    return await store.queued("ada")


async def _no_slot(store: Store) -> UUID:
    await store.running("ada")
    await store.running("ada")
    return await store.queued("ada")


async def _hinted(store: Store) -> UUID:
    job_id = await store.queued("ada")
    await store.dispatching.mark("generation", 10, 15)
    return job_id


async def _not_dispatched(store: Store) -> UUID:
    return await store.queued("ada")


async def _control(store: Store, scope: str, *, paused: bool = False, running_max: int | None = None) -> None:
    await execute(
        store,
        "INSERT INTO controls (scope, name, paused, running_max, at, actor) "
        "VALUES ($1, 'generation', $2, $3, fermata_now(), 'test')",
        *(scope, paused, running_max),
    )


@pytest.mark.parametrize(
    ("arranged", "expected"),
    [
        (_run_at, WaitingFor.RUN_AT),
        (_backoff, WaitingFor.BACKOFF),
        (_paused_account, WaitingFor.PAUSED),
        (_paused_queue, WaitingFor.PAUSED),
        (_paused_kind, WaitingFor.PAUSED),
        (_credits, WaitingFor.CREDITS),
        (_account_limit, WaitingFor.ACCOUNT_LIMIT),
        (_queue_limit, WaitingFor.QUEUE_LIMIT),
        (_no_worker, WaitingFor.NO_WORKER),
        (_lost_worker, WaitingFor.NO_WORKER),
        (_draining_worker, WaitingFor.NO_WORKER),
        (_no_slot, WaitingFor.SLOT),
        (_hinted, WaitingFor.SLOT),
        (_not_dispatched, WaitingFor.NOT_DISPATCHED),
    ],
)
async def test_a_job_says_what_it_waits_for(database: Database, arranged: Any, expected: WaitingFor) -> None:
    """Each reason is told apart from the others, with a worker of two slots on its queue."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await Workers(store.engine).here(WorkerCard("w1", "host", 1, "0", ["generation"], 2))
        shown = await Reads(store.engine).job(await arranged(store))
    assert expected == shown.waiting_for


# --- lists -----------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_by_state_wherever_they_stand(database: Database) -> None:
    """Each state finds its jobs, of one account and of all."""
    async with opened(database) as store:
        account, reads = await store.account("ada", 100), Reads(store.engine)
        await store.account("bob", 100)
        expected = {
            "queued": await store.queued(account),
            "running": (await store.running(account)).job.job_id,
            "waiting": await _credits(store),
            "succeeded": await _ended(store, Ending.SUCCEEDED),
            "failed": await _ended(store, Ending.ENGINE_ERROR),
            "cancelled": await store.queued(account),
            "refused": await store.queued(account, quoted=1000),
        }
        await store.operations.do(Cancel(account, expected["cancelled"], "changed my mind"))
        await store.claim(account, expected["refused"])
        for state, job_id in expected.items():
            for page in (await reads.jobs(state=state), await reads.jobs(account, state)):
                assert [(job_id, state)] == [(job.id, job.state) for job in page.jobs]
            assert () == (await reads.jobs("bob", state)).jobs
        assert set(expected.values()) == {job.id for job in (await reads.jobs()).jobs}
        assert set(expected.values()) == {job.id for job in (await reads.jobs(account)).jobs}


@pytest.mark.parametrize("filters", [{}, {"account_id": "ada"}, {"state": "failed"}, {"state": "queued"}])
async def test_pages_follow_each_other_without_gap_or_repeat(database: Database, filters: Mapping[str, str]) -> None:
    """Newest first, each job once, whatever index a list is read from; the last page says so."""
    async with opened(database) as store:
        account, reads = await store.account("ada", 100), Reads(store.engine)
        failed = [await _ended(store, Ending.ENGINE_ERROR) for _ in range(5)]
        queued = [await store.queued(account) for _ in range(5)]
        expected = {"failed": failed, "queued": queued}.get(filters.get("state", ""), [*failed, *queued])
        seen: list[UUID] = []
        page: JobsPage | None = None
        while page is None or page.next is not None:
            page = await reads.jobs(**filters, limit=2, after=page and page.next)  # type: ignore[arg-type]  # by name
            seen += [job.id for job in page.jobs]
            assert len(page.jobs) <= 2
    assert expected[::-1] == seen


async def test_ended_jobs_of_all_accounts_come_by_their_end(database: Database) -> None:
    """Who looks for failures wants the latest, not the one that was submitted last."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        older, younger = await store.running(account), await store.running(account)
        await store.settle(account, younger, Ending.ENGINE_ERROR)
        await store.settle(account, older, Ending.ENGINE_ERROR)
        page = await Reads(store.engine).jobs(state="failed")
    assert [older.job.job_id, younger.job.job_id] == [job.id for job in page.jobs]


async def test_jobs_are_listed_by_kind(database: Database) -> None:
    """Of all states, and together with a state."""
    async with opened(database) as store:
        await store.account("ada", 100)
        stems = await store.queued("ada", kind="stem_split")
        await store.queued("ada")
        reads = Reads(store.engine)
        for page in (
            await reads.jobs(kind="stem_split"),
            await reads.jobs("ada", kind="stem_split"),
            await reads.jobs(state="queued", kind="stem_split"),
        ):
            assert [stems] == [job.id for job in page.jobs]


async def test_a_state_that_does_not_exist_is_refused(database: Database) -> None:
    """A typing error is no empty list."""
    async with opened(database) as store:
        with pytest.raises(Refused, match="no state 'done'; there are cancelled, failed"):
            await Reads(store.engine).jobs(state="done")


async def _ended(store: Store, ending: Ending) -> UUID:
    claimed = await store.running("ada")
    await store.settle("ada", claimed, ending)
    return claimed.job.job_id


# --- receipts --------------------------------------------------------------------------------------------------


def usage_of(*seconds: int) -> list[dict[str, str]]:
    """What a settle writes of outputs of these lengths."""
    return [{"output": f"song-{n}", "seconds_in": "0", "seconds_out": str(s)} for n, s in enumerate(seconds, start=1)]


async def test_a_receipt_shows_which_lots_paid_and_by_which_rule(database: Database) -> None:
    """Quoted for two minutes, ended after one: the sooner lot pays first, the rest goes back where it came from."""
    async with opened(database) as store:
        account = await store.account("ada", 10, expires_at=in_(HOUR))
        await store.accounts.grant(account, 50, "more", ACTOR)
        claimed = await store.running(account, quoted=28)
        await store.settle(account, claimed, measured=16, outputs=[an_output(60)], usage=usage_of(60))
        receipt = await Reads(store.engine, lambda *_: [Usage(seconds_out=Decimal(120))]).receipt(claimed.job.job_id)
    assert (28, 28, 16, 12, 1, "measured") == (
        *(receipt.quoted, receipt.reserved, receipt.charged, receipt.refunded, receipt.book, receipt.outcome),
    )
    assert [("grant", 10, 10, 0, 0), ("grant", 18, 6, 12, 0)] == [
        (lot.source, lot.reserved, lot.charged, lot.returned, lot.expired) for lot in receipt.lots
    ]
    assert (
        Line("output 1", Decimal(1), Decimal(4), Decimal(4)),
        Line("output 1 seconds_out", Decimal(12), Decimal(1), Decimal(12)),
    ) == receipt.charge_lines
    assert (
        Line("output 1", Decimal(1), Decimal(4), Decimal(4)),
        Line("output 1 seconds_out", Decimal(24), Decimal(1), Decimal(24)),
    ) == receipt.quote_lines
    assert "Finished. 16 credits were charged, 12 credits were returned." == receipt.sentence
    assert [(1, "w1", "succeeded", tuple(usage_of(60)))] == [
        (run.attempt, run.worker, run.ending, run.usage) for run in receipt.attempts
    ]


#: As the worker notes a take that a gate has turned down.
TURNED_DOWN = {
    "output": "song-2",
    "peak_db": "-200.0",
    "seconds_in": "0",
    "seconds_out": "30",
    "rejected": "song-2 is silent",
}


async def test_what_a_gate_turned_down_is_shown_and_costs_nothing(database: Database) -> None:
    """Its measures stand in the receipt as data, apart from what was used; neither charge nor rehearsal counts it."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=28)
        used = usage_of(60)
        kept: dict[str, Any] = {"measured": 16, "outputs": [an_output(60)], "usage": [*used, TURNED_DOWN]}
        await store.settle(account, claimed, Ending.QUALITY_GATE, message="song-2 is silent", **kept)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        past = PastJobs(store.engine)
        (page,) = [page async for page in past.pages(await past.period())]
    (attempt,) = receipt.attempts
    assert (tuple(used), (TURNED_DOWN,)) == (attempt.usage, attempt.rejected)
    assert (True, 16, 16) == (receipt.partial, receipt.charged, sum(line.amount for line in receipt.charge_lines))
    assert [[Usage(seconds_out=Decimal(60))]] == [list(job.usages) for job in page.jobs]
    shown = rendered(jobs_shown.receipt(receipt))
    assert re.search(r"1 +song-2 +0 +30 +peak_db -200\.0 +song-2 is silent\n", shown)


async def test_a_receipt_shows_every_attempt_and_no_charge_for_our_failure(database: Database) -> None:
    """Two runs, both ours: nothing charged, and the customer reads why."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        job_id = await store.queued(account, quoted=30, failures_max=2)
        for ending in (Ending.ENGINE_CRASHED, Ending.LOST_WORKER):
            await store.settle(account, await store.claim(account, job_id), ending, backoff_first_seconds=0.0)
        receipt = await Reads(store.engine).receipt(job_id)
    assert [(1, "engine_crashed"), (2, "lost_worker")] == [(run.attempt, run.ending) for run in receipt.attempts]
    assert ("nothing", 0, 30, ()) == (receipt.outcome, receipt.charged, receipt.refunded, receipt.charge_lines)
    assert "The machine that worked on it was lost. Nothing was charged, 30 credits were returned." == receipt.sentence


async def test_a_receipt_shows_what_a_make_good_made_up_for(database: Database) -> None:
    """Our failure, and the lot expired meanwhile: what was returned expired, and a lot of the same size came."""
    async with opened(database) as store:
        account = await store.account("ada", 30, expires_at=in_(HOUR))
        claimed = await store.running(account, quoted=30)
        await database.advance(2 * HOUR)
        await store.settle(account, claimed, Ending.ENGINE_ERROR)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        lot_id, expires_at = (await store.fetch("SELECT lot_id, expires_at FROM lots WHERE reason = 'make_good'"))[0]
    assert [(30, 0, 30, 30)] == [(lot.reserved, lot.charged, lot.returned, lot.expired) for lot in receipt.lots]
    assert (LotGiven(lot_id, 30, "make_good", expires_at),) == receipt.given


async def test_a_receipt_of_a_share_of_the_hold_says_so(database: Database) -> None:
    """A book may charge a part of what was reserved for a cancelled run: the lines show the part and its rounding."""
    async with opened(database) as store:
        await execute(
            store,
            "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
            """VALUES ('[generation]\nbase = 30\n[outcomes]\ncancelled_running = "25%"', '', fermata_now(), '', '', """
            "fermata_now())",
        )
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        await store.operations.do(Cancel(account, claimed.job.job_id, "changed my mind"))
        await store.settle(account, claimed, Ending.CANCELLED_RUNNING)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
    assert ("25%", 8, 22) == (receipt.outcome, receipt.charged, receipt.refunded)
    assert (
        Line("25% of what was reserved", Decimal(30), Decimal("0.25"), Decimal("7.5")),
        Line("rounded up", Decimal("7.5"), Decimal(1), Decimal("0.5")),
    ) == receipt.charge_lines


async def test_a_receipt_says_that_nobody_pays_more_than_the_quote(database: Database) -> None:
    """More was measured than was quoted: the last line takes the difference off."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=10)
        await store.settle(account, claimed, measured=16, outputs=[an_output(60)], usage=usage_of(60))
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
    assert 10 == receipt.charged
    assert Line("not above the quote", Decimal(16), Decimal(1), Decimal(-6)) == receipt.charge_lines[-1]


async def test_lines_always_add_up(database: Database) -> None:
    """What nothing explains is a line of its own: a receipt can't be silently wrong."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        await store.settle(account, claimed)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
    assert (Line("as settled", Decimal(0), Decimal(1), Decimal(30)),) == receipt.charge_lines
    assert (Line("as quoted", Decimal(0), Decimal(1), Decimal(30)),) == receipt.quote_lines


async def test_a_job_that_runs_has_a_receipt_of_its_hold(database: Database) -> None:
    """What it holds of which lot; nothing is charged or returned yet."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        queued = await Reads(store.engine).receipt(await store.queued(account, quoted=5))
    assert (30, 0, 0, None, None) == (
        *(receipt.reserved, receipt.charged, receipt.refunded, receipt.sentence, receipt.outcome),
    )
    assert [(30, 0, 0)] == [(lot.reserved, lot.charged, lot.returned) for lot in receipt.lots]
    assert (0, (), ()) == (queued.reserved, queued.lots, queued.charge_lines)


# --- queues and workers ----------------------------------------------------------------------------------------


async def test_queues_show_depth_age_and_workers(database: Database) -> None:
    """Each job is in one number, the age is that of the oldest that could run, and paused says why."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        await store.queued(account)
        await database.advance(timedelta(minutes=10))
        await store.queued(account)
        await _run_at(store)
        await _credits(store)
        await store.running(account)
        blocked = await store.queued(account)
        await execute(store, "UPDATE accounts SET running_max = 1")
        await store.claim(account, blocked)
        await Workers(store.engine).here(WorkerCard("w1", "host", 1, "0", ["generation", "stems"], 3))
        await Workers(store.engine).here(WorkerCard("w2", "host", 2, "0", ["stems"], 4))
        await Workers(store.engine).here(WorkerCard("w3", "host", 3, "0", ["stems"], 5), draining=True)
        await execute(
            store,
            "INSERT INTO controls (scope, name, paused, running_max, reason, at, actor) "
            "VALUES ('queue', 'stems', true, 9, 'upgrade', fermata_now(), 'test')",
        )
        generation, stems = await Reads(store.engine).queues()
    assert 600 == pytest.approx(generation.oldest_seconds, abs=60)
    numbers = {"ready": 2, "later": 1, "blocked": 1, "parked": 1, "running": 1, "workers": 1, "slots": 3}
    more = {"paused": False, "pause_reason": None, "running_max": None}
    age = {"oldest_seconds": generation.oldest_seconds}
    assert QueueShown("generation", **numbers, **more, **age) == generation  # type: ignore[arg-type]  # by name
    assert QueueShown("stems", 0, 0, 0, 0, 0, 0.0, 2, 7, True, "upgrade", 9) == stems


async def test_workers_show_who_is_alive(database: Database) -> None:
    """Alive, draining, stopped in good order, or lost; with the jobs that each one runs."""
    async with opened(database) as store:
        account, workers = await store.account("ada", 100), Workers(store.engine)
        for worker_id in ("lost", "stopped"):
            await workers.here(WorkerCard(worker_id, "host", 1, "0", ["generation"], 2))
        await workers.gone("stopped")
        await database.advance(timedelta(seconds=31))
        for worker_id, draining in (("w1", False), ("w2", True)):
            await workers.here(WorkerCard(worker_id, "host", 1, "0", ["generation"], 2), draining=draining)
        await store.running(account)
        shown = {worker.worker: worker for worker in await Reads(store.engine).workers()}
    assert {
        "w1": (WorkerState.ALIVE, 1),
        "w2": (WorkerState.DRAINING, 0),
        "stopped": (WorkerState.STOPPED, 0),
        "lost": (WorkerState.LOST, 0),
    } == {name: (worker.state, worker.running) for name, worker in shown.items()}
    assert ("generation",) == shown["w1"].queues


# --- what all reads share --------------------------------------------------------------------------------------


async def test_reads_wait_for_no_lock(database: Database) -> None:
    """An account that is being written to is read at once, as it was before."""
    async with opened(database) as store, database.connection() as other:
        account = await store.account("ada", 100)
        job_id = await store.queued(account)
        async with other.transaction():
            await other.execute("SELECT FROM accounts FOR UPDATE")
            await other.execute("UPDATE lots SET available = 40, held = 60")
            reads = Reads(store.engine)
            async with asyncio.timeout(2):
                balance, shown = await reads.balance(account), await reads.job(job_id)
    assert (100, JobState.QUEUED) == (balance.spendable, shown.state)


async def test_a_read_sees_one_instant(database: Database) -> None:
    """What is committed between its statements is in none of them."""
    async with opened(database) as store:
        await store.account("ada")
        async with snapshot(store.engine) as connection:
            before = await connection.scalar(text("SELECT count(*) FROM accounts"))
            await store.account("bob")
            after = await connection.scalar(text("SELECT count(*) FROM accounts"))
    assert (1, 1) == (before, after)


async def test_a_read_can_write_nothing(database: Database) -> None:
    """Whatever a statement of a read says, the database holds it to reading."""
    async with opened(database) as store:
        await store.account("ada")
        with pytest.raises(LedgerUnavailable, match="25006"):
            async with snapshot(store.engine) as connection:
                await connection.execute(text("UPDATE accounts SET paused = true"))


async def test_a_read_leaves_the_pool_as_it_was(database: Database) -> None:
    """Reads are read-only snapshots; whoever gets the connection next may write."""
    async with opened(database, pool_size=2) as store:
        await store.account("ada", 100)
        for _ in range(3):
            await Reads(store.engine).balance("ada")
            await store.accounts.grant("ada", 1, f"after-{uuids.uuid7()}", ACTOR)
        assert 103 == (await Reads(store.engine).balance("ada")).spendable


async def test_a_balance_says_where_credits_went_and_what_will_expire(database: Database) -> None:
    """The last thirty days by kind, and the forecast for the cycle's end; nothing of other accounts or long ago."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.subscribe(account, "creator", "s-1", ACTOR)
        await store.settle(account, await store.running(account, quoted=500))
        await database.advance(timedelta(days=40))
        for quoted, kind in ((30, "generation"), (20, "stem_split"), (50, "stem_split")):
            await store.settle(account, await store.running(account, quoted=quoted, kind=kind))
        await store.settle(account, await store.running(account, quoted=90), Ending.ENGINE_ERROR)
        balance = await Reads(store.engine).balance(account)
    assert [("stem_split", 2, 70), ("generation", 1, 30)] == [(s.kind, s.jobs, s.credits) for s in balance.spent]
    assert balance.forecast is not None
    assert balance.forecast.at == balance.next_refill_at
    left = balance.forecast.at - in_(timedelta(days=40))
    assert abs(balance.forecast.spent_by_then - 100 * (left / timedelta(days=30))) <= 2
    assert 1100 - balance.forecast.spent_by_then == balance.forecast.expires_unused
    assert ("creator", None, "active", None) == (
        balance.plan,
        balance.next_plan,
        balance.status,
        balance.active_until,
    )


async def test_a_balance_says_what_becomes_of_the_subscription(database: Database) -> None:
    """The plan to come, a cancel and its end, a lapse."""
    async with opened(database) as store:
        account, reads = await store.account("ada"), Reads(store.engine)
        assert ("none", None) == ((await reads.balance(account)).status, (await reads.balance(account)).forecast)
        await store.accounts.subscribe(account, "creator", "s-1", ACTOR)
        await store.accounts.change(account, "starter", "d-1", ACTOR)
        assert ("creator", "starter") == ((await reads.balance(account)).plan, (await reads.balance(account)).next_plan)
        until = (await store.accounts.cancel(account, "c-1", ACTOR)).active_until
        assert ("cancelled", until) == (
            (await reads.balance(account)).status,
            (await reads.balance(account)).active_until,
        )
        await database.advance(timedelta(days=32))
        assert "lapsed" == (await reads.balance(account)).status


async def test_a_receipt_is_the_whole_story_of_its_credits(database: Database) -> None:
    """The request, who moved which credits when, and what the account had before the hold and after the settle."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        request = {"prompt": "a waltz", "model": "draft"}
        claimed = await store.running(account, quoted=30, request=request)
        other = await store.running(account, quoted=5)
        await store.settle(account, claimed, measured=20)
        await store.settle(account, other)
        await store.accounts.grant(account, 7, "later", ACTOR)
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        lot = receipt.lots[0].lot
    assert request == receipt.request
    # The other job's hold of 5 came in between.
    assert (100, 100 - 20 - 5) == (receipt.balance_before, receipt.balance_after)
    assert [("reserve", 30, "reserved"), ("commit", 20, "succeeded"), ("refund", 10, "succeeded")] == [
        (moved.move, moved.amount, moved.reason) for moved in receipt.movements
    ]
    assert {lot} == {moved.lot for moved in receipt.movements}
    assert all(moved.actor and moved.at >= receipt.created_at for moved in receipt.movements)
    assert "What was finished is paid, and no more than was quoted." == receipt.rule


async def test_a_receipt_without_a_hold_has_no_balances(database: Database) -> None:
    """One that runs has the balance before it, and not yet one after."""
    async with opened(database) as store:
        account = await store.account("ada", 30)
        running = await store.running(account, quoted=10)
        refused = await store.queued(account, quoted=50)
        await store.claim(account, refused)
        reads = Reads(store.engine)
        held, never = await reads.receipt(running.job.job_id), await reads.receipt(refused)
    assert (30, None, 1) == (held.balance_before, held.balance_after, len(held.movements))
    assert (None, None, ()) == (never.balance_before, never.balance_after, never.movements)
    assert (None, "What never started costs nothing.") == (held.rule, never.rule)
