"""What accounts are told: with its cause, once, and in an order in which no reader misses anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from config.settings import load
from tests.acceptance.stage import until
from tests.integration.books import Store, opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.credits.notices import Notify
from worker.credits.operations import Claimed, Dropped, Expire
from worker.credits.outcomes import Ending
from worker.duties.notify import Notify as NotifyDuty
from worker.local.waiting import finished
from worker.store.errors import Refused, UnknownAccount
from worker.store.limits import AS_PLANNED, AccountLimits, Limits
from worker.store.notices import Notices
from worker.store.reads import Reads
from worker.store.reads_events import EventsPage


async def told(store: Store, account: str = "ada") -> list[tuple[str, Mapping[str, Any]]]:
    """What the account was told so far, without ended jobs."""
    events = (await Reads(store.engine).events(account)).events
    return [(event.what, event.body or {}) for event in events if event.what != "ended"]


async def warned_below(store: Store, threshold: int, granted: int) -> str:
    """An account with so many credits that is to be told when fewer than the threshold are left."""
    await store.account("ada", granted)
    await Limits(store.engine).set_limits("ada", "test", warn_below=threshold)
    return "ada"


# --- few credits left ------------------------------------------------------------------------------------------


async def test_an_account_is_told_once_when_it_steps_below_its_threshold(database: Database) -> None:
    """By the reserve that takes it there; not by those below it; again when it was above in between."""
    async with opened(database) as store:
        account = await warned_below(store, 50, 100)
        first = await store.running(account, 50)  # exactly at the threshold
        assert [] == await told(store)
        second = await store.running(account, 10)
        low = ("balance_low", {"spendable": 40, "threshold": 50})
        assert [low] == await told(store)
        await store.running(account, 10)
        assert [low] == await told(store)
        await store.settle(account, first, measured=0)  # 80 again
        await store.settle(account, second)
        await store.running(account, 40)
        assert [low, ("balance_low", {"spendable": 40, "threshold": 50})] == await told(store)


async def test_claims_of_one_batch_step_below_once(database: Database) -> None:
    """However many of them; a refund among them that lifts it again takes the warning back."""
    async with opened(database) as store:
        account = await warned_below(store, 50, 100)
        jobs = [await store.queued(account, 10) for _ in range(9)]
        await asyncio.gather(*(store.claim(account, job) for job in jobs))
        assert ["balance_low"] == [what for what, _ in await told(store)]


async def test_a_chargeback_that_takes_an_account_below_warns(database: Database) -> None:
    """What the bank takes back counts as what the account had."""
    async with opened(database) as store:
        account = await warned_below(store, 50, 10)
        await store.accounts.subscribe(account, "starter", "start", "test")
        await store.settle(account, await store.running(account, 150))
        await store.accounts.topup(account, "bought", "test", amount=100)
        before = await told(store)
        await store.accounts.chargeback(account, "bought", "test")
        assert [("balance_low", {"spendable": 10, "threshold": 50})] == (await told(store))[len(before) :]


async def test_credits_that_expire_or_are_taken_back_warn_too(database: Database) -> None:
    """When the journal is written; the plan's own threshold counts where nobody set another."""
    async with opened(database) as store:
        await store.account("ada")
        await store.accounts.subscribe("ada", "creator", "start", "test")
        assert ["cycle_renewed"] == [what for what, _ in await told(store)]
        await store.accounts.cancel("ada", "stop", "test")
        await database.advance(timedelta(days=32))
        await store.operations.do(Expire("ada"))
        assert ["cycle_renewed", "balance_low"] == [what for what, _ in await told(store)]
        assert {"spendable": 0, "threshold": 100} == (await told(store))[-1][1]


# --- cycles and time -------------------------------------------------------------------------------------------


async def test_a_new_cycle_is_told_with_its_credits(database: Database) -> None:
    """By whoever meets it first, once; skipped ones are not."""
    async with opened(database) as store:
        await store.accounts.subscribe(await store.account("ada"), "starter", "start", "test")
        await database.advance(timedelta(days=100))
        await store.claim("ada", await store.queued("ada", 1))
        await store.claim("ada", await store.queued("ada", 1))
        renewed = [body for what, body in await told(store) if what == "cycle_renewed"]
        assert 2 == len(renewed)
        assert ("starter", renewed[0]["credits"]) == (renewed[1]["plan"], renewed[1]["credits"])


