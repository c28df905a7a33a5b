"""What time and banks do to credits: expiry, freezing, chargebacks. Named after what went wrong elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.acceptance.stage import until
from tests.integration.books import ACTOR, Store, an_output, at, opened, set_clock
from tests.integration.test_duties import scheduled, short_times
from tests.integration.test_subscriptions import ANCHOR, CREATOR, STARTER, assert_exact, subscribed
from tests.servers import Database
from worker.credits.operations import Cancel, Claimed, Ended, Expire
from worker.credits.outcomes import Ending
from worker.credits.states import JobState
from worker.credits.subscribing import Turn
from worker.duties.expire import Expire as ExpireDuty
from worker.store.errors import Refused
from worker.store.reads import Reads
from worker.store.reads_accounts import Balance
from worker.store.upkeep import Upkeep

DAY = timedelta(days=1)
#: A second before the cycle of the anchor ends, and a minute after.
BEFORE, AFTER = "2032-02-29T09:59:59Z", "2032-02-29T10:01:00Z"


async def balance(store: Store, account: str = "ada") -> Balance:
    """As its owner sees it."""
    return await Reads(store.engine).balance(account)


async def swept(store: Store, account: str = "ada") -> None:
    """The expire duty has passed."""
    await store.operations.do(Expire(account))


async def moves(store: Store, reason: str) -> list[tuple[str, int]]:
    """The journal's moves for that reason."""
    rows = await store.fetch("SELECT move, amount FROM journal WHERE reason = $1 ORDER BY seq", reason)
    return [(row["move"], row["amount"]) for row in rows]


async def lots_of(store: Store, source: str) -> list[dict[str, Any]]:
    """The account's lots of one source, oldest first."""
    return [dict(row) for row in await store.fetch("SELECT * FROM lots WHERE source = $1 ORDER BY lot_id", source)]


# --- races and expiry ------------------------------------------------------------------------------------------


async def test_twenty_claims_at_once_take_what_there_is_and_no_more(database: Database) -> None:
    """20 jobs of 75 against 500 credits: exactly 6 start, from two processes."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada", 500)
        jobs = [await one.queued(account, 75) for _ in range(20)]
        answers = await asyncio.gather(*((one, other)[n % 2].claim(account, job) for n, job in enumerate(jobs)))
        assert 6 == sum(isinstance(answer, Claimed) for answer in answers)
        buckets = await one.buckets(account)
        assert (50, 450) == (buckets["available"], buckets["held"])
        await assert_exact(one)


async def test_a_claim_that_waited_for_a_lock_across_an_expiry_spends_nothing(database: Database) -> None:
    """The clock is read when the account is ours, not when the claim was made."""
    async with opened(database) as store, database.connection() as other:
        await set_clock(store, ANCHOR)
        account = await store.account("ada", 100, expires_at=at("2032-02-01T00:00:00+00:00"))
        job = await store.queued(account, 10, job_seconds=90 * 86_400.0)
        holding = other.transaction()
        await holding.start()
        await other.execute("SELECT 1 FROM accounts FOR NO KEY UPDATE")
        claiming = asyncio.ensure_future(store.claim_patiently(account, job))
        blocked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: store.value(blocked), "waits for the lock")
        await store.database.advance(DAY)
        await holding.commit()
        refused = await claiming
        assert isinstance(refused, Ended)
        assert Ending.INSUFFICIENT_CREDITS is refused.reason
        assert 100 == (await store.buckets(account))["available"]
        await swept(store)
        assert [("expire", 100)] == await moves(store, "expired")
        await assert_exact(store)


@pytest.mark.parametrize("turned_first", [True, False])
async def test_a_refund_after_the_sweep_makes_no_everlasting_lot(database: Database, turned_first: bool) -> None:
    """A job that its owner cancels after its cycle: what comes back expires with its lot, and is seen to."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        claimed = await store.running(account, 100, job_seconds=90 * 86_400.0)
        await set_clock(store, AFTER)
        await swept(store)
        if turned_first:
            await store.operations.do(Turn(account))
        await store.operations.do(Cancel(account, claimed.job.job_id, "no more"))
        await store.settle(account, claimed, Ending.HANDED_BACK)
        assert [("expire", 100)] == await moves(store, "lot_expired")
        assert CREATOR == (await balance(store)).spendable
        assert 0 == await store.value("SELECT count(*) FROM lots WHERE expires_at IS NULL")
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        assert [(100, 100)] == [(lot.returned, lot.expired) for lot in receipt.lots]
        await swept(store)
        assert ["closed"] == ["closed" for lot in await lots_of(store, "subscription") if lot["closed"]]
        await assert_exact(store)


