"""Subscriptions on real books: each cycle begins once, whoever meets it first and however many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.acceptance.stage import until
from tests.integration.books import ACTOR, Store, at, opened, set_clock
from tests.integration.test_duties import scheduled, short_times
from tests.servers import Database
from worker.credits.operations import Claimed, Dropped, Ended
from worker.credits.outcomes import Ending
from worker.credits.plans import parse_plan_book
from worker.credits.subscribing import Turn
from worker.duties.cycles import Cycles
from worker.store.audit import audit
from worker.store.errors import Conflict, Refused
from worker.store.plan_books import PlanBooks
from worker.store.reads import Reads
from worker.store.subscriptions import Subscribed
from worker.store.upkeep import Upkeep

STARTER, CREATOR, LABEL = 150, 1200, 5000
ANCHOR = "2032-01-31T10:00:00Z"


async def subscribed(store: Store, plan: str = "creator", account: str = "ada", **more: object) -> str:
    """An account whose subscription began at the anchor, or at whatever time it is."""
    await store.account(account)
    await store.accounts.subscribe(account, plan, "start", ACTOR, **more)  # type: ignore[arg-type]
    return account


async def cycles(store: Store, account: str) -> list[tuple[str, int, bool]]:
    """Each cycle on record: its beginning, what it was granted, whether it was skipped."""
    rows = await store.fetch(
        "SELECT starts_at, granted_total, skipped FROM cycles WHERE account_id = $1 ORDER BY starts_at", account
    )
    return [(f"{row['starts_at']:%Y-%m-%d}", row["granted_total"], row["skipped"]) for row in rows]


async def assert_exact(store: Store) -> None:
    """The auditor finds nothing."""
    assert () == (await audit(store.engine)).violations


async def test_a_claim_that_meets_an_ended_cycle_begins_the_next(database: Database) -> None:
    """Nobody waits for a scheduler: the job is paid by the new cycle's credits, the old ones are gone."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, "2032-02-29T09:59:59Z")
        assert isinstance(await store.claim(account, await store.queued(account, CREATOR)), Claimed)
        await set_clock(store, "2032-02-29T10:01:00Z")
        late = await store.claim(account, await store.queued(account, CREATOR))
        assert isinstance(late, Claimed)
        assert [("2032-01-31", CREATOR, False), ("2032-02-29", CREATOR, False)] == await cycles(store, account)
        assert at("2032-03-31T10:00:00+00:00") == (await store.value("SELECT cycle_ends_at FROM accounts")).replace(
            microsecond=0
        )
        await assert_exact(store)


async def test_a_late_scheduler_grants_the_running_cycle_only(database: Database) -> None:
    """Three cycles that nobody met are on record as skipped."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, "2032-06-15T00:00:00Z")
        assert [account] == await Upkeep(store.engine).accounts_to_turn(10)
        async with scheduled(Cycles(Upkeep(store.engine), store.operations, short_times())):
            await until(lambda: store.value("SELECT look_at > fermata_now() FROM accounts"), "turned")
        skipped = [("2032-02-29", 0, True), ("2032-03-31", 0, True), ("2032-04-30", 0, True)]
        assert [
            ("2032-01-31", CREATOR, False),
            *skipped,
            ("2032-05-31", CREATOR, False),
        ] == await cycles(store, account)
        balance = await Reads(store.engine).balance(account)
        assert (CREATOR, CREATOR) == (balance.subscription.available, balance.spendable)
        assert [] == await Upkeep(store.engine).accounts_to_turn(10)
        await assert_exact(store)


async def test_schedulers_and_claims_at_once_begin_each_cycle_once(database: Database) -> None:
    """Two schedulers, and claims on each account at the same moment: one cycle row and one lot each."""
    async with opened(database) as one, opened(database) as other:
        await set_clock(one, ANCHOR)
        accounts = [await subscribed(one, account=f"a{number}") for number in range(12)]
        jobs = [await one.submitted(account, 10) for account in accounts]
        await set_clock(one, "2032-02-29T10:01:00Z")  # it went on while they subscribed
        await asyncio.gather(
            *(store.operations.do(Turn(account)) for store in (one, other) for account in accounts),
            *(store.claim(*job) for store, job in zip([one, other] * 6, jobs, strict=True)),
        )
        assert 12 == await one.value("SELECT count(*) FROM cycles WHERE starts_at > '2032-02-15'")
        assert {CREATOR} == {
            row["credits"]
            for row in await one.fetch(
                "SELECT sum(granted)::bigint AS credits FROM lots WHERE cycle_starts_at > '2032-02-15' "
                "GROUP BY account_id"
            )
        }
        await assert_exact(one)


async def test_a_cycle_that_is_on_record_is_not_granted_again(database: Database) -> None:
    """Even if the account's row said otherwise, the cycle's own row would stop it, and nothing is written."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.fetch(
            "INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, at) "
            "SELECT account_id, cycle_ends_at, cycle_ends_at + interval '1 day', 'creator', 0, fermata_now() "
            "FROM accounts"
        )
        # As a turn that was lost halfway would look: the row is there, the account does not know it.
        await store.operations.do(Turn(account))
        assert 1 == await store.value("SELECT count(*) FROM lots")