async def notified(store: Store, days: float = 3) -> list[str]:
    """One look of the notify duty, its accounts told."""
    accounts = await Notices(store.engine).accounts_to_tell(days, 30, 100)
    await asyncio.gather(*(store.operations.do(Notify(account, days)) for account in accounts))
    return sorted(accounts)


async def test_credits_that_expire_soon_are_told_once(database: Database) -> None:
    """By two schedulers at once too; each lot by itself, whatever is spent of it meanwhile."""
    async with opened(database) as store, opened(database) as other:
        ends = await store.value("SELECT fermata_now() + interval '10 days'")
        await store.account("ada", 60, expires_at=ends)
        await store.account("bob", 5)
        assert [] == await notified(store)
        await database.advance(timedelta(days=7.5))
        await asyncio.gather(notified(store), notified(other))
        ((what, body),) = await told(store)
        assert ("credits_expiring", 60, "grant", ends.isoformat()) == (
            *(what, body["credits"], body["source"]),
            body["expires_at"].replace("Z", "+00:00"),
        )
        await store.running("ada", 10)
        assert [] == await notified(store)
        await store.account("ada", 7, expires_at=ends)
        assert ["ada"] == await notified(store)
        assert [60, 7] == [body["credits"] for _, body in await told(store)]


async def test_two_notify_duties_tell_each_account_once(database: Database) -> None:
    """The duty as schedulers run it, at the same time, again and again."""
    settings = load({}, database_url=database.url, environment="test")
    async with opened(database) as store, opened(database) as other:
        ends = await store.value("SELECT fermata_now() + interval '1 day'")
        for number in range(5):
            await store.account(f"a{number}", 10, expires_at=ends)
        duties = [NotifyDuty(Notices(one.engine), one.operations, settings) for one in (store, other)]
        for _ in range(2):
            assert [settings.notify_tick_seconds] * 2 == await asyncio.gather(*(duty.run() for duty in duties))
            await until(lambda: not any(duty._under_way._tasks for duty in duties), "all are told")
        assert [["credits_expiring"]] * 5 == [[what for what, _ in await told(store, f"a{n}")] for n in range(5)]


async def test_topups_are_told_frozen_once_a_lapse(database: Database) -> None:
    """When the subscription lapses by time, and at once when somebody buys on a lapsed account."""
    async with opened(database) as store:
        await store.accounts.subscribe(await store.account("ada"), "starter", "start", "test")
        await store.accounts.topup("ada", "bought", "test", amount=70)
        await store.accounts.cancel("ada", "stop", "test")
        await database.advance(timedelta(days=32))
        for _ in range(2):
            await notified(store)
        await store.accounts.topup("ada", "late", "test", amount=5)
        await notified(store)
        assert [70, 5] == [body["credits"] for what, body in await told(store) if what == "topup_frozen"]


# --- reading ---------------------------------------------------------------------------------------------------