async def test_a_broken_job_at_midnight_carries_nothing_over_the_month(database: Database) -> None:
    """Not the customer's doing, but ours: it is made good until the end of the new cycle. Bad input is not."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, BEFORE)
        bad = await store.running(account, 100)
        ours = await store.running(account, 30)
        await set_clock(store, AFTER)
        await store.settle(account, bad, Ending.INVALID_INPUT)
        await store.settle(account, ours, Ending.ENGINE_ERROR)
        seen = await balance(store)
        assert (CREATOR, 30, CREATOR + 30) == (seen.subscription.available, seen.grants.available, seen.spendable)
        [made_good] = await lots_of(store, "grant")
        assert made_good["expires_at"] == await store.value("SELECT cycle_ends_at FROM accounts")
        given = (await Reads(store.engine).receipt(ours.job.job_id)).given
        assert [(30, "make_good")] == [(lot.credits, lot.reason) for lot in given]
        await assert_exact(store)


@pytest.mark.parametrize("ending", [Ending.PAST_ENDS_BY_STARTED, Ending.INVALID_INPUT])
async def test_a_part_that_the_customer_left_missing_carries_nothing_over_the_month(
    database: Database, ending: Ending
) -> None:
    """An output was finished, then came the deadline that they chose, or audio of theirs that can't be used."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, BEFORE)
        claimed = await store.running(account, 100, ends_by=at("2032-02-29T10:00:30+00:00"))
        await set_clock(store, AFTER)
        ended = await store.settle(account, claimed, ending, measured=10, outputs=[an_output()])
        assert Ended(JobState.SUCCEEDED, Ending.PARTIAL, 10) == ended
        assert [("expire", 90)] == await moves(store, "lot_expired")
        assert CREATOR == (await balance(store)).spendable
        await assert_exact(store)


async def test_a_part_that_we_left_missing_is_made_good(database: Database) -> None:
    """An output was finished, then the engine broke: the price of the rest is there in the next cycle."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, BEFORE)
        claimed = await store.running(account, 100)
        await set_clock(store, AFTER)
        await store.settle(account, claimed, Ending.ENGINE_CRASHED, measured=10, outputs=[an_output()])
        assert CREATOR + 90 == (await balance(store)).spendable
        await assert_exact(store)


async def test_a_job_that_a_dead_worker_holds_is_made_good_though_its_owner_gives_up(database: Database) -> None:
    """It was our failure that it did not end before its credits did, and the cancel changes nothing about that."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, BEFORE)
        claimed = await store.running(account, 100)
        await set_clock(store, AFTER)
        await store.operations.do(Cancel(account, claimed.job.job_id, "it does not move"))
        ended = await store.settle(account, claimed, Ending.LOST_WORKER, reap_grace_seconds=30)
        assert Ended(JobState.CANCELLED, Ending.CANCELLED, 0) == ended
        assert CREATOR + 100 == (await balance(store)).spendable
        await assert_exact(store)