async def test_an_upgrade_counts_at_once_and_a_downgrade_from_the_next_cycle(database: Database) -> None:
    """Up, down, up again: one allotment. The limit of jobs at a time follows the plan."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "starter"), store.accounts
        up = await accounts.change(account, "creator", "c1", ACTOR)
        assert (CREATOR - STARTER, "creator", None) == (up.credits, up.plan, up.next_plan)
        down = await accounts.change(account, "starter", "c2", ACTOR)
        assert (0, "creator", "starter") == (down.credits, down.plan, down.next_plan)
        again = await accounts.change(account, "creator", "c3", ACTOR)
        assert (0, "creator", None) == (again.credits, again.plan, again.next_plan)
        await accounts.change(account, "starter", "c4", ACTOR)
        assert [("2032-01-31", CREATOR, False)] == await cycles(store, account)
        assert 3 == await store.value("SELECT running_max FROM accounts")
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.operations.do(Turn(account))
        assert ("2032-02-29", STARTER, False) == (await cycles(store, account))[-1]
        assert ("starter", 1) == tuple((await store.fetch("SELECT plan, running_max FROM accounts"))[0])
        await assert_exact(store)


async def test_each_step_is_done_once_by_its_reference(database: Database) -> None:
    """The second time it is the first answer; another step under the same reference is a conflict."""
    async with opened(database) as store:
        account, accounts = await subscribed(store, "starter"), store.accounts
        steps: dict[str, Callable[[], Awaitable[Subscribed]]] = {
            "up": lambda: accounts.change(account, "creator", "up", ACTOR),
            "end": lambda: accounts.cancel(account, "end", ACTOR, at_once=True),
            "back": lambda: accounts.resume(account, "back", ACTOR),
            "last": lambda: accounts.cancel(account, "last", ACTOR),
        }
        for step in steps.values():
            first = await step()
            assert first == await _again(step, replayed=False)
        for step in steps.values():  # also long after, when the step itself would be refused
            assert (await step()).replayed
        for reference in steps:
            with pytest.raises(Conflict):
                await accounts.change(account, "label", reference, ACTOR)
        assert CREATOR == await store.value("SELECT sum(granted)::bigint FROM lots")
        await assert_exact(store)


async def _again(step: Callable[[], Awaitable[Subscribed]], *, replayed: bool) -> Subscribed:
    return replace(await step(), replayed=replayed)


async def test_ten_upgrades_at_once_are_one(database: Database) -> None:
    """Under references of their own: the second finds the plan there already."""
    async with opened(database) as store:
        account = await subscribed(store, "starter")
        answers = await asyncio.gather(
            *(store.accounts.change(account, "creator", f"r{number}", ACTOR) for number in range(10)),
            return_exceptions=True,
        )
        assert 9 == sum(isinstance(answer, Refused) for answer in answers)
        assert CREATOR == await store.value("SELECT sum(granted)::bigint FROM lots")


async def test_external_billing_drives_the_renewals(database: Database) -> None:
    """No refill until `renewed`; within the grace top-ups pay; after it they are frozen, and a late payment resumes."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, renewal="external", grace_days=5)
        await store.accounts.topup(account, "t", ACTOR, amount=50)
        await set_clock(store, "2032-03-02T00:00:00Z")
        await store.settle(account, await store.running(account, 10))
        balance = await Reads(store.engine).balance(account)
        assert (0, 40, None) == (balance.subscription.available, balance.spendable, balance.next_refill_at)
        paid = await store.accounts.renewed(account, "p1", ACTOR)
        assert (CREATOR, paid) == (
            paid.credits,
            await _again(lambda: store.accounts.renewed(account, "p1", ACTOR), replayed=False),
        )
        await set_clock(store, "2032-04-05T10:01:00Z")  # the grace has just ended
        refused = await store.claim(account, await store.queued(account, 10))
        assert isinstance(refused, Ended)
        assert Ending.INSUFFICIENT_CREDITS is refused.reason
        assert [] == await Upkeep(store.engine).accounts_to_turn(10)
        late = await store.accounts.renewed(account, "p2", ACTOR)
        assert (CREATOR, "2032-05-05") == (late.credits, f"{late.cycle_ends_at:%Y-%m-%d}")
        assert CREATOR + 40 == (await Reads(store.engine).balance(account)).spendable
        await assert_exact(store)


