"""A draft price book on past jobs, and the guard that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest

from config.settings import load
from tests.integration.books import ACTOR, Store, opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.boot import price_desk
from worker.credits.operations import Claimed
from worker.credits.outcomes import Ending
from worker.credits.rehearsal import Mover, Row
from worker.local.waiting import finished
from worker.price_desk import PriceDesk
from worker.store import past_jobs
from worker.store.errors import Refused

SHIPPED = resources.files("config").joinpath("prices.toml").read_text(encoding="utf-8")
#: Songs cost 5 credits more, and nothing else changes.
DEARER = SHIPPED.replace("base = 4\n", "base = 9\n", 1)
MONTH = timedelta(days=30)
WHY = ("--note", "up", "--as", "mia")


def desk_of(store: Store, **settings: int) -> PriceDesk:
    """The desk of prices on this store's database."""
    return price_desk(
        load({}, database_url=store.database.url, environment="test", **settings), store.engine, store.books
    )


async def song(
    store: Store, account: str, seconds: int = 60, model: str = "standard", ending: Ending = Ending.SUCCEEDED
) -> None:
    """A song of that length, asked for at that length, paid by the shipped book and ended."""
    request = {"prompt": "x", "seconds": seconds, "seconds_max": None, "model": model, "variants": 1}
    cost = round((4 + seconds // 5) * {"draft": 0.5, "standard": 1, "studio": 2.5}[model])
    claimed = await store.running(account, quoted=cost, request=request)
    assert isinstance(claimed, Claimed)
    usage = [{"output": "song", "seconds_in": "0", "seconds_out": str(seconds)}]
    more = {"measured": cost, "usage": usage} if ending is Ending.SUCCEEDED else {}
    await store.settle(account, claimed, ending, **more)


async def test_past_jobs_are_priced_once_more(database: Database) -> None:
    """By kind, model and plan, what was charged beside what the draft would have charged; failures cost nothing."""
    async with opened(database) as store:
        for account in ("ada", "bob"):
            await store.account(account, 1000)
        await store.accounts.subscribe("bob", "creator", "s-1", ACTOR)
        await song(store, "ada")  # 16 -> 21
        await song(store, "ada", model="studio")  # 40 -> 53, as 52.5 is rounded up
        await song(store, "bob", seconds=120)  # 28 -> 33
        await song(store, "bob", ending=Ending.ENGINE_ERROR)  # nothing, as before
        found = (await desk_of(store).rehearse(DEARER, MONTH, "mia")).outcome
    assert (4, 2, 84, 107, 0) == (found.jobs, found.accounts, found.before, found.after, found.unpriced)
    assert (Row("generation", 4, 84, 107),) == found.kinds
    assert {("generation standard", 44, 54), ("generation studio", 40, 53)} == {
        (row.name, row.before, row.after) for row in found.models
    }
    assert {("none", 56, 74), ("creator", 28, 33)} == {(row.name, row.before, row.after) for row in found.plans}
    assert (Mover("ada", 2, 56, 74), Mover("bob", 2, 28, 33)) == found.movers
    assert (2, 0, 0) == (found.accounts_dearer, found.accounts_cheaper, found.accounts_run_out)


async def test_the_shipped_book_rehearsed_changes_nothing(database: Database) -> None:
    """What is replayed is what was charged, job by job."""
    async with opened(database) as store:
        await store.account("ada", 1000)
        for seconds, model in ((60, "draft"), (61, "standard"), (240, "studio")):
            await song(store, "ada", seconds - seconds % 5, model)
        found = (await desk_of(store).rehearse(SHIPPED, MONTH, "mia")).outcome
    assert found.before == found.after > 0
    assert () == found.movers


async def test_a_month_buys_fewer_songs(database: Database) -> None:
    """At what songs of the plan cost on average, or of everybody where the plan had none."""
    async with opened(database) as store:
        await store.account("bob")
        sold = await store.accounts.plans()
        await store.accounts.subscribe("bob", "creator", "s-1", ACTOR)
        await song(store, "bob")
        found = (await desk_of(store).rehearse(DEARER, MONTH, "mia")).outcome
    months = {(month.plan, month.kind): (month.jobs_before, month.jobs_after) for month in found.months}
    assert {
        (name, "generation"): (plan.monthly_credits // 16, plan.monthly_credits // 21)
        for name, plan in sold.plans.items()
    } == months


async def test_who_could_not_have_paid_is_named(database: Database) -> None:
    """By what the account had at that time, credits that expired and came later included, and since when."""
    async with opened(database) as store:
        await store.account("ada", 20)
        await store.account("bob", 1000)
        for account in ("ada", "bob"):
            await song(store, account)  # 16, or 21 of 20
        await store.accounts.grant("ada", 16, "later", ACTOR)
        await song(store, "ada")  # the 36 that it had by now are enough for this one
        found = (await desk_of(store).rehearse(DEARER, MONTH, "mia")).outcome
    assert 1 == found.accounts_run_out
    assert [("ada", 1)] == [(loser.account, loser.jobs) for loser in found.run_out]


async def test_only_the_time_asked_for_is_replayed(database: Database) -> None:
    """And what was spent before it is not there any more."""
    async with opened(database) as store:
        await store.account("ada", 37)
        await song(store, "ada")
        await database.advance(timedelta(days=10))
        await song(store, "ada")
        week = (await desk_of(store).rehearse(DEARER, timedelta(days=7), "mia")).outcome
        month = (await desk_of(store).rehearse(DEARER, MONTH, "mia")).outcome
    assert (1, 0) == (week.jobs, week.accounts_run_out)
    # In the longer time the first song took 21 of 37, so that the second one is too dear.
    assert (2, 1) == (month.jobs, month.accounts_run_out)


async def test_a_part_of_the_hold_is_counted_from_the_drafts_own_quote(database: Database) -> None:
    """The most that the request could use is priced, as its kind says today."""
    draft = DEARER.replace('cancelled_running = "nothing"', 'cancelled_running = "50%"')
    async with opened(database) as store:
        await store.account("ada", 100)
        await song(store, "ada", ending=Ending.CANCELLED_RUNNING)
        found = (await desk_of(store).rehearse(draft, MONTH, "mia")).outcome
    # Half of the 21 that would have been reserved.
    assert (0, 11, 0) == (found.before, found.after, found.unpriced)


@pytest.mark.parametrize("page", [1, 2, 3, 100])
async def test_pages_change_nothing(database: Database, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """An account that goes on over several pages is still one, with the purse it began with."""
    monkeypatch.setattr(past_jobs, "PAGE_JOBS", page)
    async with opened(database) as store:
        for account, credits_ in (("ada", 34), ("bob", 34), ("eve", 1000)):
            await store.account(account, credits_)
            for _ in range(2):
                await song(store, account)
        found = (await desk_of(store).rehearse(DEARER, MONTH, "mia")).outcome
    assert (6, 3, 2) == (found.jobs, found.accounts, found.accounts_run_out)
    assert (6 * 16, 6 * 21) == (found.before, found.after)


async def test_a_rehearsal_moves_no_credit(database: Database) -> None:
    """It writes one row, and that is its own."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await song(store, "ada")
        before = await store.fetch("SELECT * FROM lots"), await store.fetch("SELECT * FROM journal")
        kept = await desk_of(store).rehearse(DEARER, MONTH, "mia")
        assert before == (await store.fetch("SELECT * FROM lots"), await store.fetch("SELECT * FROM journal"))
        rows = await store.fetch("SELECT rehearsal_id, digest, actor, outcome->>'after' AS after FROM rehearsals")
    assert [(kept.rehearsal, kept.digest, "mia", "21")] == [tuple(row.values()) for row in rows]


# --- the guard -------------------------------------------------------------------------------------------------


async def test_a_large_change_needs_a_rehearsal_of_this_very_document(database: Database) -> None:
    """One more character is another document, and was not tried out."""
    async with opened(database) as store:
        desk = desk_of(store)
        await store.account("ada", 100)
        await song(store, "ada")
        with pytest.raises(Refused, match=r"rehearsal: generation costs \+[\d.]+ % \(") as refused:
            await desk.apply(DEARER, "mia", "up")
        assert "fermata prices rehearse" in str(refused.value)
        await desk.rehearse(DEARER, MONTH, "mia")
        with pytest.raises(Refused, match="rehearsal"):
            await desk.apply(DEARER + "\n", "mia", "up")
        assert 2 == (await desk.apply(DEARER, "mia", "up")).book
        # Back again at once: what mends a wrong book waits for nothing.
        assert 1 == (await desk.revert(1, "mia", "a slip")).reverts_to


async def test_a_rehearsal_opens_only_what_it_looked_at(database: Database) -> None:
    """Over no job at all, or none of a kind whose price changes, it said nothing that anybody could have read."""
    stems = DEARER.replace("step_seconds = 120", "step_seconds = 60")
    async with opened(database) as store:
        desk = desk_of(store)
        await desk.rehearse(DEARER, MONTH, "mia")
        with pytest.raises(Refused, match=r"rehearsed, but on no job at all.*--since.*--force"):
            await desk.apply(DEARER, "mia", "up")
        await store.account("ada", 100)
        await song(store, "ada")
        # There is a job now: that it could be rehearsed is not enough.
        with pytest.raises(Refused, match="on no job at all"):
            await desk.apply(DEARER, "mia", "up")
        await desk.rehearse(stems, MONTH, "mia")
        with pytest.raises(Refused, match="rehearsed, but on no job of stem_split: "):
            await desk.apply(stems, "mia", "up")
        assert [1] == [line.book for line in await desk.history()]
        await desk.rehearse(DEARER, MONTH, "mia")
        assert 2 == (await desk.apply(DEARER, "mia", "up")).book
        assert 3 == (await desk.apply(stems, "mia", "up", force="nobody has split yet")).book


async def test_an_ending_that_charges_more_needs_a_rehearsal_over_some_job(database: Database) -> None:
    """Whichever kind it is of: an outcome counts for all."""
    fee = SHIPPED.replace('cancelled_running = "nothing"', 'cancelled_running = "50%"')
    async with opened(database) as store:
        desk = desk_of(store)
        await desk.rehearse(fee, MONTH, "mia")
        with pytest.raises(Refused, match="on no job at all"):
            await desk.apply(fee, "mia", "a fee")
        await store.account("ada", 100)
        await song(store, "ada")
        await desk.rehearse(fee, MONTH, "mia")
        assert 2 == (await desk.apply(fee, "mia", "a fee")).book


async def test_a_large_change_can_be_forced_with_a_reason_that_is_kept(database: Database) -> None:
    """The history tells who did it and why."""
    async with opened(database) as store:
        desk = desk_of(store)
        assert "the shop is empty" == (await desk.apply(DEARER, "mia", "up", force="the shop is empty")).forced
        assert ["the shop is empty", None] == [line.forced for line in await desk.history()]


async def test_a_small_change_needs_no_rehearsal(database: Database) -> None:
    """How much is small is a setting; a planned book is compared with the one it follows."""
    cheap = SHIPPED.replace("multiplier = 2.5", "multiplier = 2.6")
    later = (await database_now(database)) + timedelta(days=1)
    async with opened(database) as store:
        assert 2 == (await desk_of(store).apply(cheap, "mia", "up")).book
        with pytest.raises(Refused, match="more than 3 %"):
            await desk_of(store, price_change_percent_max=3).apply(SHIPPED, "mia", "down")
        await desk_of(store).apply(DEARER, "mia", "up", later, force="we know")
        after = later + timedelta(days=1)
        slightly = DEARER.replace("multiplier = 2.5", "multiplier = 2.6")
        assert 4 == (await desk_of(store).apply(slightly, "mia", "up", after)).book


async def test_what_a_planned_book_changes_is_judged_by_the_book_that_it_will_follow(database: Database) -> None:
    """Not only by the one that it was planned behind: else two steps, or one taken back, bring any change unseen."""
    tomorrow = (await database_now(database)) + timedelta(days=1)
    after = tomorrow + timedelta(days=1)
    slightly = DEARER.replace("multiplier = 2.5", "multiplier = 2.6")
    async with opened(database) as store:
        desk = desk_of(store)
        await store.account("ada", 100)
        await song(store, "ada")
        await desk.apply(DEARER, "mia", "up", tomorrow, force="we know")
        assert 3 == (await desk.apply(slightly, "mia", "a little more", after)).book
        # Book 3 would now follow book 1.
        with pytest.raises(Refused, match=r"rehearsal: the planned book 3 would then .*generation costs"):
            await desk.withdraw(2, "mia", "not yet")
        assert [None, None, None] == [line.withdrawn_at for line in await desk.history()]
        # Book 3 would now follow the old prices, put between.
        between = tomorrow + timedelta(hours=1)
        await desk.rehearse(SHIPPED, MONTH, "mia")
        with pytest.raises(Refused, match="the planned book 3 would then"):
            await desk.apply(SHIPPED, "mia", "down", between)
        assert 4 == (await desk.apply(SHIPPED, "mia", "down", between, force="we want both")).book
        await desk.withdraw(4, "mia", "no")
        await desk.rehearse(slightly, MONTH, "mia")
        assert (await desk.withdraw(2, "mia", "not yet")).withdrawn_at is not None


async def test_a_book_about_to_come_into_force_is_not_withdrawn(database: Database) -> None:
    """A withdrawal that is held up before its COMMIT would take back what jobs were priced by meanwhile."""
    soon = (await database_now(database)) + timedelta(minutes=10)
    async with opened(database) as store:
        desk = desk_of(store)
        await desk.apply(SHIPPED + "# 2\n", "mia", "up", soon)
        await desk.apply(SHIPPED + "# 3\n", "mia", "up", soon + timedelta(minutes=10))
        await database.advance(timedelta(minutes=9, seconds=45))
        with pytest.raises(Refused, match=r"book: book 2 comes into force at .* too soon to be withdrawn"):
            await desk.withdraw(2, "mia", "no")
        assert (await desk.withdraw(3, "mia", "no")).withdrawn_at is not None


async def test_a_revert_goes_back_to_what_was_in_force(database: Database) -> None:
    """A planned or a withdrawn book was let in for another time and place; a revert waits for no rehearsal."""
    async with opened(database) as store:
        desk = desk_of(store)
        await desk.apply(DEARER, "mia", "up", (await database_now(database)) + timedelta(days=1), force="we know")
        for _ in range(2):
            with pytest.raises(Refused, match="book: book 2 was never in force"):
                await desk.revert(2, "mia", "now")
            await desk.withdraw(2, "mia", "no")
        assert [2, 1] == [line.book for line in await desk.history()]


async def test_a_revert_asks_what_becomes_of_the_planned_book(database: Database) -> None:
    """It was small beside the book that is taken back, and would be large beside the one that comes again."""
    later = (await database_now(database)) + timedelta(days=1)
    slightly = DEARER.replace("multiplier = 2.5", "multiplier = 2.6")
    async with opened(database) as store:
        desk = desk_of(store)
        await desk.apply(DEARER, "mia", "up", force="a slip")
        await desk.apply(slightly, "mia", "a little more", later)
        with pytest.raises(Refused, match=r"the planned book 3 would then .*\(`fermata prices withdraw 3`\)"):
            await desk.revert(1, "mia", "back")
        assert [3, 2, 1] == [line.book for line in await desk.history()]
        assert ["planned", "in force", "past"] == [line.standing for line in await desk.history()]
        await desk.withdraw(3, "mia", "not yet")
        assert 4 == (await desk.revert(1, "mia", "back")).book
        assert ["withdrawn", "in force", "past", "past"] == [line.standing for line in await desk.history()]
        # What somebody answers for comes whatever it follows.
        await desk.apply(DEARER, "mia", "up", force="once more")
        await desk.apply(slightly, "mia", "a little more", later, force="it is meant")
        assert 7 == (await desk.revert(1, "mia", "back")).book


async def database_now(database: Database) -> datetime:
    async with database.connection() as connection:
        now: datetime = await connection.fetchval("SELECT fermata_now()")
    return now


def test_the_command_rehearses_and_then_applies(fermata: Fermata, tmp_path: Path) -> None:
    """A table with bars for people, one document for programs; --force takes its reason."""
    (draft := tmp_path / "draft.toml").write_text(DEARER)
    nothing = fermata("prices", "rehearse", str(draft)).out
    assert "no job ended in that time: a large change is not let in by this" in nothing, nothing
    finished(some_songs(fermata.database, ["ada", "bob"]))
    refused = fermata("prices", "apply", str(draft), *WHY)
    assert (2, 1) == (refused.code, len(refused.complaint.splitlines()))
    shown = fermata("prices", "rehearse", str(draft), "--since", "8w")
    assert 0 == shown.code, shown.err
    for part in ("32 -> 42 +31.2 %", "████▒", "2 accounts would pay more, 0 less", "0 accounts would have run out"):
        assert part in shown.out, shown.out
    found = fermata.ok("prices", "rehearse", str(draft))
    assert {"rehearsal", "digest", "against", "since", "until", "outcome"} == found.keys()
    assert {"jobs": 2, "before": 32, "after": 42}.items() <= found["outcome"].items()
    assert 2 == fermata.ok("prices", "apply", str(draft), *WHY)["book"]
    draft.write_text(SHIPPED)
    assert "a slip" == fermata.ok("prices", "apply", str(draft), *WHY, "--force", "a slip")["forced"]
    assert "without a rehearsal: a slip" in fermata("prices", "history").out


async def some_songs(database: Database, accounts: Sequence[str]) -> None:
    async with opened(database) as store:
        for account in accounts:
            await store.account(account, 100)
            await song(store, account)