async def test_a_job_that_ends_after_the_cycle_is_paid_by_the_old_lot(database: Database) -> None:
    """Holds outlive their lot; the new cycle's credits are untouched, the unused rest is gone with the old."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        claimed = await store.running(account, 100)
        await set_clock(store, AFTER)
        await swept(store)
        await store.settle(account, claimed, measured=80)
        old, new = await lots_of(store, "subscription")
        assert (80, CREATOR - 80, 0) == (old["spent"], old["expired"], old["available"])
        assert (CREATOR, 0) == (new["available"], new["spent"])
        await assert_exact(store)


async def test_a_price_of_nothing_works(database: Database) -> None:
    """Without a credit, without a subscription, also when everything is frozen."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.topup(account, "t", ACTOR, amount=5)
        ended = await store.settle(account, await store.running(account, 0))
        assert isinstance(ended, Ended)
        assert 0 == ended.charged
        await assert_exact(store)


# --- top-ups ---------------------------------------------------------------------------------------------------


async def test_a_top_up_twice_at_once_is_one_lot(database: Database) -> None:
    """Ten times under one reference, from two processes."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        answers = await asyncio.gather(
            *((one, other)[n % 2].accounts.topup(account, "order-7", ACTOR, pack="small") for n in range(10))
        )
        assert 9 == sum(answer.replayed for answer in answers)
        assert [100] == [lot["granted"] for lot in await lots_of(one, "topup")]


async def test_a_top_up_outlives_renewal_upgrade_another_purchase_and_resubscription(database: Database) -> None:
    """Its lot is the same to the last bucket, through all of them."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "starter"), store.accounts
        await accounts.topup(account, "t", ACTOR, amount=70)
        [before] = await lots_of(store, "topup")
        await accounts.change(account, "creator", "up", ACTOR)
        await accounts.topup(account, "t2", ACTOR, amount=5)
        await set_clock(store, AFTER)
        await store.operations.do(Turn(account))
        await swept(store)
        await store.database.advance(20 * DAY)
        await accounts.cancel(account, "end", ACTOR, at_once=True)
        await store.database.advance(29 * DAY)
        await swept(store)
        await accounts.subscribe(account, "starter", "again", ACTOR)
        await swept(store)
        assert before == (await lots_of(store, "topup"))[0]
        assert 75 + STARTER == (await balance(store)).spendable
        await assert_exact(store)