async def test_a_payment_after_an_end_at_once_pays_for_the_next_cycle(database: Database) -> None:
    """The running cycle was paid before: the payment is not lost on it, and brings nothing twice."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, renewal="external", grace_days=5)
        await set_clock(store, "2032-02-10T00:00:00Z")
        await store.accounts.cancel(account, "end", ACTOR, at_once=True)
        assert 0 == (await store.accounts.renewed(account, "p", ACTOR)).credits
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.operations.do(Turn(account))
        assert CREATOR == (await Reads(store.engine).balance(account)).spendable
        await set_clock(store, "2032-04-01T00:00:00Z")
        await store.operations.do(Turn(account))
        assert 0 == (await Reads(store.engine).balance(account)).spendable
        await assert_exact(store)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_cancel_within_the_grace_opens_no_cycle_that_nobody_paid_for(database: Database, at_once: bool) -> None:
    """Whatever looks afterwards; coming back waits for the payment, and the payment brings the cycle it paid for."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "label", renewal="external", grace_days=5), store.accounts
        await set_clock(store, "2032-03-02T00:00:00Z")
        await accounts.cancel(account, "end", ACTOR, at_once=at_once)
        await store.database.advance(timedelta(seconds=5))
        await store.operations.do(Turn(account))
        refused = await store.claim(account, await store.queued(account, 10))
        assert isinstance(refused, Ended)
        assert [] == await Upkeep(store.engine).accounts_to_turn(10)
        back = await accounts.resume(account, "back", ACTOR)
        assert (0, None) == (back.credits, back.next_refill_at)
        assert [("2032-01-31", LABEL, False)] == await cycles(store, account)
        await accounts.cancel(account, "again", ACTOR)
        await set_clock(store, "2032-03-03T00:00:00Z")
        paid = await accounts.renewed(account, "paid", ACTOR)
        assert (LABEL, "2032-04-03") == (paid.credits, f"{paid.cycle_ends_at:%Y-%m-%d}")
        await assert_exact(store)


