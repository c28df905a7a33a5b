"""Money back after the end: by hand, and for all jobs of a wrong price book."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from tests.integration.books import ACTOR, Store, opened
from tests.integration.cli_support import Fermata
from tests.integration.test_rehearsals import DEARER, desk_of
from tests.servers import Database
from worker import overcharges
from worker.credits.operations import Claimed
from worker.credits.outcomes import Ending
from worker.local.waiting import finished
from worker.store.audit import audit
from worker.store.compensations import Compensated, Compensations
from worker.store.errors import Conflict, Refused, UnknownAccount, UnknownJob

DAY = timedelta(days=1)


async def sold(store: Store, account: str, cost: int, seconds: int = 60) -> UUID:
    """A song that was made and paid."""
    request = {"prompt": "x", "seconds": seconds, "model": "standard", "variants": 1}
    claimed = await store.running(account, quoted=cost, request=request)
    assert isinstance(claimed, Claimed)
    usage = [{"output": "song", "seconds_in": "0", "seconds_out": str(seconds)}]
    await store.settle(account, claimed, measured=cost, usage=usage)
    return claimed.job.job_id


async def given(store: Store, account: str, job: UUID, amount: int, reference: str = "r-1") -> Compensated:
    """A compensation."""
    return await Compensations(store.engine, store.books).compensate(
        account, job, amount, reference, "it clicked", ACTOR
    )


async def test_a_job_is_compensated_by_a_lot_of_its_own(database: Database) -> None:
    """What was committed stays committed; the credits are spendable, and last until the cycle ends."""
    async with opened(database) as store:
        await store.account("ada", 16)
        job = await sold(store, "ada", 16)
        done = await given(store, "ada", job, 10)
        assert (job, 10, False) == (done.job, done.credits, done.replayed)
        # Without a cycle they last a day.
        now = await store.value("SELECT fermata_now()")
        assert DAY - timedelta(minutes=1) < done.expires_at - now <= DAY
        assert {"available": 10, "spent": 16}.items() <= (await store.buckets("ada")).items()
        lot = await store.fetch("SELECT source, reason, note, job_id FROM lots WHERE job_id IS NOT NULL")
        assert [("grant", "compensation", "it clicked", job)] == [tuple(row) for row in lot]
        subscribed = await store.accounts.subscribe("ada", "creator", "s-1", ACTOR)
        assert subscribed.cycle_ends_at == (await given(store, "ada", job, 6, "r-2")).expires_at
        assert (await audit(store.engine)).ok


async def test_a_gift_under_the_reference_of_a_compensation_is_a_conflict(database: Database) -> None:
    """It is not taken for that one told twice: nothing would come, and nobody would know."""
    async with opened(database) as store:
        await store.account("ada", 16)
        job = await sold(store, "ada", 16)
        await given(store, "ada", job, 10, "sorry")
        with pytest.raises(Conflict):
            await store.accounts.grant("ada", 10, "sorry", ACTOR)
        assert 1 == await store.value("SELECT count(*) FROM lots WHERE reference = 'sorry'")


async def test_no_job_gives_back_more_than_it_took(database: Database) -> None:
    """All compensations together, whatever their references; nothing is written by what is refused."""
    async with opened(database) as store:
        await store.account("ada", 100)
        job = await sold(store, "ada", 16)
        free = await store.running("ada", quoted=5)
        assert isinstance(free, Claimed)
        with pytest.raises(Refused, match="job: has not ended"):
            await given(store, "ada", free.job.job_id, 1)
        await store.settle("ada", free, Ending.ENGINE_ERROR)
        await given(store, "ada", job, 10)
        for which, amount, left in ((job, 7, 6), (free.job.job_id, 1, 0)):
            with pytest.raises(Refused, match=f"amount: at most {left} credits"):
                await given(store, "ada", which, amount, "r-2")
        await given(store, "ada", job, 6, "r-2")
        assert 16 == await store.value("SELECT sum(granted)::int FROM lots WHERE reason = 'compensation'")


async def test_the_same_reference_is_one_compensation(database: Database) -> None:
    """Again with the same words it is the first answer; with others it is a conflict."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.account("bob")
        job, other = await sold(store, "ada", 16), await sold(store, "ada", 16)
        first = await given(store, "ada", job, 10)
        again = await given(store, "ada", job, 10)
        assert (first.expires_at, True) == (again.expires_at, again.replayed)
        for which, amount in ((job, 9), (other, 10)):
            with pytest.raises(Conflict, match="was used before, for 10 credits"):
                await given(store, "ada", which, amount)
        with pytest.raises(UnknownJob):
            await given(store, "bob", job, 1)
        with pytest.raises(UnknownAccount):
            await given(store, "eve", job, 1)
        assert 1 == await store.value("SELECT count(*) FROM lots WHERE job_id IS NOT NULL")


