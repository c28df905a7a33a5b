"""A settle that brings along what its claim knew: nothing is taken on trust that somebody may have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uuid_utils.compat as uuids
from sqlalchemy import event

from tests.integration.books import Store, an_output, opened
from tests.servers import Database
from worker.credits.lots import BrokenInvariant
from worker.credits.operations import Claim, Claimed, Ended, Fenced, Requeued, Settle
from worker.credits.outcomes import Ending
from worker.credits.page import Page
from worker.credits.states import JobState


def settling(claimed: Claimed, ending: Ending = Ending.SUCCEEDED) -> Settle:
    """As a worker settles: with the claim it had."""
    made = [an_output()] if ending is Ending.SUCCEEDED else []
    return Settle("ada", claimed.job.job_id, claimed.token, ending, measured=7, outputs=made, claimed=claimed)


async def running(store: Store) -> Claimed:
    """A job of 10 credits that runs; ada has 100."""
    await store.account("ada", 100)
    claimed = await store.running("ada", 10)
    assert claimed.hold is not None
    return claimed


@pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.ENGINE_ERROR, Ending.CANCELLED_RUNNING])
async def test_the_ended_event_says_what_the_job_says(database: Database, ending: Ending) -> None:
    """State, kind, queue, reason, charge and time; one event for each end, none for a retry."""
    async with opened(database) as store:
        claimed = await running(store)
        assert isinstance(await store.operations.do(settling(claimed, Ending.HANDED_BACK)), Requeued)
        assert 0 == await store.value("SELECT count(*) FROM events")
        again = await store.claim("ada", claimed.job.job_id)
        assert isinstance(await store.operations.do(settling(again, ending)), Ended)
        of_job = "account_id, job_id, state, kind, queue, reason, charged"
        (job,) = await store.fetch(f"SELECT ended_at AS at, 'ended' AS what, {of_job} FROM jobs")
        (event,) = await store.fetch(f"SELECT at, what, {of_job} FROM events")
        assert tuple(job) == tuple(event)
        assert 7 * (ending is Ending.SUCCEEDED) == event["charged"]


async def test_an_ended_attempt_carries_the_facts_of_its_lease(database: Database) -> None:
    """Number, token, worker, start and what the engine remembered come from the row in `live`, not from the worker."""
    async with opened(database) as store:
        claimed = await running(store)
        of_both = "account_id, job_id, attempt, token, worker_id, started_at, engine_state"
        await store.fetch("UPDATE live SET engine_state = '{\"task\": 1}'")
        (lease,) = await store.fetch(f"SELECT {of_both} FROM live")
        await store.operations.do(settling(claimed))
        (attempt,) = await store.fetch(f"SELECT {of_both} FROM attempts")
        assert tuple(lease) == tuple(attempt)
        assert 0 == await store.value("SELECT count(*) FROM live")


async def test_who_lost_the_job_is_fenced_whatever_it_knew(database: Database) -> None:
    """Reaped and claimed by another: the first worker's settle changes nothing, the second's counts."""
    async with opened(database) as store:
        first = await running(store)
        job = first.job.job_id
        await store.fetch("UPDATE live SET lease_until = fermata_now() - interval '1 second'")
        await store.operations.do(Settle("ada", job, first.token, Ending.LOST_WORKER, reap_grace_seconds=30))
        assert Fenced.FENCED is await store.operations.do(settling(first))
        second = await store.claim("ada", job)
        assert Fenced.FENCED is await store.operations.do(settling(first))
        assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 7) == await store.operations.do(settling(second))
        assert Fenced.FENCED is await store.operations.do(settling(second))
        (lot,) = await store.fetch("SELECT available, spent FROM lots")
        assert (93, 7) == tuple(lot)


async def test_a_token_that_no_longer_stands_settles_nothing(database: Database) -> None:
    """Only the row in `live` says whose the job is."""
    async with opened(database) as store:
        claimed = await running(store)
        await store.fetch("UPDATE live SET token = $1", uuids.uuid7())
        assert Fenced.FENCED is await store.operations.do(settling(claimed))
        assert 10 == await store.value("SELECT held FROM lots")


async def test_a_cancel_that_came_after_the_claim_is_seen(database: Database) -> None:
    """It stands in the row that the settle locks: a failure is not tried again."""
    async with opened(database) as store:
        claimed = await running(store)
        await store.fetch("UPDATE live SET cancel_asked_at = fermata_now()")
        ended = await store.operations.do(settling(claimed, Ending.ENGINE_FAILURE))
        assert Ended(JobState.CANCELLED, Ending.CANCELLED, 0) == ended


async def test_a_settle_waits_for_a_renewal_and_is_not_fenced_by_it(database: Database) -> None:
    """A held row in `live` is not a row that is gone."""
    async with opened(database) as store, database.connection() as other:
        claimed = await running(store)
        renewal = other.transaction()
        await renewal.start()
        await other.execute("SELECT 1 FROM live FOR UPDATE")
        settling_now = asyncio.ensure_future(store.operations.do(settling(claimed)))
        await asyncio.wait({settling_now}, timeout=0.2)
        assert not settling_now.done()
        await renewal.commit()
        assert isinstance(await settling_now, Ended)


HOLD_ENDED = "UPDATE reservations SET state = 'refunded', settled_at = fermata_now()"
OTHER_ATTEMPT = "UPDATE jobs SET attempt = 2"
JOB_ENDED = "UPDATE jobs SET state = 'failed', ended_at = fermata_now(), charged = 0"


@pytest.mark.parametrize(
    ("tampered", "ending"),
    [(HOLD_ENDED, Ending.SUCCEEDED)]  # a hand-back leaves the hold alone: the next claim finds it
    + [
        (changed, ending) for changed in (OTHER_ATTEMPT, JOB_ENDED) for ending in (Ending.SUCCEEDED, Ending.HANDED_BACK)
    ],
)
async def test_rows_that_are_not_as_the_claim_left_them_stop_the_settle(
    database: Database, tampered: str, ending: Ending
) -> None:
    """Nobody changes them while the token stands; if somebody did, nothing is written and the lease stays."""
    async with opened(database) as store:
        claimed = await running(store)
        await store.fetch(tampered)
        with pytest.raises(BrokenInvariant):
            await store.operations.do(settling(claimed, ending))
        (left,) = await store.fetch(
            "SELECT (SELECT count(*) FROM live), (SELECT count(*) FROM attempts), (SELECT sum(held) FROM lots)"
        )
        assert (1, 0, 10) == tuple(left)


# --- whole holds: their lots are not read ---------------------------------------------------------------------------


def spending(claimed: Claimed, account_id: str = "ada", **more: Any) -> Settle:
    """As a worker settles a job that cost what was quoted."""
    how = {"measured": claimed.job.quoted, "outputs": [an_output()], "claimed": claimed, **more}
    return Settle(account_id, claimed.job.job_id, claimed.token, Ending.SUCCEEDED, **how)


@contextmanager
def heard(store: Store) -> Iterator[list[str]]:
    """The statements that the store sends from now on."""
    sent: list[str] = []

    def listen(connection: Any, _: Any) -> None:
        connection.driver_connection.add_query_logger(lambda record: sent.append(record.query))

    event.listen(store.engine.sync_engine, "connect", listen)
    try:
        yield sent
    finally:
        event.remove(store.engine.sync_engine, "connect", listen)


async def test_who_spends_a_whole_hold_reads_no_lots(database: Database) -> None:
    """Whoever gives something back does."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.fetch("UPDATE accounts SET warn_below = 50")
        jobs = [await store.running("ada", 10) for _ in range(3)]
        await store.engine.dispose()
        with heard(store) as sent:
            for number, (claimed, measured) in enumerate(zip(jobs, (10, 11, 9), strict=True)):
                sent.clear()
                ended = await store.operations.do(spending(claimed, measured=measured))
                assert Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, min(10, measured)) == ended
                assert (number == 2) == any("FROM lots" in statement for statement in sent)
                assert any("UPDATE lots" in statement for statement in sent)
        assert {"available": 71, "held": 0, "spent": 29, "expired": 0, "revoked": 0} == await store.buckets("ada")
        moves = await store.fetch("SELECT move, sum(amount)::int FROM journal GROUP BY move ORDER BY move")
        assert [("commit", 29), ("grant", 100), ("refund", 1), ("reserve", 30)] == [tuple(move) for move in moves]


