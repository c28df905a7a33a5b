"""The ledger and the path of a job on a real PostgreSQL: money under concurrency."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from random import Random
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.books import ACTOR, Store, an_output, opened
from tests.integration.test_group_commit import until
from tests.servers import Database
from worker.credits.operations import (
    AlreadyEnded,
    Cancel,
    CancelAsked,
    Claim,
    Claimed,
    Dropped,
    Ended,
    Expire,
    Fenced,
    Parked,
    Requeued,
    Settle,
    Wake,
)
from worker.credits.outcomes import Ending
from worker.credits.page import Page
from worker.credits.states import JobState
from worker.store.accounts import Accounts
from worker.store.books import Books
from worker.store.errors import UnknownAccount
from worker.store.group_commit import GroupCommit
from worker.store.leases import Held
from worker.store.prices import PriceBooks


async def test_a_job_is_reserved_run_and_committed(database: Database) -> None:
    """The whole price is held by the claim and spent by the settle, and the job succeeds."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        claimed = await store.running(account, quoted=30)
        assert {"available": 70, "held": 30, "spent": 0, "expired": 0, "revoked": 0} == await store.buckets(account)
        ended = await store.settle(account, claimed)
        assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 30) == ended
        assert {"available": 70, "held": 0, "spent": 30, "expired": 0, "revoked": 0} == await store.buckets(account)


async def test_who_fails_to_hear_of_a_commit_makes_nobody_try_again(database: Database) -> None:
    """A grant, a claim and a settle are answered as done, and done once, however metrics or spans fail over them."""

    def deaf(page: Page) -> None:
        raise ValueError(page.account_id)

    async with opened(database) as store:
        account = await store.account("ada", 100)
        books = Books(store.engine, PriceBooks(), told=deaf)
        await Accounts(store.engine, books).grant(account, 50, "more", ACTOR)
        operations: GroupCommit[Any] = GroupCommit(books.apply)
        job = await store.queued(account, quoted=30)
        claimed = await operations.do(Claim(account, job, uuids.uuid7(), "w1", 30))
        assert isinstance(claimed, Claimed)
        ended = await operations.do(
            Settle(account, job, claimed.token, Ending.SUCCEEDED, measured=30, outputs=[an_output()], claimed=claimed)
        )
        assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 30) == ended
        assert 2 == operations.figures.transactions
        assert {"available": 120, "held": 0, "spent": 30, "expired": 0, "revoked": 0} == await store.buckets(account)


async def test_a_hint_for_a_job_that_is_not_queued_changes_nothing(database: Database) -> None:
    """Whoever forged it or however late it comes: of no job, of another account's, of one that runs, waits or ended."""
    async with opened(database) as store:
        account, other = await store.account("ada", 100), await store.account("eve", 100)
        running = await store.running(account, quoted=30)
        done = await store.running(account, quoted=30)
        await store.settle(account, done)
        waiting = await store.queued(account, quoted=1_000, on_insufficient="wait")
        assert isinstance(await store.claim(account, waiting), Parked)
        before = (await store.buckets(account), await store.buckets(other))
        for whose, job, why in (
            (account, UUID(int=7), Dropped.UNKNOWN),
            (other, running.job.job_id, Dropped.UNKNOWN),
            (account, running.job.job_id, Dropped.RUNNING),
            (account, done.job.job_id, Dropped.ENDED),
            (account, waiting, Dropped.WAITING),
        ):
            assert why == await store.claim(whose, job), (whose, why)
        with pytest.raises(UnknownAccount):  # the runner drops it
            await store.claim("nobody", running.job.job_id)
        assert before == (await store.buckets(account), await store.buckets(other))
        assert isinstance(await store.settle(account, running), Ended)


async def test_fifty_jobs_of_ten_against_a_hundred_and_five(database: Database) -> None:
    """Exactly ten of fifty concurrent claims are paid; the rest are refused and hold nothing."""
    async with opened(database, batch_max=3) as one, opened(database, batch_max=3) as other:
        account = await one.account("ada", 105)
        jobs = [await one.queued(account, quoted=10) for _ in range(50)]
        stores = [one, other]
        answers = await asyncio.gather(*(stores[n % 2].claim(account, job) for n, job in enumerate(jobs)))
        assert Counter({Claimed: 10, Ended: 40}) == Counter(type(answer) for answer in answers)
        assert {"available": 5, "held": 100, "spent": 0, "expired": 0, "revoked": 0} == await one.buckets(account)