async def test_a_plan_taken_within_the_grace_comes_with_the_payment(database: Database) -> None:
    """Until then the limits stay those of what was paid for."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "starter", renewal="external", grace_days=5), store.accounts
        await set_clock(store, "2032-03-02T00:00:00Z")
        wanted = await accounts.change(account, "label", "up", ACTOR)
        assert (0, "starter", "label") == (wanted.credits, wanted.plan, wanted.next_plan)
        assert 1 == await store.value("SELECT running_max FROM accounts")
        paid = await accounts.renewed(account, "paid", ACTOR)
        assert (LABEL, "label", "2032-03-31") == (paid.credits, paid.plan, f"{paid.cycle_ends_at:%Y-%m-%d}")
        assert 10 == await store.value("SELECT running_max FROM accounts")
        await assert_exact(store)


async def test_whoever_pays_from_outside_comes_back_by_paying(database: Database) -> None:
    """After the grace a resume opens nothing, and says what would: a report of the payment, or a new subscription."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, renewal="external", grace_days=5), store.accounts
        await set_clock(store, "2032-03-20T00:00:00Z")
        with pytest.raises(Refused, match="not paid for"):
            await accounts.resume(account, "back", ACTOR)
        again = await accounts.subscribe(account, "starter", "anew", ACTOR, renewal="external", grace_days=3)
        assert (STARTER, "2032-04-20") == (again.credits, f"{again.cycle_ends_at:%Y-%m-%d}")
        await assert_exact(store)


async def test_months_paid_ahead_outlast_a_cancel(database: Database) -> None:
    """It runs to the end of the last of them, each begins in its time, and to come back before then loses none."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, renewal="external", grace_days=3), store.accounts
        for invoice in ("i1", "i2"):
            await accounts.renewed(account, invoice, ACTOR)
        gone = await accounts.cancel(account, "end", ACTOR)
        assert ("2032-04-30", None) == (f"{gone.active_until:%Y-%m-%d}", gone.given_up_until)
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.operations.do(Turn(account))
        back = await accounts.resume(account, "back", ACTOR)
        assert ("2032-05-03", None) == (f"{back.active_until:%Y-%m-%d}", back.given_up_until)
        await set_clock(store, "2032-04-01T00:00:00Z")
        await store.operations.do(Turn(account))
        begun = [("2032-01-31", CREATOR, False), ("2032-02-29", CREATOR, False), ("2032-03-31", CREATOR, False)]
        assert begun == await cycles(store, account)
        await assert_exact(store)


@pytest.mark.parametrize("how", ["resume", "subscribe", "renewed"])
async def test_an_end_at_once_says_which_paid_months_it_gives_up(database: Database, how: str) -> None:
    """From the end of the running month. So does the step that comes back, and each says it again when asked again."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, renewal="external", grace_days=3), store.accounts
        for invoice in ("i1", "i2"):
            await accounts.renewed(account, invoice, ACTOR)
        await set_clock(store, "2032-02-10T00:00:00Z")
        back: dict[str, Callable[[], Awaitable[Subscribed]]] = {
            "resume": lambda: accounts.resume(account, "back", ACTOR),
            "subscribe": lambda: accounts.subscribe(account, "creator", "back", ACTOR, renewal="external"),
            "renewed": lambda: accounts.renewed(account, "back", ACTOR),
        }
        for step in (lambda: accounts.cancel(account, "end", ACTOR, at_once=True), back[how]):
            done = await step()
            assert ("2032-02-29", "2032-04-30") == (f"{done.given_up_from:%Y-%m-%d}", f"{done.given_up_until:%Y-%m-%d}")
            assert done == await _again(step, replayed=False)
        # Once it has come back, it is said no more: the next end gives up nothing but its own.
        again = await accounts.cancel(account, "again", ACTOR, at_once=True)
        assert ("2032-02-29" if how == "renewed" else None) == (
            again.given_up_from and f"{again.given_up_from:%Y-%m-%d}"
        )
        await assert_exact(store)


async def test_an_upgrade_lets_jobs_go_that_the_smaller_plan_held_up(database: Database) -> None:
    """In the same transaction, as many as may run now; another step lets none go."""
    async with opened(database) as store:
        account = await subscribed(store, "starter")
        await store.running(account, 1)
        jobs = [await store.queued(account, 1) for _ in range(4)]
        for job in jobs:
            assert Dropped.ACCOUNT_LIMIT is await store.claim(account, job)
        held_up = "SELECT count(*) FROM due WHERE waits_for = 'account_limit'"
        await store.accounts.cancel(account, "end", ACTOR)
        assert 4 == await store.value(held_up)
        await store.accounts.resume(account, "up", ACTOR, plan="creator")
        assert 1 == await store.value(held_up)


