"""Where credits come from: each step once per reference, whoever asks how often and from where."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tests.integration.books import ACTOR, Store, at, opened
from tests.servers import Database
from worker.credits.operations import Claimed, Ended
from worker.credits.outcomes import Ending
from worker.store.erasing import Erasing
from worker.store.errors import Conflict, Refused, UnknownAccount

CREATOR_CREDITS = 1200


async def lots_of(store: Store, account: str) -> list[tuple[Any, ...]]:
    """Source, granted, reference, of each lot by age."""
    rows = await store.fetch(
        "SELECT source, granted, reference FROM lots WHERE account_id = $1 ORDER BY lot_id", account
    )
    return [tuple(row) for row in rows]


async def sell_packs(database: Database, document: str) -> None:
    """Put other plans into force."""
    async with database.connection(as_owner=True) as connection:
        await connection.execute(
            "INSERT INTO plan_books (document, digest, effective_at, author, note, created_at) "
            "VALUES ($1, '', fermata_now(), 'test', '', fermata_now())",
            document,
        )


# --- races: one winner, one lot --------------------------------------------------------------------------------


async def test_one_purchase_told_twenty_times_at_once_is_one_lot(database: Database) -> None:
    """From two processes: one call credits it, nineteen learn that it had been."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        told = await asyncio.gather(
            *((one, other)[n % 2].accounts.topup(account, "order-1", ACTOR, amount=100) for n in range(20))
        )
        assert Counter({True: 19, False: 1}) == Counter(answer.replayed for answer in told)
        assert {100} == {answer.credits for answer in told}
        assert [("topup", 100, "order-1")] == await lots_of(one, account)
        assert 1 == await one.value("SELECT count(*) FROM purchases")


async def test_one_grant_told_twenty_times_at_once_is_one_lot(database: Database) -> None:
    """The same for what is given away."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        told = await asyncio.gather(*((one, other)[n % 2].accounts.grant(account, 7, "gift", ACTOR) for n in range(20)))
        assert Counter({True: 19, False: 1}) == Counter(answer.replayed for answer in told)
        assert [("grant", 7, "gift")] == await lots_of(one, account)


async def test_one_subscription_told_ten_times_at_once_begins_once(database: Database) -> None:
    """One cycle, one lot; every answer tells the same end of the cycle."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        told = await asyncio.gather(
            *((one, other)[n % 2].accounts.subscribe(account, "creator", "sub-1", ACTOR) for n in range(10))
        )
        assert Counter({True: 9, False: 1}) == Counter(answer.replayed for answer in told)
        assert 1 == len({answer.cycle_ends_at for answer in told})
        assert [("subscription", CREATOR_CREDITS, None)] == await lots_of(one, account)
        assert (1, 1) == (
            await one.value("SELECT count(*) FROM cycles"),
            await one.value("SELECT count(*) FROM subscriptions"),
        )


async def test_two_subscriptions_at_once_are_one(database: Database) -> None:
    """By different references: the second is refused, whichever it is."""
    async with opened(database) as one, opened(database) as other:
        account = await one.account("ada")
        told = await asyncio.gather(
            one.accounts.subscribe(account, "creator", "a", ACTOR),
            other.accounts.subscribe(account, "creator", "b", ACTOR),
            return_exceptions=True,
        )
        assert ["Refused", "Subscribed"] == sorted(type(answer).__name__ for answer in told)
        assert 1 == len(await lots_of(one, account))


async def test_creating_an_account_twice_at_once_makes_it_once(database: Database) -> None:
    """One says that it made it, the rest that it was there."""
    async with opened(database) as one, opened(database) as other:
        told = await asyncio.gather(*((one, other)[n % 2].accounts.create("ada", ACTOR) for n in range(10)))
        assert Counter({True: 1, False: 9}) == Counter(told)