async def test_credits_that_went_while_a_claim_waited_are_gone(database: Database) -> None:
    """Given a claim that waits for its account, when whoever holds it takes the credits away, then it is refused."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 100)
        job = await one.queued(account, quoted=10)
        async with other.books.page(account) as (_, page):
            claiming = asyncio.create_task(one.claim_patiently(account, job))
            waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
            await until(lambda: one.value(waits, database.name), "the claim waits")
            page.ledger.revoke(next(iter(page.ledger.lots)), 95, "taken back", "test")
        assert isinstance(await claiming, Ended)
        assert (5, 0) == await available_and_held(one, account)


# --- one race a money function: exactly one winner ---------------------------------------------------------------


async def test_two_hints_for_one_job_at_once_are_one_claim(database: Database) -> None:
    """Twenty claims of two processes: one runs it, the rest are dropped, and it is reserved once."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 100)
        job = await one.queued(account)
        answers = await asyncio.gather(*((one, other)[n % 2].claim(account, job) for n in range(20)))
        assert Counter({"Claimed": 1, "Dropped": 19}) == Counter(type(answer).__name__ for answer in answers)
        assert (90, 10) == await available_and_held(one, account)
        assert 1 == await one.value("SELECT count(*) FROM journal WHERE move = 'reserve'")


@pytest.mark.parametrize(("ending", "charged"), [(Ending.SUCCEEDED, 20), (Ending.ENGINE_ERROR, 0)])
async def test_a_job_settled_by_many_at_once_is_settled_once(database: Database, ending: Ending, charged: int) -> None:
    """One is told what it charged or gave back, all others are fenced; one event, one attempt, one move of credits."""
    async with opened(database, batch_max=1) as one, opened(database, batch_max=1) as other:
        account = await one.account("ada", 300)
        running = [await one.running(account, quoted=30) for _ in range(6)]
        more = {"measured": charged} if charged else {}
        for claimed in running:
            answers = await asyncio.gather(
                *((one, other)[n % 2].settle(account, claimed, ending, **more) for n in range(6))
            )
            assert Counter({"Ended": 1, "Fenced": 5}) == Counter(type(answer).__name__ for answer in answers)
        spent = {"spent": 6 * charged} if charged else {}
        assert {"available": 300 - 6 * charged, **spent} == await filled(one, account)
        assert 6 == await one.value("SELECT count(*) FROM attempts") == await one.value("SELECT count(*) FROM events")
        assert 6 == await one.value("SELECT count(*) FROM journal WHERE move = 'refund'")


@pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.ENGINE_ERROR])
async def test_a_settle_and_a_reaper_at_once_are_one_end(database: Database, ending: Ending) -> None:
    """A worker whose lease has just lapsed comes back: either its result stands or its job is queued again."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 1000)
        running = [await one.running(account) for _ in range(10)]
        await database.advance(timedelta(seconds=31))
        answers = await asyncio.gather(
            *(one.settle(account, claimed, ending) for claimed in running),
            *(other.operations.do(a_reaping(account, claimed)) for claimed in reversed(running)),
        )
        ended, requeued = answers[:10], answers[:9:-1]
        for claimed, settled, reaped in zip(running, ended, requeued, strict=True):
            assert {Fenced} < {type(settled), type(reaped)}
            state = await one.value("SELECT state FROM jobs WHERE job_id = $1", claimed.job.job_id)
            assert (state == "queued") is isinstance(reaped, Requeued)
        reaped_jobs = sum(isinstance(answer, Requeued) for answer in requeued)
        charged = 10 * (10 - reaped_jobs) if ending is Ending.SUCCEEDED else 0
        assert {"held": 10 * reaped_jobs, "spent": charged} == {
            name: (await one.buckets(account))[name] for name in ("held", "spent")
        }


async def test_two_reapers_at_once_reap_once(database: Database) -> None:
    """Two schedulers: one failure is counted, one attempt is closed."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 100)
        claimed = await one.running(account)
        await database.advance(timedelta(seconds=31))
        answers = await asyncio.gather(
            *((one, other)[n % 2].operations.do(a_reaping(account, claimed)) for n in range(6))
        )
        assert Counter({"Requeued": 1, "Fenced": 5}) == Counter(type(answer).__name__ for answer in answers)
        assert (1, 1) == (
            await one.value("SELECT failures FROM jobs"),
            await one.value("SELECT count(*) FROM attempts"),
        )