@pytest.mark.parametrize("how", ["turn", "resume", "upgrade"])
async def test_a_new_cycle_starts_the_jobs_that_wait(database: Database, how: str) -> None:
    """In the same transaction, whatever brought its credits."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store, "starter")
        await store.claim(account, await store.queued(account, STARTER))
        waiting = await store.queued(account, 100, on_insufficient="wait", job_seconds=90 * 86_400.0)
        await store.fetch("UPDATE accounts SET running_max = 9")
        await store.claim(account, waiting)
        assert "waiting" == await store.value("SELECT state FROM jobs WHERE job_id = $1", waiting)
        if how == "upgrade":
            await store.accounts.change(account, "creator", "c", ACTOR)
        if how == "resume":
            await store.accounts.cancel(account, "c", ACTOR)
        await set_clock(store, "2032-02-29T10:01:00Z" if how != "upgrade" else ANCHOR)
        await (store.accounts.resume(account, "r", ACTOR) if how == "resume" else store.operations.do(Turn(account)))
        assert "queued" == await store.value("SELECT state FROM jobs WHERE job_id = $1", waiting)


async def test_a_plans_limit_outlasts_its_subscription(database: Database) -> None:
    """What is left of the last cycle is spent on the terms it came with: a lapse lifts no limit."""
    async with opened(database) as store:
        account = await subscribed(store, "starter")
        await store.accounts.cancel(account, "end", ACTOR, at_once=True)
        await store.running(account, 1)
        assert Dropped.ACCOUNT_LIMIT is await store.claim(account, await store.queued(account, 1))


async def test_a_plan_edit_counts_from_the_next_cycle(database: Database) -> None:
    """Top-ups, the running cycle and its limits stay as they are; the next one brings what the new book says."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account = await subscribed(store)
        await store.accounts.topup(account, "t", ACTOR, amount=50)
        await plans_edited(store, ("= 1200", "= 1300"), ("= 3\n", "= 5\n"))
        async with store.engine.connect() as connection:
            assert 1300 == (await PlanBooks().current(connection)).plans["creator"].monthly_credits
        await store.operations.do(Turn(account))
        assert CREATOR + 50 == (await Reads(store.engine).balance(account)).spendable
        assert 3 == await store.value("SELECT running_max FROM accounts")
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.operations.do(Turn(account))
        assert 5 == await store.value("SELECT running_max FROM accounts")
        assert 1300 + 50 == (await Reads(store.engine).balance(account)).spendable
        await assert_exact(store)


async def test_a_plan_edit_brings_the_running_cycle_nothing_by_a_detour(database: Database) -> None:
    """Not by cancel and resume, not by ending at once, subscribing again, or another plan and back; nor its limits."""
    async with opened(database) as store:
        await set_clock(store, ANCHOR)
        account, accounts = await subscribed(store, "starter"), store.accounts
        await plans_edited(
            store, ("monthly_credits = 150", "monthly_credits = 1500"), ("at_a_time = 1\n", "at_a_time = 7\n")
        )
        limit = "SELECT running_max FROM accounts"
        await accounts.cancel(account, "c1", ACTOR)
        assert 1 == await store.value(limit)
        assert 0 == (await accounts.resume(account, "r1", ACTOR)).credits
        await accounts.cancel(account, "c2", ACTOR, at_once=True)
        assert 0 == (await accounts.resume(account, "r2", ACTOR, plan="starter")).credits
        await accounts.cancel(account, "c3", ACTOR, at_once=True)
        assert 0 == (await accounts.subscribe(account, "starter", "s3", ACTOR)).credits
        assert (1, STARTER) == (await store.value(limit), (await Reads(store.engine).balance(account)).spendable)
        # Larger than what this cycle was granted, though smaller than what the next one would be: at once.
        up = await accounts.change(account, "creator", "up", ACTOR)
        assert (CREATOR - STARTER, "creator", None) == (up.credits, up.plan, up.next_plan)
        back = await accounts.change(account, "starter", "back", ACTOR)
        assert (0, "starter", None) == (back.credits, back.plan, back.next_plan)
        assert [("2032-01-31", CREATOR, False)] == await cycles(store, account)
        await set_clock(store, "2032-03-01T00:00:00Z")
        await store.operations.do(Turn(account))
        assert ("2032-02-29", 1500, False) == (await cycles(store, account))[-1]
        assert 7 == await store.value(limit)
        await assert_exact(store)