# --- what can't be held ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_at", "problem"),
    [
        (datetime.max.replace(tzinfo=UTC), "between the years 2000 and 2200"),
        (datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))), "between the years 2000 and 2200"),
        (datetime.min.replace(tzinfo=UTC), "between the years 2000 and 2200"),
        (datetime(2199, 1, 1), "must carry a time zone"),  # noqa: DTZ001  that is what is tested
        ("2199-01-01", "must be a date and time"),
    ],
)
async def test_a_gift_expires_at_a_time_that_can_be_compared(database: Database, expires_at: Any, problem: str) -> None:
    """Never in PostgreSQL's infinity, which Python reads as a time without a zone; nothing is granted."""
    async with opened(database) as store:
        account = await store.account("ada")
        with pytest.raises(Refused, match=problem) as refused:
            await store.accounts.grant(account, 5, "gift", ACTOR, expires_at=expires_at)
        assert "expires_at" == refused.value.field
        assert [] == await lots_of(store, account)


@pytest.mark.parametrize("actor", ["", "a\0b", "\udcff", "a\nb", "x" * 129, None])
async def test_who_did_it_can_be_written_down(database: Database, actor: Any) -> None:
    """Refused before the database is asked, by every step."""
    async with opened(database) as store:
        account = await store.account("ada")
        for step in (
            store.accounts.create("bob", actor),
            store.accounts.subscribe(account, "creator", "s", actor),
            store.accounts.topup(account, "t", actor, amount=5),
            store.accounts.grant(account, 5, "g", actor),
        ):
            with pytest.raises(Refused) as refused:
                await step
            assert "actor" == refused.value.field


async def test_a_note_can_be_written_down(database: Database) -> None:
    """On one line, without NUL characters."""
    async with opened(database) as store:
        account = await store.account("ada")
        with pytest.raises(Refused, match="note: must be 1 to 500"):
            await store.accounts.grant(account, 5, "g", ACTOR, note="a\0b")


# --- references ------------------------------------------------------------------------------------------------


async def test_a_reference_with_another_amount_is_a_conflict(database: Database) -> None:
    """Nothing is credited, and the error names the field."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.topup(account, "r", ACTOR, amount=100)
        await store.accounts.grant(account, 5, "r", ACTOR)  # a gift may carry a purchase's reference
        with pytest.raises(Conflict) as purchase:
            await store.accounts.topup(account, "r", ACTOR, amount=101)
        with pytest.raises(Conflict) as gift:
            await store.accounts.grant(account, 6, "r", ACTOR)
        assert ("reference", "reference") == (purchase.value.field, gift.value.field)
        assert [("topup", 100, "r"), ("grant", 5, "r")] == await lots_of(store, account)


async def test_references_are_each_accounts_own(database: Database) -> None:
    """Two shops may count their orders alike."""
    async with opened(database) as store:
        for account in ("ada", "bob"):
            await store.account(account)
            assert not (await store.accounts.topup(account, "r", ACTOR, amount=100)).replayed


@pytest.mark.parametrize("after", ["another size", "no longer sold"])
async def test_a_pack_that_was_bought_is_the_same_purchase_whatever_is_sold_now(database: Database, after: str) -> None:
    """The shop tells its order again after the packs were changed: a replay of what was bought, no conflict."""
    async with opened(database) as store:
        account = await store.account("ada")
        first = await store.accounts.topup(account, "order-1", ACTOR, pack="small")
        document: str = await store.value("SELECT document FROM plan_books")
        sold = {
            "another size": document.replace("[packs.small]\ncredits = 100", "[packs.small]\ncredits = 80"),
            "no longer sold": document.replace("[packs.small]", "[packs.tiny]"),
        }
        await sell_packs(database, sold[after])
        again = await store.accounts.topup(account, "order-1", ACTOR, pack="small")
        assert (False, True, 100, 100) == (first.replayed, again.replayed, first.credits, again.credits)
        assert [("topup", 100, "order-1")] == await lots_of(store, account)
        with pytest.raises(Conflict):
            await store.accounts.topup(account, "order-1", ACTOR, pack="medium")


async def test_a_replayed_gift_tells_when_it_expires(database: Database) -> None:
    """Also once it has expired."""
    async with opened(database) as store:
        account = await store.account("ada")
        ends_at = await store.value("SELECT fermata_now() + interval '1 hour'")
        await store.accounts.grant(account, 5, "r", ACTOR, expires_at=ends_at)
        await database.advance(timedelta(hours=2))
        again = await store.accounts.grant(account, 5, "r", ACTOR, expires_at=ends_at)
        assert (True, ends_at) == (again.replayed, again.expires_at)


@pytest.mark.parametrize(
    "other",
    [{"expires_at": None}, {"expires_at": at("2132-01-02T00:00:00+00:00")}, {"note": None}, {"note": "sorry again"}],
)
async def test_a_gift_told_otherwise_under_its_reference_is_a_conflict(
    database: Database, other: dict[str, Any]
) -> None:
    """With another end or another reason it is another gift: who asked must not believe that it was given so."""
    async with opened(database) as store:
        account = await store.account("ada")
        gift: dict[str, Any] = {"expires_at": at("2132-01-01T00:00:00+00:00"), "note": "sorry"}
        await store.accounts.grant(account, 5, "r", ACTOR, **gift)
        with pytest.raises(Conflict, match="'r' was used before"):
            await store.accounts.grant(account, 5, "r", ACTOR, **{**gift, **other})
        assert (await store.accounts.grant(account, 5, "r", ACTOR, **gift)).replayed
        assert 5 == (await store.buckets(account))["available"]


async def test_a_gift_whose_note_was_erased_is_still_the_same(database: Database) -> None:
    """What was written about the account is gone: nothing is left to compare, and nothing is given twice."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.grant(account, 5, "r", ACTOR, note="sorry, Ada")
        await Erasing(store.engine).begin(account, ACTOR, "asked for it")
        assert (await store.accounts.grant(account, 5, "r", ACTOR, note="sorry, Ada")).replayed


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, -1, 10**12 + 1, 1.5, True, "5", None])
async def test_only_whole_credits_within_bounds_come_in(database: Database, amount: Any) -> None:
    """Refused by field, nothing written."""
    async with opened(database) as store:
        account = await store.account("ada")
        with pytest.raises(Refused) as refused:
            await store.accounts.topup(account, "r", ACTOR, amount=amount)
        assert "credits" == refused.value.field
        if amount is not None:
            with pytest.raises(Refused):
                await store.accounts.grant(account, amount, "r", ACTOR)
        assert [] == await lots_of(store, account)