async def test_a_cancel_and_a_settle_at_once_are_one_end(database: Database) -> None:
    """A finished result beats the cancel: it is charged and kept, whichever comes first."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 1000)
        running = [await one.running(account) for _ in range(10)]
        answers = await asyncio.gather(
            *(one.settle(account, claimed) for claimed in running),
            *(other.operations.do(Cancel(account, claimed.job.job_id, "no")) for claimed in running),
        )
        assert {Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 10)} == set(answers[:10])
        assert {CancelAsked, AlreadyEnded} >= {type(answer) for answer in answers[10:]}
        assert {"available": 900, "spent": 100} == await filled(one, account)


async def test_a_cancel_and_a_claim_at_once_are_one_way(database: Database) -> None:
    """Either it ends before it runs, or it runs and is asked to stop; never both, and no credit is lost."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 1000)
        jobs = [await one.queued(account) for _ in range(10)]
        claims, cancels = await asyncio.gather(
            asyncio.gather(*(one.claim(account, job) for job in jobs)),
            asyncio.gather(*(other.operations.do(Cancel(account, job, "no")) for job in reversed(jobs))),
        )
        for claim, cancel in zip(claims, reversed(cancels), strict=True):
            assert {type(claim).__name__, type(cancel).__name__} in ({"Claimed", "CancelAsked"}, {"Dropped", "Ended"})
        held = 10 * sum(isinstance(claim, Claimed) for claim in claims)
        assert (1000 - held, held) == await available_and_held(one, account)


async def test_two_cancels_at_once_end_it_once(database: Database) -> None:
    """And give a kept hold back once."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 100)
        claimed = await one.running(account)
        await one.settle(account, claimed, Ending.HANDED_BACK)
        answers = await asyncio.gather(
            *((one, other)[n % 2].operations.do(Cancel(account, claimed.job.job_id, "no")) for n in range(10))
        )
        assert Counter({"Ended": 1, "AlreadyEnded": 9}) == Counter(type(answer).__name__ for answer in answers)
        assert {"available": 100} == await filled(one, account)
        assert 1 == await one.value("SELECT count(*) FROM events WHERE what = 'ended'")


# --- the path of a job and its credits -----------------------------------------------------------------------------


async def test_a_partial_charge_returns_the_rest_to_the_very_lots(database: Database) -> None:
    """Spent in draw order; each lot's journal folds to its buckets."""
    async with opened(database) as store:
        later = await store.value("SELECT fermata_now() + interval '1 day'")
        account = await store.account("ada", 20)
        await store.accounts.grant(account, 10, "soon", "test", expires_at=later)
        claimed = await store.running(account, quoted=25)
        rows = await store.fetch(
            "SELECT amount, available, held FROM draws JOIN lots USING (account_id, lot_id) ORDER BY position"
        )
        assert [(10, 0, 10), (15, 5, 15)] == [tuple(row) for row in rows]
        await store.settle(account, claimed, measured=12)
        rows = await store.fetch("SELECT available, held, spent FROM lots ORDER BY lot_id DESC")
        assert [(0, 0, 10), (18, 0, 2)] == [tuple(row) for row in rows]
        assert [] == await unfolded(store)
        (hold,) = await store.fetch("SELECT state, amount, charged, settled_at IS NOT NULL FROM reservations")
        assert ("committed", 25, 12, True) == tuple(hold)


async def test_a_free_job_runs_without_a_credit(database: Database) -> None:
    """It has a reservation of 0 that is committed like any other, and no entry."""
    async with opened(database) as store:
        account = await store.account("ada")
        ended = await store.settle(account, await store.running(account, quoted=0))
        assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 0) == ended
        assert ["committed"] == [row["state"] for row in await store.fetch("SELECT state FROM reservations")]
        assert 0 == await store.value("SELECT count(*) FROM journal")


