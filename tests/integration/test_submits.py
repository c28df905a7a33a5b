"""Submitting: one key is one job, a bad submission harms no other, and nothing but rows of PostgreSQL is written."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.books import ACTOR, ASubmission, Store, opened
from tests.servers import Database
from worker.store.artifacts import Artifacts
from worker.store.errors import Conflict, Refused, RefusedByDatabase, UnknownAccount
from worker.store.submits import ArtifactFacts, NewJob, Submitted, SubmitView


def asks(account: str = "ada", key: str = "k", quoted: int = 10, **more: Any) -> ASubmission:
    return ASubmission(account, key, quoted, more)


async def told_by(store: Store, *submissions: Any) -> list[Any]:
    """The answers to submissions that are started together."""
    return await asyncio.gather(*map(store.submits.do, submissions), return_exceptions=True)


# --- idempotency -----------------------------------------------------------------------------------------------


async def test_one_key_twenty_times_at_once_is_one_job(database: Database) -> None:
    """From two processes, in batches and alone: one is new, the rest are its replays with the same id."""
    async with opened(database) as one, opened(database) as other:
        await one.account("ada")
        answers = await asyncio.gather(*((one, other)[n % 2].submits.do(asks()) for n in range(20)))
        assert 1 == len({answer.job_id for answer in answers})
        assert Counter({True: 19, False: 1}) == Counter(answer.replayed for answer in answers)
        assert (1, 1) == (await one.value("SELECT count(*) FROM jobs"), await one.value("SELECT count(*) FROM due"))


async def test_many_processes_with_many_common_keys_never_meet_in_a_deadlock(database: Database) -> None:
    """Batches that share keys in opposite orders: each key is one job, nobody fails."""
    async with opened(database, batch_max=10) as one, opened(database, batch_max=10) as other:
        await one.account("ada")
        keys = [asks(key=f"k{n}") for n in range(60)]
        answers = await asyncio.gather(
            *(one.submits.do(key) for key in keys), *(other.submits.do(key) for key in reversed(keys))
        )
        assert 60 == len({answer.job_id for answer in answers})
        assert Counter({True: 60, False: 60}) == Counter(answer.replayed for answer in answers)


async def test_a_key_with_another_body_is_a_conflict(database: Database) -> None:
    """Later, and also beside the first in one batch; the first stands."""
    async with opened(database) as store:
        await store.account("ada")
        first, second = await told_by(store, asks(), asks(quoted=11))
        assert (Submitted, Conflict) == (type(first), type(second))
        (third,) = await told_by(store, asks(quoted=12))
        assert ("key", "k") == (third.field, third.value)
        assert [10] == [row["quoted"] for row in await store.fetch("SELECT quoted FROM jobs")]


async def test_two_bodies_for_one_key_at_once_are_one_job_and_a_conflict(database: Database) -> None:
    """Whoever comes first, in whichever process."""
    async with opened(database) as one, opened(database) as other:
        await one.account("ada")
        for n in range(5):
            answers = await asyncio.gather(
                one.submits.do(asks(key=f"k{n}")),
                other.submits.do(asks(key=f"k{n}", quoted=11)),
                return_exceptions=True,
            )
            assert ["Conflict", "Submitted"] == sorted(type(answer).__name__ for answer in answers)


async def test_keys_are_each_accounts_own(database: Database) -> None:
    """The same key of two accounts names two jobs."""
    async with opened(database) as store:
        await store.account("ada")
        await store.account("bob")
        answers = await told_by(store, asks("ada"), asks("bob"))
        assert [False, False] == [answer.replayed for answer in answers]


async def test_a_replay_tells_how_the_job_stands(database: Database) -> None:
    """The first answer's id, quote and book; its state as it is now, also when the job has ended."""
    async with opened(database) as store:
        await store.account("ada", 100)
        (first,) = await told_by(store, asks())
        await store.settle("ada", await store.claim("ada", first.job_id))
        (again,) = await told_by(store, asks())
        assert replace(first, replayed=True, state="succeeded") == again
        assert 0 == await store.value("SELECT count(*) FROM due")