async def test_whole_holds_of_one_lot_and_of_several_are_spent_in_one_batch(database: Database) -> None:
    """What two jobs held of the same lot adds up; a hold over two lots spends of both."""
    async with opened(database) as store:
        await store.account("ada", 25)
        await store.accounts.grant("ada", 75, "second", "test")
        jobs = [await store.running("ada", 10) for _ in range(5)]  # the third draws on both lots
        answers = await store.books.apply([spending(claimed) for claimed in jobs], False)
        assert [Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 10)] * 5 == answers
        lots = await store.fetch("SELECT available, held, spent FROM lots ORDER BY granted")
        assert [(0, 0, 25), (50, 0, 25)] == [tuple(lot) for lot in lots]


async def test_a_claim_beside_a_whole_settle_of_its_account_finds_the_lots(database: Database) -> None:
    """Nothing of the account stays unread once one of its operations needs it; the neighbour's account does."""
    async with opened(database) as store:
        await store.account("ada", 20)
        await store.account("bob", 20)
        jobs = [(account, await store.running(account, 10)) for account in ("ada", "bob")]
        queued = await store.queued("ada", 10)
        claim = Claim("ada", queued, uuids.uuid7(), "w1", 30)
        await store.engine.dispose()
        with heard(store) as sent:
            settles = [spending(claimed, account) for account, claimed in jobs]
            answers = await store.books.apply([*settles, claim], False)
        assert 1 == sum(statement.startswith("BEGIN") for statement in sent), sent
        assert [Ended, Ended, Claimed] == [type(answer) for answer in answers]
        assert {"available": 0, "held": 10, "spent": 10, "expired": 0, "revoked": 0} == await store.buckets("ada")
        assert {"available": 10, "held": 0, "spent": 10, "expired": 0, "revoked": 0} == await store.buckets("bob")