async def test_a_job_that_keeps_failing_keeps_its_hold_until_it_ends(database: Database) -> None:
    """Three attempts on one reservation, then all comes back; each attempt has its row and its token."""
    async with opened(database) as store:
        account = await store.account("ada", 10)
        job, tokens = await store.queued(account), []
        for failure in (1, 2, 3):
            claimed = await store.claim(account, job)
            assert failure == claimed.attempt
            tokens.append(claimed.token)
            assert (0, 10) == await available_and_held(store, account)
            answer = await store.settle(account, claimed, Ending.ENGINE_FAILURE, backoff_first_seconds=0.0)
        assert Ended(JobState.FAILED, Ending.ENGINE_FAILURE, 0) == answer
        assert {"available": 10} == await filled(store, account)
        rows = await store.fetch("SELECT token, ending FROM attempts ORDER BY attempt")
        assert [(token, "engine_failure") for token in tokens] == [tuple(row) for row in rows]
        assert 1 == await store.value("SELECT count(*) FROM reservations")


@pytest.mark.parametrize(("ending", "made_good"), [(Ending.ENGINE_ERROR, 10), (Ending.CANCELLED_RUNNING, 0)])
async def test_credits_that_expired_during_the_run(database: Database, ending: Ending, made_good: int) -> None:
    """Our failure is made good for at least a day; the customer's cancel lets them expire with their lot."""
    async with opened(database) as store:
        later = await store.value("SELECT fermata_now() + interval '1 hour'")
        account = await store.account("ada")
        await store.accounts.grant(account, 10, "soon", "test", expires_at=later)
        claimed = await store.running(account)
        await database.advance(timedelta(hours=2))
        await store.settle(account, claimed, ending)
        assert {"expired": 10, **({"available": made_good} if made_good else {})} == await filled(store, account)
        rows = await store.fetch(
            "SELECT granted, job_id, extract(epoch FROM expires_at - created_at)::float AS seconds FROM lots "
            "WHERE reason = 'make_good'"
        )
        assert [(made_good, claimed.job.job_id, 86_400.0)] * bool(made_good) == [tuple(row) for row in rows]
        assert [] == await unfolded(store)


async def test_a_job_started_before_its_lot_expired_is_paid_by_it(database: Database) -> None:
    """What is held is not lost to time: the result is charged on the old lot."""
    async with opened(database) as store:
        later = await store.value("SELECT fermata_now() + interval '1 hour'")
        account = await store.account("ada")
        await store.accounts.grant(account, 10, "soon", "test", expires_at=later)
        claimed = await store.running(account)
        await database.advance(timedelta(hours=2))
        await store.operations.do(Expire(account))
        assert 10 == (await store.settle(account, claimed)).charged
        await store.operations.do(Expire(account))
        assert [True] == [row["closed"] for row in await store.fetch("SELECT closed FROM lots")]
        assert {"spent": 10} == await filled(store, account)


async def test_what_a_settle_returns_starts_the_next_waiting_job(database: Database) -> None:
    """In the same transaction, the oldest first; the younger small one waits behind it."""
    async with opened(database) as store:
        account = await store.account("ada", 30)
        claimed = await store.running(account, quoted=30)
        big, small = [await store.queued(account, quoted=quoted, on_insufficient="wait") for quoted in (25, 10)]
        for job in (big, small):
            assert isinstance(await store.claim(account, job), Parked)
        await store.settle(account, claimed, measured=5)
        assert [big] == [row["job_id"] for row in await store.fetch("SELECT job_id FROM due")]
        assert isinstance(await store.claim(account, small), Dropped)
        assert isinstance(await store.claim(account, big), Claimed)
        await store.accounts.grant(account, 10, "more", "test")
        assert isinstance(await store.claim(account, small), Claimed)