async def test_a_top_up_says_how_long_it_can_be_spent(database: Database) -> None:
    """For good, until the subscription ends, not before one begins; asked again it says how that stands now."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await store.account("ada"), store.accounts
        waits = await accounts.topup(account, "t0", ACTOR, amount=5)
        assert (True, None, None) == (waits.frozen, waits.frozen_from, waits.frozen_until)
        await accounts.subscribe(account, "starter", "s", ACTOR)
        for reference in ("t1", "t0"):  # the one of before can be spent since
            lasts = await accounts.topup(account, reference, ACTOR, amount=5)
            assert (False, None, None) == (lasts.frozen, lasts.frozen_from, lasts.frozen_until)
        ends = (await accounts.cancel(account, "c", ACTOR)).active_until
        assert ends is not None
        for reference in ("t2", "t1"):
            goes = await accounts.topup(account, reference, ACTOR, amount=5)
            assert (False, ends, ends + 30 * DAY) == (goes.frozen, goes.frozen_from, goes.frozen_until)
        await set_clock(store, "2032-03-10T00:00:00Z")
        late = await accounts.topup(account, "t3", ACTOR, amount=5)
        assert (True, ends) == (late.frozen, late.frozen_from)
        assert late.frozen_until == await store.value(
            "SELECT at + interval '30 days' FROM purchases WHERE reference = 't3'"
        )
        assert replace(late, replayed=True) == await accounts.topup(account, "t3", ACTOR, amount=5)
        early = await accounts.topup(account, "t2", ACTOR, amount=5)
        assert (True, ends, ends + 30 * DAY) == (early.frozen, early.frozen_from, early.frozen_until)
        assert (await balance(store)).topup.frozen_until == early.frozen_until
        given = await accounts.grant(account, 5, "g", ACTOR)
        assert (False, None, None) == (given.frozen, given.frozen_from, given.frozen_until)
        await assert_exact(store)


async def test_frozen_top_ups_expire_after_their_grace(database: Database) -> None:
    """Unspendable from the lapse, gone after thirty days; one bought since has its own thirty; the duty writes it."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, "starter")
        await store.accounts.topup(account, "t1", ACTOR, amount=70)
        claimed = await store.running(account, STARTER + 20, job_seconds=90 * 86_400.0)
        await store.accounts.cancel(account, "end", ACTOR, at_once=True)
        await store.database.advance(20 * DAY)
        await store.accounts.topup(account, "t2", ACTOR, amount=40)
        assert 90 == (await balance(store)).topup.frozen
        await store.database.advance(11 * DAY)
        assert (40, 0) == ((await balance(store)).topup.frozen, (await balance(store)).spendable)
        duty = ExpireDuty(Upkeep(store.engine), store.operations, short_times())
        async with scheduled(duty):
            written = "SELECT count(*) > 0 FROM journal WHERE reason = 'frozen_too_long'"
            await until(lambda: store.value(written), "expired")
        assert [("expire", 50)] == await moves(store, "frozen_too_long")
        # What was held comes back to a lot that is gone, and goes with it.
        await store.operations.do(Cancel(account, claimed.job.job_id, "no more"))
        await store.settle(account, claimed, Ending.HANDED_BACK)
        assert [("expire", STARTER), ("expire", 20)] == await moves(store, "lot_expired")
        receipt = await Reads(store.engine).receipt(claimed.job.job_id)
        assert [(STARTER, STARTER), (20, 20)] == [(lot.returned, lot.expired) for lot in receipt.lots]
        await store.database.advance(20 * DAY)
        async with scheduled(duty):
            await until(lambda: store.value("SELECT look_at IS NULL FROM accounts"), "nothing left to look for")
        assert [("expire", 50), ("expire", 40)] == await moves(store, "frozen_too_long")
        await assert_exact(store)


async def test_who_becomes_more_patient_is_so_with_what_is_frozen_already(database: Database) -> None:
    """The duty that comes too early for the longer life looks again at its end, and only then they are gone."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, "starter")
        await store.accounts.topup(account, "t1", ACTOR, amount=70)
        await store.accounts.cancel(account, "end", ACTOR, at_once=True)
        await store.database.advance(31 * DAY)
    async with opened(database, frozen_days=60) as store:
        duty = ExpireDuty(Upkeep(store.engine), store.operations, short_times())
        noted = "SELECT look_at = active_until + interval '60 days' FROM accounts"
        async with scheduled(duty):
            await until(lambda: store.value(noted), "looks again then")
        assert [] == await moves(store, "frozen_too_long")
        await store.database.advance(30 * DAY)
        async with scheduled(duty):
            await until(lambda: store.value("SELECT look_at IS NULL FROM accounts"), "nothing left to look for")
        assert [("expire", 70)] == await moves(store, "frozen_too_long")
        await assert_exact(store)


async def test_a_resume_thaws_what_is_in_its_grace_and_expires_the_rest_first(database: Database) -> None:
    """Also if no sweeper has passed: credits that are gone never come back by a resume; jobs that wait start."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, "starter")
        await store.accounts.topup(account, "t1", ACTOR, amount=70)
        await store.accounts.cancel(account, "end", ACTOR, at_once=True)
        await store.database.advance(25 * DAY)
        await store.accounts.topup(account, "t2", ACTOR, amount=40)
        waiting = await store.queued(account, STARTER + 40, on_insufficient="wait", job_seconds=90 * 86_400.0)
        await store.claim(account, waiting)
        await store.database.advance(6 * DAY)
        resumed = await store.accounts.resume(account, "back", ACTOR)
        assert STARTER == resumed.credits
        assert [("expire", 70)] == await moves(store, "frozen_too_long")
        assert STARTER + 40 == (await balance(store)).spendable
        assert isinstance(await store.claim(account, waiting), Claimed)
        await assert_exact(store)