async def test_what_is_spent_of_a_lot_charged_back_meanwhile_is_debt(database: Database) -> None:
    """The lots are read after all then, once for the whole batch; the neighbour is as well served as ever."""
    async with opened(database) as store:
        await store.account("bob", 20)
        await store.account("ada")
        await store.accounts.subscribe("ada", "starter", "s-1", "test")
        await store.accounts.topup("ada", "c-1", "test", amount=60)
        monthly = await store.value("SELECT available FROM lots WHERE source = 'subscription'")
        await store.settle("ada", await store.running("ada", monthly))
        jobs = [(account, await store.running(account, 10)) for account in ("ada", "bob")]
        await store.accounts.chargeback("ada", "c-1", "test")
        answers = await store.books.apply([spending(claimed, account) for account, claimed in jobs], False)
        assert [Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 10)] * 2 == answers
        debts = await store.fetch("SELECT account_id, amount, cause FROM debts")
        assert [("ada", 10, "spent")] == [tuple(debt) for debt in debts]
        (topup,) = await store.fetch("SELECT available, held, spent, revoked FROM lots WHERE source = 'topup'")
        assert (0, 0, 10, 50) == tuple(topup)
        assert {"available": 10, "held": 0, "spent": 10, "expired": 0, "revoked": 0} == await store.buckets("bob")


async def test_a_lot_that_holds_less_than_is_spent_stops_the_settle(database: Database) -> None:
    """The books are wrong: that operation is told so, nothing of it is written, and its neighbours go through."""
    async with opened(database) as store:
        await store.account("ada", 20)
        await store.account("bob", 20)
        jobs = [(account, await store.running(account, 10)) for account in ("ada", "bob")]
        await store.fetch("UPDATE lots SET held = 9, available = 11 WHERE account_id = 'ada'")
        answers = await asyncio.gather(
            *(store.operations.do(spending(claimed, account)) for account, claimed in jobs), return_exceptions=True
        )
        assert [BrokenInvariant, Ended] == [type(answer) for answer in answers]
        left = await store.fetch("SELECT account_id, (SELECT count(*) FROM attempts) FROM live")
        assert [("ada", 1)] == [tuple(row) for row in left]
        assert 0 == await store.value("SELECT count(*) FROM journal WHERE account_id = 'ada' AND move = 'commit'")


@dataclass(frozen=True, slots=True)
class Mistaken:
    """Says that it spends a whole hold, and then asks what there is."""

    account_id: str
    step: str = "settle"
    job_id: None = None

    def spends_all(self, _: Any) -> bool:
        return True

    def decide(self, page: Page) -> int:
        return page.ledger.spendable


async def test_who_needs_lots_after_all_is_asked_again_with_them(database: Database) -> None:
    """It is told nothing of that, and its neighbour spends once."""
    async with opened(database) as store:
        await store.account("ada", 30)
        claimed = await store.running("ada", 10)
        answers = await store.books.apply([spending(claimed), Mistaken("ada")], False)
        assert [Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 10), 20] == answers
        assert {"available": 20, "held": 0, "spent": 10, "expired": 0, "revoked": 0} == await store.buckets("ada")


@dataclass(frozen=True, slots=True)
class Failing:
    """Of which a mistake of ours makes nothing work."""

    account_id: str
    step: str = "settle"
    job_id: None = None

    def spends_all(self, _: Any) -> bool:
        raise ValueError("what it spends is no number")

    def decide(self, _: Page) -> int:
        raise ValueError("nor is it now")


async def test_who_can_not_say_whether_it_spends_all_is_answered_alone(database: Database) -> None:
    """In the one transaction of its neighbours, with the mistake that it makes as it decides."""
    async with opened(database) as store:
        await store.account("ada", 30)
        await store.account("bob", 30)
        claimed = await store.running("bob", 10)
        await store.engine.dispose()
        with heard(store) as sent:
            answers = await store.books.apply([Failing("ada"), spending(claimed, "bob")], False)
        assert ["nor is it now", str(Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 10))] == [str(one) for one in answers]
        assert 1 == sum(statement.startswith("BEGIN") for statement in sent), sent