async def plans_edited(store: Store, *replacements: tuple[str, str]) -> None:
    """A new book is in force that differs in these."""
    async with store.database.connection(as_owner=True) as connection:
        document = await connection.fetchval("SELECT document FROM plan_books ORDER BY book_id DESC LIMIT 1")
        for before, after in replacements:
            assert before in document
            document = document.replace(before, after)
        edited = parse_plan_book(document)
        await connection.execute(
            "INSERT INTO plan_books (document, digest, effective_at, author, note, created_at) "
            "VALUES ($1, $2, fermata_now(), 'mia', 'edited', fermata_now())",
            edited.document,
            edited.digest,
        )


async def test_what_cannot_be_done_says_why(database: Database) -> None:
    """And writes nothing."""
    async with opened(database) as store:
        accounts = store.accounts
        await store.account("new")
        account = await subscribed(store, "starter")
        for step, field in (
            (accounts.change("new", "starter", "r", ACTOR), "account"),
            (accounts.cancel("new", "r", ACTOR), "account"),
            (accounts.resume("new", "r", ACTOR), "account"),
            (accounts.renewed(account, "r", ACTOR), "subscription"),
            (accounts.change(account, "gold", "r", ACTOR), "plan"),
            (accounts.resume(account, "r", ACTOR), "subscription"),
            (accounts.subscribe("new", "starter", "r", ACTOR, renewal="yearly"), "renewal"),
            (accounts.subscribe("new", "starter", "r", ACTOR, grace_days=3), "subscription"),
        ):
            with pytest.raises(Refused) as refused:
                await step
            assert field == refused.value.field
        assert 1 == await store.value("SELECT count(*) FROM subscription_changes")


async def test_thousands_that_are_due_in_the_same_minute_are_turned_in_batches(database: Database) -> None:
    """In bounded transactions, by two schedulers, each account once."""
    async with opened(database) as one, opened(database) as other:
        await one.fetch(_MANY_DUE)
        duties = [Cycles(Upkeep(store.engine), store.operations, short_times()) for store in (one, other)]
        async with scheduled(duties[0]), scheduled(duties[1]):
            await until(
                lambda: one.value("SELECT count(*) = 0 FROM accounts WHERE look_at <= fermata_now()"), "turned", 60
            )
        assert (1500, 1500) == tuple(
            (
                await one.fetch(
                    "SELECT count(*), sum(granted / 1200) FROM lots WHERE reason = 'cycle' AND available = 1200"
                )
            )[0]
        )
        figures = one.operations.figures
        assert figures.operations <= 500 * figures.transactions
        await assert_exact(one)


_MANY_DUE = """
    WITH made AS (
        INSERT INTO accounts (account_id, created_at, plan, cycle_ends_at, look_at, running_max, actor)
        SELECT 'a' || n, fermata_now(), 'creator', ends_at, ends_at, 3, 'test'
        FROM generate_series(1, 1500) AS n
        -- From the 1st: each month has one, so that it lies on its anchor's months.
        CROSS JOIN (SELECT date_trunc('month', fermata_now(), 'UTC') AS ends_at) AS at
        RETURNING account_id, cycle_ends_at
    ), anchored AS (
        INSERT INTO subscriptions (account_id, anchor, updated_at)
        SELECT account_id, (cycle_ends_at AT TIME ZONE 'UTC' - interval '1 month') AT TIME ZONE 'UTC', fermata_now()
        FROM made
        RETURNING account_id, anchor
    )
    INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, skipped, at)
    SELECT account_id, anchor, cycle_ends_at, 'creator', 0, true, fermata_now()
    FROM anchored
    JOIN made USING (account_id)
"""