@pytest.mark.parametrize("reference", ["", "r" * 256, "a\nb", "a\0b", "\ud800"])
async def test_a_reference_can_be_printed(database: Database, reference: str) -> None:
    """1 to 255 printable characters."""
    async with opened(database) as store:
        account = await store.account("ada")
        for step in (
            store.accounts.topup(account, reference, ACTOR, amount=5),
            store.accounts.grant(account, 5, reference, ACTOR),
            store.accounts.subscribe(account, "creator", reference, ACTOR),
        ):
            with pytest.raises(Refused) as refused:
                await step
            assert "reference" == refused.value.field


@pytest.mark.parametrize("account", ["", " ", "a b", "-a", "a" * 129, "a\n", "é", "a\0", "\ud800"])
async def test_an_id_out_of_bounds_is_refused(database: Database, account: str) -> None:
    """By its field, before anything is written."""
    async with opened(database) as store:
        with pytest.raises(Refused) as refused:
            await store.accounts.create(account, ACTOR)
        assert "account" == refused.value.field


@pytest.mark.parametrize("account", ["a", "A.b_c:d@e/f-9", "0" * 128])
async def test_usual_ids_are_taken(database: Database, account: str) -> None:
    """Mail addresses, paths, numbers."""
    async with opened(database) as store:
        assert await store.accounts.create(account, ACTOR)


async def test_what_cannot_be_done_says_why(database: Database) -> None:
    """Unknown accounts, plans and packs, both or neither amount, gifts that have expired already."""
    async with opened(database) as store:
        account, accounts = await store.account("ada"), store.accounts
        past = await store.value("SELECT fermata_now()")
        for step, field in (
            (accounts.subscribe(account, "gold", "r", ACTOR), "plan"),
            (accounts.topup(account, "r", ACTOR, pack="huge"), "pack"),
            (accounts.topup(account, "r", ACTOR, pack="small", amount=5), "credits"),
            (accounts.grant(account, 5, "r", ACTOR, expires_at=past), "expires_at"),
        ):
            with pytest.raises(Refused) as refused:
                await step
            assert field == refused.value.field
        for step in (
            accounts.subscribe("nobody", "creator", "r", ACTOR),
            accounts.topup("nobody", "r", ACTOR, amount=5),
            accounts.grant("nobody", 5, "r", ACTOR),
        ):
            with pytest.raises(UnknownAccount):
                await step
        assert 0 == await store.value("SELECT count(*) FROM journal")
        # What was refused has used no reference.
        assert not (await accounts.subscribe(account, "creator", "r", ACTOR)).replayed