async def test_two_lapses_in_one_cycle_are_told_each(database: Database) -> None:
    """Cancelled at once, resumed, cancelled at once again: top-ups were frozen twice."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.subscribe(account, "starter", "start", "test")
        await store.accounts.topup(account, "bought", "test", amount=100)
        for number in range(2):
            await store.accounts.cancel(account, f"end-{number}", "test", at_once=True)
            assert [account] == await notified(store)
            assert [] == await notified(store)
            await database.advance(timedelta(days=1))
            await store.accounts.resume(account, f"back-{number}", "test")
        assert 2 == [what for what, _ in await told(store)].count("topup_frozen")


async def test_paging_skips_nothing_while_events_are_written(database: Database) -> None:
    """A reader that goes on from the last number it saw has seen all in the end, each once, in order."""
    async with opened(database) as one, opened(database) as other:
        await one.account("ada", 100_000)
        jobs = await asyncio.gather(*((one, other)[n % 2].queued("ada", 1) for n in range(300)))
        seen: list[int] = []
        done = asyncio.Event()

        async def read() -> None:
            reads = Reads(one.engine)
            while True:
                last_look = done.is_set()
                page = await reads.events("ada", seen[-1] if seen else 0, limit=7)
                seen.extend(event.seq for event in page.events)
                if last_look and not page.events:
                    return

        async def end(store: Store, job: UUID) -> None:
            claimed = await store.claim_patiently("ada", job)
            await store.settle("ada", claimed, Ending.INVALID_INPUT)

        reading = asyncio.create_task(read())
        await asyncio.gather(*(end((one, other)[n % 2], job) for n, job in enumerate(jobs)))
        done.set()
        await reading
        assert 300 == len(seen)
        assert sorted(set(seen)) == seen


async def test_an_event_of_a_job_says_how_it_ended(database: Database) -> None:
    """State, reason and charge; an account nobody knows is a typing error."""
    async with opened(database) as store:
        await store.account("ada", 100)
        claimed = await store.running("ada", 10)
        await store.settle("ada", claimed, measured=7)
        reads = Reads(store.engine)
        page = await reads.events("ada")
        (event,) = page.events
        assert ("ended", claimed.job.job_id, "succeeded", 7) == (event.what, event.job, event.state, event.charged)
        assert EventsPage((), event.seq, more=False) == await reads.events("ada", event.seq)
        with pytest.raises(UnknownAccount):
            await reads.events("nobody")


# --- limits ----------------------------------------------------------------------------------------------------


async def test_a_persons_limit_beats_the_plans_until_it_is_taken_away(database: Database) -> None:
    """Also over the turn of a cycle; it holds from the next claim on, and a higher one lets waiting jobs go at once."""
    async with opened(database) as store:
        limits = Limits(store.engine)
        await store.accounts.subscribe(await store.account("ada"), "starter", "start", "test")
        assert AccountLimits("ada", 1, None, 30, None) == await limits.limits("ada")
        first = await store.running("ada", 1)
        second = await store.queued("ada", 1)
        assert Dropped.ACCOUNT_LIMIT is await store.claim("ada", second)
        assert AccountLimits("ada", 2, 2, 5, 5) == await limits.set_limits("ada", "ops", running_max=2, warn_below=5)
        assert 1 == await store.value("SELECT count(*) FROM due WHERE waits_for IS NULL")
        assert isinstance(await store.claim("ada", second), Claimed)
        await database.advance(timedelta(days=32))
        await store.settle("ada", first)
        assert AccountLimits("ada", 2, 2, 5, 5) == await limits.limits("ada")
        back = await limits.set_limits("ada", "ops", running_max=AS_PLANNED)
        assert AccountLimits("ada", 1, None, 5, 5) == back
        for wrong in ({"running_max": 0}, {"warn_below": -1}):
            with pytest.raises(Refused):
                await limits.set_limits("ada", "ops", **wrong)
        with pytest.raises(UnknownAccount):
            await limits.set_limits("nobody", "ops", running_max=1)


def test_people_set_limits_and_read_events(fermata: Fermata) -> None:
    """`accounts limits` and `accounts events`, as documents and as tables."""
    fermata.ok("accounts", "create", "ada")
    shown = fermata.ok("accounts", "limits", "ada", "--warn-below", "50", "--running-max", "2")
    assert {"account": "ada", "running_max": 2, "own_running_max": 2, "warn_below": 50, "own_warn_below": 50} == shown
    assert shown == fermata.ok("accounts", "limits", "ada")
    assert fermata.ok("accounts", "limits", "ada", "--running-max", "plan")["running_max"] is None
    assert "running_max: must be a whole number" in fermata("accounts", "limits", "ada", "--running-max", "0").err

    async def spend() -> None:
        async with opened(fermata.database) as store:
            await store.account("ada", 60)
            await store.running("ada", 20)

    finished(spend())
    page = fermata.ok("accounts", "events", "ada")
    assert [("balance_low", {"spendable": 40, "threshold": 50})] == [(e["what"], e["body"]) for e in page["events"]]
    assert "spendable 40, threshold 50" in fermata("accounts", "events", "ada").out
    assert [] == fermata.ok("accounts", "events", "ada", "--after", str(page["last"]))["events"]