async def test_what_was_turned_down_burned_no_key(database: Database) -> None:
    """An unknown account, a refused request: the same key may ask again."""

    @dataclass(frozen=True, slots=True)
    class Refusing(ASubmission):
        def decide(self, view: SubmitView) -> NewJob:
            raise Refused("request", "no")

    async with opened(database) as store:
        (unknown,) = await told_by(store, asks())
        assert isinstance(unknown, UnknownAccount)
        await store.account("ada")
        refused, accepted = await told_by(store, Refusing("ada", "k", 10, {}), asks(key="other"))
        assert (Refused, Submitted) == (type(refused), type(accepted))
        (accepted,) = await told_by(store, asks())
        assert not accepted.replayed


# --- batches ---------------------------------------------------------------------------------------------------


async def test_a_bad_submission_harms_no_other(database: Database) -> None:
    """What the schema or PostgreSQL turns away fails alone; its neighbours are stored."""
    async with opened(database) as store:
        await store.account("ada")
        bad = [
            asks(key="k" * 256),
            asks(key="price", quoted=10**12 + 1),
            asks(key="huge", quoted=2**63),
            asks(key="nul\0"),
            asks(key="wait", on_insufficient="perhaps"),
        ]
        answers = await told_by(store, *(asks(key=f"k{n}") for n in range(20)), *bad)
        assert [Submitted] * 20 + [RefusedByDatabase] * 5 == [type(answer) for answer in answers]
        assert 20 == await store.value("SELECT count(*) FROM jobs") == await store.value("SELECT count(*) FROM due")


async def test_a_thousand_at_once_are_stored_in_a_few_transactions(database: Database) -> None:
    """Each once, each with its row in `due`."""
    async with opened(database) as store:
        for account in ("ada", "bob"):
            await store.account(account)
        answers = await told_by(store, *(asks(("ada", "bob")[n % 2], f"k{n}") for n in range(1000)))
        assert 1000 == len({answer.job_id for answer in answers})
        assert 1000 == await store.value("SELECT count(*) FROM jobs JOIN due USING (account_id, job_id)")
        assert store.submits.figures.transactions <= 3


# --- what is stored --------------------------------------------------------------------------------------------


async def test_the_deadline_is_counted_by_the_databases_clock(database: Database) -> None:
    """A default counts from the submit; a given one stands; `run_at` becomes the earliest start."""
    async with opened(database) as store:
        await store.account("ada")
        now = await store.value("SELECT fermata_now()")
        run_at, ends_by = now + timedelta(hours=2), now + timedelta(hours=5)
        await told_by(store, asks(key="default", job_seconds=60.0), asks(key="given", run_at=run_at, ends_by=ends_by))
        await told_by(store, asks(key="past", run_at=now - timedelta(hours=2)))
        found = {
            row["idempotency_key"]: row
            for row in await store.fetch(
                "SELECT j.idempotency_key, j.ends_by, j.created_at, d.not_before, d.ends_by AS due_ends_by "
                "FROM jobs AS j JOIN due AS d USING (job_id)"
            )
        }
        assert timedelta(seconds=60) == found["default"]["ends_by"] - found["default"]["created_at"]
        assert found["default"]["not_before"] == found["default"]["created_at"] >= now
        assert (run_at, ends_by, ends_by) == tuple(found["given"][c] for c in ("not_before", "ends_by", "due_ends_by"))
        assert found["past"]["not_before"] == found["past"]["created_at"]