async def test_what_a_neighbour_gives_back_pays_for_a_claim_of_the_same_batch(database: Database) -> None:
    """Within one transaction settles are decided before claims."""
    async with opened(database) as store:
        account = await store.account("ada", 10)
        claimed, job = await store.running(account), await store.queued(account)
        claim, ended = await asyncio.gather(
            store.claim(account, job), store.settle(account, claimed, Ending.CANCELLED_RUNNING)
        )
        assert (Claimed, Ended) == (type(claim), type(ended))
        assert (0, 10) == await available_and_held(store, account)


async def test_outputs_become_readable_with_the_charge(database: Database) -> None:
    """Those of the settling token, in the transaction that ends the job; a failed run's are never registered."""
    async with opened(database) as store:
        account = await store.account("ada", 100)
        first, second = await store.running(account), await store.running(account)
        output = an_output(12)
        await store.settle(account, first, outputs=[output])
        await store.settle(account, second, Ending.CANCELLED_RUNNING, outputs=[an_output()])
        (row,) = await store.fetch("SELECT artifact_id, job_id, token FROM artifacts")
        assert (output.artifact_id, first.job.job_id, first.token) == tuple(row)
        shown = json.loads(await store.value("SELECT outputs FROM jobs WHERE job_id = $1", first.job.job_id))
        assert [{"artifact": str(output.artifact_id), "name": "song", "seconds": 12.0}] == shown