async def test_a_subscription_begins_with_a_lot_that_ends_with_its_cycle(database: Database) -> None:
    """A month from now, by the database's clock; the plan's limit of jobs at a time holds."""
    async with opened(database) as store:
        account = await store.account("ada")
        answer = await store.accounts.subscribe(account, "creator", "r", ACTOR)
        (row,) = await store.fetch(
            "SELECT l.expires_at, l.cycle_starts_at, c.starts_at, c.ends_at, a.cycle_ends_at, a.plan, a.running_max, "
            "c.granted_total FROM lots AS l JOIN cycles AS c USING (account_id) JOIN accounts AS a USING (account_id)"
        )
        assert {answer.cycle_ends_at} == {row["expires_at"], row["ends_at"], row["cycle_ends_at"]}
        assert row["cycle_starts_at"] == row["starts_at"] < answer.cycle_ends_at
        assert ("creator", 3, CREATOR_CREDITS) == (row["plan"], row["running_max"], row["granted_total"])
        with pytest.raises(Refused):
            await store.accounts.subscribe(account, "label", "r2", ACTOR)
        with pytest.raises(Conflict):
            await store.accounts.subscribe(account, "label", "r", ACTOR)


async def test_topups_without_a_subscription_are_frozen_until_it_begins(database: Database) -> None:
    """Paid money is taken on any account; the subscription thaws it and starts the job that waited for it."""
    async with opened(database) as store:
        account = await store.account("ada")
        await store.accounts.topup(account, "r", ACTOR, amount=2000)
        refused = await store.claim(account, await store.queued(account, quoted=10))
        assert isinstance(refused, Ended)
        assert Ending.INSUFFICIENT_CREDITS is refused.reason
        assert refused.shortfall is not None
        assert (0, 2000) == (refused.shortfall.available, refused.shortfall.frozen)
        waiting = await store.queued(account, quoted=CREATOR_CREDITS + 100, on_insufficient="wait")
        await store.claim(account, waiting)
        assert "waiting" == await store.value("SELECT state FROM jobs WHERE job_id = $1", waiting)
        await store.accounts.subscribe(account, "creator", "s", ACTOR)
        assert isinstance(await store.claim(account, waiting), Claimed)
        # The plan's credits go first, they expire.
        assert {"subscription": 0, "topup": 1900} == dict(await store.fetch("SELECT source, available FROM lots"))


@pytest.mark.parametrize("how", ["topup", "grant", "subscribe"])
async def test_credits_that_come_start_the_jobs_that_wait_for_them(database: Database, how: str) -> None:
    """In the same transaction, oldest first, as many as fit."""
    async with opened(database) as store:
        account = await store.account("ada")
        if how != "subscribe":
            await store.accounts.subscribe(account, "creator", "s", ACTOR)
            await store.running(account, quoted=CREATOR_CREDITS)
        jobs = [await store.queued(account, quoted=60, on_insufficient="wait") for _ in range(3)]
        for job in jobs:
            await store.claim(account, job)
        assert 3 == await store.value("SELECT count(*) FROM parked")
        if how == "topup":
            await store.accounts.topup(account, "r", ACTOR, amount=130)
        elif how == "grant":
            await store.accounts.grant(account, 130, "r", ACTOR)
        else:
            await store.accounts.subscribe(account, "creator", "s", ACTOR)
        due = {row["job_id"] for row in await store.fetch("SELECT job_id FROM due")}
        assert set(jobs if how == "subscribe" else jobs[:2]) == due
        # They are queued, no more: their claims reserve.
        assert how == "subscribe" or 0 == await store.value("SELECT sum(held) FROM lots WHERE reference = 'r'")