async def test_a_job_for_later_has_its_whole_time_from_then_on(database: Database) -> None:
    """By default it ends `job_seconds` after its earliest start, not before that; a start in the past is now."""
    async with opened(database) as store:
        await store.account("ada", 100)
        now = await store.value("SELECT fermata_now()")
        later, past = now + timedelta(days=3), now - timedelta(days=3)
        await told_by(
            store,
            asks(key="later", run_at=later, job_seconds=60.0),
            asks(key="past", run_at=past, job_seconds=60.0),
        )
        lasting = {
            row["idempotency_key"]: (row["ends_by"] - row["not_before"], row["job_ends_by"] - row["ends_by"])
            for row in await store.fetch(
                "SELECT j.idempotency_key, j.ends_by AS job_ends_by, d.ends_by, d.not_before "
                "FROM jobs AS j JOIN due AS d USING (job_id)"
            )
        }
        minute = (timedelta(seconds=60), timedelta(0))
        assert {"later": minute, "past": minute} == lasting


async def test_a_submit_moves_no_credit_and_waits_for_no_account(database: Database) -> None:
    """It is accepted while the account is held by a claim, and without a single credit."""
    async with opened(database) as store, database.connection() as other:
        await store.account("ada")
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT 1 FROM accounts FOR NO KEY UPDATE")
        async with asyncio.timeout(3):
            (answer,) = await told_by(store, asks(quoted=10**12))
        assert isinstance(answer, Submitted)
        await transaction.rollback()
        assert 0 == await store.value("SELECT count(*) FROM journal") + await store.value("SELECT count(*) FROM lots")


async def test_the_book_in_force_is_pinned(database: Database) -> None:
    """A book that is to come, or was withdrawn, prices nothing."""
    async with opened(database) as store:
        await store.account("ada")
        async with database.connection(as_owner=True) as owner:
            for shift, withdrawn in (("1 hour", False), ("-1 second", True)):
                await owner.execute(
                    "INSERT INTO price_books (document, digest, effective_at, author, note, created_at, withdrawn_at) "
                    f"SELECT document, '', fermata_now() + interval '{shift}', 't', '', fermata_now(), "
                    f"{'fermata_now()' if withdrawn else 'NULL'} FROM price_books WHERE book_id = 1"
                )
        first, second = [(await told_by(store, asks(key=key)))[0] for key in ("a", "b")]
        assert (1, 1) == (first.book_id, second.book_id)
        await database.advance(timedelta(hours=2))
        (later,) = await told_by(store, asks(key="c"))
        assert 2 == later.book_id
        assert (await told_by(store, asks(key="a")))[0].book_id == 1


async def test_only_the_accounts_own_artifacts_are_seen(database: Database) -> None:
    """Another account's, and those that are not there, look alike."""

    @dataclass(frozen=True, slots=True)
    class Looking(ASubmission):
        artifact_ids: Sequence[UUID] = ()
        voice: str | None = None

        def decide(self, view: SubmitView) -> NewJob:
            raise Refused("seen", " ".join(sorted(str(artifact_id) for artifact_id in view.artifacts)))

    async with opened(database) as store:
        stored = Artifacts(store.engine)
        mine, hers = uuids.uuid7(), uuids.uuid7()
        for account, artifact_id in (("ada", mine), ("eve", hers)):
            await store.account(account)
            facts = ArtifactFacts(artifact_id, "n", "audio/wav", "s", bytes(32), 1, 44_100, 2, 10)
            await stored.add(account, facts, ACTOR)
        wanted = (mine, hers, uuids.uuid7())
        looks = [Looking("ada", "k", 1, {}, wanted), Looking("eve", "k", 1, {}, wanted)]
        ada, eve = await told_by(store, *looks)
        assert (str(mine), str(hers)) == (ada.problem, eve.problem)


@pytest.mark.parametrize("count", [1, 3])
async def test_the_dispatcher_is_woken_once_a_batch(database: Database, count: int) -> None:
    """A NOTIFY is one COMMIT's business, not each row's; a replay wakes nobody."""
    async with opened(database) as store, database.connection() as listener:
        await store.account("ada")
        woken: list[str] = []
        await listener.add_listener("fermata_due", lambda *args: woken.append(args[2]))
        submissions = [asks(key=f"k{n}") for n in range(count)]
        await told_by(store, *submissions)
        await told_by(store, *submissions)
        await listener.fetchval("SELECT 1")
        assert ["fermata_due"] == woken