async def test_many_at_once_give_no_more_than_the_charge(database: Database) -> None:
    """Thirty compensations of 3 for a charge of 16: exactly five are granted."""
    async with opened(database) as store:
        await store.account("ada", 16)
        job = await sold(store, "ada", 16)
        answers = await asyncio.gather(
            *(given(store, "ada", job, 3, f"r-{number}") for number in range(30)), return_exceptions=True
        )
        assert 5 == sum(isinstance(answer, Compensated) for answer in answers), answers
        assert 25 == sum(isinstance(answer, Refused) for answer in answers), answers
        assert 15 == (await store.buckets("ada"))["available"]


async def test_a_compensation_starts_what_waited_for_credits(database: Database) -> None:
    """Like every step that brings credits."""
    async with opened(database) as store:
        await store.account("ada", 16)
        job = await sold(store, "ada", 16)
        waiting = await store.queued("ada", quoted=10, on_insufficient="wait")
        await store.claim("ada", waiting)
        assert "waiting" == await store.value("SELECT state FROM jobs WHERE job_id = $1", waiting)
        await given(store, "ada", job, 10)
        assert "queued" == await store.value("SELECT state FROM jobs WHERE job_id = $1", waiting)


# --- a wrong book ----------------------------------------------------------------------------------------------


async def a_wrong_book(store: Store) -> dict[str, list[UUID]]:
    """Two songs of ada's by the book that was right, then two of hers and one of bob's by the wrong one, put right."""
    desk = desk_of(store)
    for account in ("ada", "bob"):
        await store.account(account, 1000)
    right = [await sold(store, "ada", 16) for _ in range(2)]
    await desk.apply(DEARER, "mia", "up", force="a slip")
    wrong = [await sold(store, account, 21) for account in ("ada", "ada", "bob")]
    await desk.revert(1, "mia", "back")
    return {"right": right, "wrong": wrong}


async def test_a_look_names_what_was_too_much_and_gives_nothing(database: Database) -> None:
    """Only jobs of that book, the worst first; compared with the book in force, or any other."""
    async with opened(database) as store:
        jobs = await a_wrong_book(store)
        before = await store.fetch("SELECT * FROM lots")
        found = await desk_of(store).overcharged(2)
        assert (2, 3, False) == (found.book, found.under, found.compensated)
        assert (3, 3, 2, 15, 0) == (found.looked_at, found.jobs, found.accounts, found.credits, found.given)
        assert {(job, 21, 16) for job in jobs["wrong"]} == {(one.job, one.charged, one.would) for one in found.worst}
        assert 1 == len((await desk_of(store).overcharged(2, 1, 1)).worst)
        assert 0 == (await desk_of(store).overcharged(1, 2)).jobs
        with pytest.raises(Refused, match="under: book 3 can't be compared with itself"):
            await desk_of(store).overcharged(3)
        assert before == await store.fetch("SELECT * FROM lots")