# --- chargebacks -----------------------------------------------------------------------------------------------


async def test_a_chargeback_revokes_what_is_left_and_what_was_spent_is_owed(database: Database) -> None:
    """Held credits go when they come back, or are owed once they are spent; the next top-up pays. Once."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "starter"), store.accounts
        await store.fetch("UPDATE accounts SET running_max = 9")
        await accounts.topup(account, "t1", ACTOR, amount=100)
        await store.settle(account, await store.running(account, STARTER + 30))
        returns, spends = await store.running(account, 20), await store.running(account, 25)
        first = await accounts.chargeback(account, "t1", ACTOR)
        assert (25, 45, 30, False) == (first.revoked, first.held, first.owed, first.replayed)
        again = replace(first, replayed=True)
        assert again == await accounts.chargeback(account, "t1", ACTOR)
        assert (0, 30) == ((await balance(store)).spendable, (await balance(store)).debt)
        await assert_exact(store)
        await store.settle(account, returns, Ending.ENGINE_ERROR)  # our failure, but the credits were never paid for
        await store.settle(account, spends, measured=10)
        assert [("revoke", 20), ("revoke", 15)] == await moves(store, "charged_back")
        receipt = await Reads(store.engine).receipt(spends.job.job_id)
        assert [(10, 15, 0, 15)] == [(lot.charged, lot.returned, lot.expired, lot.revoked) for lot in receipt.lots]
        assert (0, 40) == ((await balance(store)).spendable, (await balance(store)).debt)
        assert (35, 35) == await paying(store, "t2", 35)
        assert (5, 60) == await paying(store, "t3", 60)
        assert (55, 0) == ((await balance(store)).spendable, (await balance(store)).debt)
        assert [("revoke", 35), ("revoke", 5)] == await moves(store, "debt")
        await assert_exact(store)
        # The one that paid is charged back too: what it had paid is owed again.
        assert 35 == (await accounts.chargeback(account, "t2", ACTOR)).owed
        assert 35 == (await balance(store)).debt
        await swept(store)
        assert again == await accounts.chargeback(account, "t1", ACTOR)
        await assert_exact(store)


async def paying(store: Store, reference: str, amount: int) -> tuple[int, int]:
    """What a top-up paid of the debt, and its credits; asked twice it is the same answer."""
    first = await store.accounts.topup("ada", reference, ACTOR, amount=amount)
    again = await store.accounts.topup("ada", reference, ACTOR, amount=amount)
    assert (first.paid_debt, first.credits) == (again.paid_debt, again.credits)
    return first.paid_debt, first.credits


async def test_chargebacks_at_once_take_a_purchase_once(database: Database) -> None:
    """Beside claims on the same lot: nothing below zero, nothing twice, every credit owed or revoked."""
    async with opened(database) as one, opened(database) as other:
        account = await subscribed(one, "creator")
        await one.running(account, CREATOR)
        await one.accounts.topup(account, "t", ACTOR, amount=100)
        jobs = [await one.queued(account, 30) for _ in range(6)]
        await asyncio.gather(
            *(other.claim(account, job) for job in jobs),
            *(store.accounts.chargeback(account, "t", ACTOR) for store in (one, other, one)),
        )
        assert 1 == await one.value("SELECT count(*) FROM purchases WHERE charged_back_at IS NOT NULL")
        assert 0 == (await balance(one)).spendable
        await assert_exact(one)


async def test_a_chargeback_of_nothing_we_know_is_refused(database: Database) -> None:
    """By its reference; grants are no purchases."""
    async with opened(database) as store:
        account = await store.account("ada", 10)
        for reference in ("t", await store.value("SELECT reference FROM lots")):
            with pytest.raises(Refused) as refused:
                await store.accounts.chargeback(account, reference, ACTOR)
            assert "reference" == refused.value.field