async def test_the_journal_is_numbered_in_the_order_of_commits(database: Database) -> None:
    """Within an account a later transaction never has the smaller number, or an earlier time."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 1000)
        await asyncio.gather(*(_one_after_another((one, other)[n % 2], account, 10) for n in range(8)))
        rows = await one.fetch("SELECT seq, at, job_id, move FROM journal ORDER BY seq")
        assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
        for job in {row["job_id"] for row in rows} - {None}:
            assert ["reserve", "commit"] == [row["move"] for row in rows if row["job_id"] == job]


async def _one_after_another(store: Store, account: str, count: int) -> None:
    for _ in range(count):
        await store.settle(account, await store.running(account, quoted=1))


# --- all at once -------------------------------------------------------------------------------------------------


async def test_many_processes_on_many_accounts_neither_deadlock_nor_lose_a_credit(database: Database) -> None:
    """Three processes in random batches over twenty accounts for three seconds, leases renewed all the while."""
    random = Random(7)
    async with opened(database) as one, opened(database) as two, opened(database, batch_max=7) as three:
        stores = (one, two, three)
        accounts = [await one.account(f"a{n:02}", 500) for n in range(20)]
        granted = dict.fromkeys(accounts, 500)
        running: dict[UUID, Held] = {}
        ends_at = monotonic() + 3

        async def pipeline(store: Store) -> None:
            while monotonic() < ends_at:
                account = random.choice(accounts)
                job = await store.queued(account, quoted=random.randint(0, 60), on_insufficient="wait")
                claimed = await random.choice(stores).claim(account, job)
                if not isinstance(claimed, Claimed):
                    if random.random() < 0.5:
                        await random.choice(stores).operations.do(Cancel(account, job, "no"))
                    continue
                running[claimed.token] = Held(account, job, claimed.token)
                endings = [Ending.SUCCEEDED, Ending.ENGINE_ERROR, Ending.HANDED_BACK, Ending.CANCELLED_RUNNING]
                ending = random.choice(endings)
                more = {"measured": random.randint(0, 80)} if ending is Ending.SUCCEEDED else {}
                await random.choice(stores).settle(account, claimed, ending, **more)
                del running[claimed.token]

        async def money(store: Store) -> None:
            while monotonic() < ends_at:
                account, amount = random.choice(accounts), random.randint(1, 40)
                await store.accounts.grant(account, amount, str(random.random()), "test")
                granted[account] += amount
                await store.operations.do(random.choice([Wake, Expire])(random.choice(accounts)))
                await asyncio.sleep(0.05)  # its pace

        async def keeper(store: Store) -> None:
            while monotonic() < ends_at:
                held = list(running.values())
                random.shuffle(held)
                await store.leases.renew(held, 30)
                await asyncio.sleep(0.02)  # its pace

        async with asyncio.timeout(30):
            await asyncio.gather(
                *(pipeline(stores[n % 3]) for n in range(30)), *(money(store) for store in stores), *map(keeper, stores)
            )
        for account in accounts:
            assert granted[account] == sum((await one.buckets(account)).values())
        assert [] == await unfolded(one)
        assert 0 == await one.value(
            "SELECT count(*) FROM jobs FULL JOIN reservations USING (account_id, job_id) "
            "WHERE (jobs.ended_at IS NOT NULL AND reservations.state = 'held') OR reservations.charged <> jobs.charged"
        )
        held = "SELECT coalesce(sum({}), 0)::bigint FROM {}"
        assert await one.value(held.format("held", "lots")) == await one.value(
            held.format("amount", "reservations") + " WHERE state = 'held'"
        )
        assert 20 < await one.value("SELECT count(*) FROM jobs WHERE ended_at IS NOT NULL")


# --- what the tests look at --------------------------------------------------------------------------------------


def a_reaping(account: str, claimed: Claimed) -> Settle:
    """What the reaper asks for once the lease has lapsed."""
    return Settle(account, claimed.job.job_id, claimed.token, Ending.LOST_WORKER, reap_grace_seconds=3600)


async def available_and_held(store: Store, account: str) -> tuple[int, int]:
    buckets = await store.buckets(account)
    return buckets["available"], buckets["held"]


async def filled(store: Store, account: str) -> dict[str, int]:
    """The buckets that are not empty."""
    return {name: amount for name, amount in (await store.buckets(account)).items() if amount}


async def unfolded(store: Store) -> list[Any]:
    """The lots whose buckets are not the fold of their journal."""
    return await store.fetch("""
        SELECT account_id, lot_id
        FROM lots
        LEFT JOIN (
            SELECT account_id, lot_id,
                   sum(CASE move WHEN 'grant' THEN amount WHEN 'refund' THEN amount
                       WHEN 'commit' THEN 0 ELSE -amount END) AS available,
                   sum(CASE move WHEN 'reserve' THEN amount WHEN 'commit' THEN -amount
                       WHEN 'refund' THEN -amount ELSE 0 END) AS held,
                   sum(CASE move WHEN 'commit' THEN amount ELSE 0 END) AS spent,
                   sum(CASE move WHEN 'expire' THEN amount ELSE 0 END) AS expired,
                   sum(CASE move WHEN 'revoke' THEN amount ELSE 0 END) AS revoked
            FROM journal
            GROUP BY account_id, lot_id
        ) AS told USING (account_id, lot_id)
        WHERE (lots.available, lots.held, lots.spent, lots.expired, lots.revoked)
              IS DISTINCT FROM (told.available, told.held, told.spent, told.expired, told.revoked)
    """)


async def test_the_next_in_line_is_woken_when_the_first_leaves(database: Database) -> None:
    """A job too dear for what is there holds younger ones back only for as long as it waits itself."""
    async with opened(database) as store:
        account = await store.account("ada", 10)
        dear = await store.queued(account, quoted=30, on_insufficient="wait")
        assert isinstance(await store.claim(account, dear), Parked)
        cheap = await store.queued(account, quoted=20, on_insufficient="wait")
        assert isinstance(await store.claim(account, cheap), Parked)
        await store.accounts.grant(account, 10, "sorry", "test")
        assert {dear, cheap} == {row["job_id"] for row in await store.fetch("SELECT job_id FROM parked")}
        await store.operations.do(Cancel(account, dear, "unwanted"))
        assert [cheap] == [row["job_id"] for row in await store.fetch("SELECT job_id FROM due")]


async def test_a_woken_job_that_is_parked_again_keeps_its_place(database: Database) -> None:
    """Age is the job's, not that of its last wait."""
    async with opened(database) as store:
        account = await store.account("ada", 5)
        older, younger = [await store.queued(account, quoted=10, on_insufficient="wait") for _ in range(2)]
        for job in (older, younger):
            assert isinstance(await store.claim(account, job), Parked)
        await store.accounts.grant(account, 5, "first", "test")  # wakes the older one
        await store.running(account, quoted=10)  # but somebody overtakes it
        assert isinstance(await store.claim(account, older), Parked)
        await store.accounts.grant(account, 10, "second", "test")
        assert [older] == [row["job_id"] for row in await store.fetch("SELECT job_id FROM due")]