async def test_the_difference_is_given_once_per_job(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked for; what was given by hand counts."""
    monkeypatch.setattr(overcharges, "TOGETHER_MAX", 1)
    async with opened(database) as store:
        jobs = await a_wrong_book(store)
        await given(store, "ada", jobs["wrong"][0], 19)  # 2 of its 21 are left
        give = ("wrong book", "mia")
        look = await desk_of(store).overcharged(2)
        # A look promises what will come, not the whole difference again.
        assert (15, 12, {2, 5}) == (look.credits, look.to_give, {one.to_give for one in look.worst})
        first = await desk_of(store).overcharged(2, give=give)
        second = await desk_of(store).overcharged(2, give=give)
        assert (12, 0) == (first.given, second.given)
        assert (15, 0) == ((look := await desk_of(store).overcharged(2)).credits, look.to_give)
        assert {2, 5} == {one.given for one in first.worst}
        lots = await store.fetch("SELECT job_id, granted FROM lots WHERE reference LIKE 'overcharged:%'")
        assert {(jobs["wrong"][0], 2), (jobs["wrong"][1], 5), (jobs["wrong"][2], 5)} == {tuple(row) for row in lots}
        assert (await audit(store.engine)).ok


async def two_wrong_books(store: Store) -> list[UUID]:
    """As `a_wrong_book`; then book 4, of a price between the two, which a person takes for the right one at first."""
    wrong = (await a_wrong_book(store))["wrong"]
    between = DEARER.replace("base = 9\n", "base = 7\n", 1)
    await desk_of(store).apply(between, "mia", "half back", force="a test")
    return wrong


async def test_what_is_still_missing_under_a_cheaper_book_comes_by_a_second_compensation(database: Database) -> None:
    """What came under a book that was too dear as well counts, by what it really was; no credit comes twice."""
    async with opened(database) as store:
        wrong = await two_wrong_books(store)
        desk, give = desk_of(store), ("wrong book", "mia")
        await given(store, "bob", wrong[2], 18, "it clicked")  # of its 21: 3 are left
        half = await desk.overcharged(2, 4, give=give)
        assert (6, 6, 18) == (half.credits, half.given, half.given_before)
        look = await desk.overcharged(2, 1)
        assert (15, 24, 6, 7) == (look.credits, look.given_before, look.mended_before, look.to_give)
        assert {(3, 2), (1, 20)} == {(one.to_give, one.given_before) for one in look.worst}
        rest = await desk.overcharged(2, 1, give=give)
        assert (7, 24, 6) == (rest.given, rest.given_before, rest.mended_before)
        for under in (1, 3, 4):
            again = await desk.overcharged(2, under, give=give)
            assert (0, 31, 13) == (again.given, again.given_before, again.mended_before)
        assert {(wrong[0], 5), (wrong[1], 5), (wrong[2], 21)} == {
            tuple(row)
            for row in await store.fetch(
                "SELECT job_id, sum(granted)::int FROM lots WHERE job_id IS NOT NULL GROUP BY 1"
            )
        }
        first = f"overcharged:{wrong[0]}"
        assert [(first, 2), (f"{first}:1", 3)] == [
            tuple(row)
            for row in await store.fetch("SELECT reference, granted FROM lots WHERE job_id = $1 ORDER BY 1", wrong[0])
        ]
        assert (await audit(store.engine)).ok


async def test_two_people_who_mend_at_once_give_each_job_its_difference_once(database: Database) -> None:
    """Whichever books they compare with, and whoever is first."""
    async with opened(database) as store:
        wrong = await two_wrong_books(store)
        desk, give = desk_of(store), ("wrong book", "mia")
        answers = await asyncio.gather(*(desk.overcharged(2, under, give=give) for under in (4, 1, 3, 1, 4)))
        assert 15 == sum(answer.given for answer in answers)
        lots = await store.fetch("SELECT job_id, sum(granted)::int FROM lots WHERE job_id IS NOT NULL GROUP BY 1")
        assert dict.fromkeys(wrong, 5) == {row[0]: row[1] for row in lots}
        assert (await audit(store.engine)).ok


async def test_jobs_that_still_carry_the_wrong_book_are_counted(database: Database) -> None:
    """Queued, running or waiting: what they will be charged too much is not known before they end."""
    async with opened(database) as store:
        await a_wrong_book(store)
        await desk_of(store).apply(DEARER, "mia", "up", force="a slip again")
        assert (0, 0) == ((look := await desk_of(store).overcharged(4, 1)).unfinished, look.unfinished_quoted)
        await store.queued("ada", quoted=21)
        await store.running("ada", quoted=22)
        await store.accounts.create("eve", ACTOR)
        await store.claim("eve", await store.queued("eve", quoted=23, on_insufficient="wait"))
        assert (3, 66) == ((look := await desk_of(store).overcharged(4, 1)).unfinished, look.unfinished_quoted)
        assert 0 == (await desk_of(store).overcharged(2, 1)).unfinished


def test_the_command_looks_first_and_then_gives(fermata: Fermata) -> None:
    """Compensating needs its word, a reason and a name."""
    jobs = finished(_wrong_book(fermata.database))
    with fermata.nothing_written():
        shown = fermata("prices", "overcharged", "2")
        assert (0, True) == (shown.code, "3 jobs of 2 accounts" in shown.out), shown.out
        assert "--compensate --reason" in shown.out
        assert "to give        15 credits" in shown.out
        for words in (("--compensate",), ("--reason", "x"), ("--compensate", "--reason", "a\nb", "--as", "mia")):
            assert 2 == fermata("prices", "overcharged", "2", *words).code
    given_now = fermata.ok("prices", "overcharged", "2", "--compensate", "--reason", "wrong book", "--as", "mia")
    assert (15, True) == (given_now["given"], given_now["compensated"])
    again = fermata("prices", "overcharged", "2").out
    assert ("0 credits; 15 were given before" in again, "--compensate" in again) == (True, False), again
    assert "not ended" not in again
    song = ("generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=60")
    fermata.ok("jobs", "submit", *song)
    finished(_dearer_again(fermata.database))
    fermata.ok("jobs", "submit", *song)
    running = fermata("prices", "overcharged", "4", "--under", "1").out
    assert "not ended yet  1 job, quoted 21 credits" in running, running
    assert "once they have ended, the same again" in running, running
    receipt = fermata.ok("jobs", "receipt", str(jobs[0]))
    assert [("compensation", 5)] == [(lot["reason"], lot["credits"]) for lot in receipt["given"]]
    by_hand = ("jobs", "compensate", str(jobs[0]), "--reason", "it clicked")
    assert 16 == fermata.ok(*by_hand, "--amount", "16", "--reference", "r-9")["credits"]
    assert fermata.ok(*by_hand, "--amount", "16", "--reference", "r-9")["replayed"]
    assert "amount: at most 0 credits" in fermata(*by_hand, "--amount", "1").complaint


async def _wrong_book(database: Database) -> list[UUID]:
    async with opened(database) as store:
        return (await a_wrong_book(store))["wrong"]


async def _dearer_again(database: Database) -> None:
    async with opened(database) as store:
        await desk_of(store).apply(DEARER, "mia", "up", force="a slip again")
