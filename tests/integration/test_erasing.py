"""An erased account: what people wrote and made is nowhere any more, and the books are as exact as they were."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import uuid_utils.compat as uuids

from tests.acceptance.stage import Zygote
from tests.integration import test_voices
from tests.integration.books import ACTOR, Store, an_output, opened
from tests.integration.cli_support import Answer, Fermata, files_in, forked, silence
from tests.integration.test_group_commit import until
from tests.servers import Database
from worker import failpoints
from worker.artifacts.folder import FolderStore
from worker.credits.operations import Claimed
from worker.credits.outcomes import Ending
from worker.erasing import Erased
from worker.erasing import erase as erase_whole
from worker.failpoints import MOMENTS
from worker.local.waiting import finished
from worker.store.artifacts import Artifacts
from worker.store.audit import audit
from worker.store.erasing import Erasing
from worker.store.errors import Refused
from worker.store.submits import ArtifactFacts

WORDS = "a waltz for Aunt Agatha"
WHY = ("--reason", "ticket 4711", "--as", "kim")


def erase(fermata: Fermata, account: str = "ada") -> Answer:
    return fermata("accounts", "erase", account, *WHY, "--confirm", account, "--json")


async def words_anywhere(database: Database, word: str) -> list[str]:
    """The tables in which it stands in any column, however deep."""
    async with database.connection(as_owner=True) as owner:
        tables = await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [
            name
            for (name,) in tables
            if await owner.fetchval(f"SELECT EXISTS (SELECT FROM {name} AS t WHERE t::text ILIKE $1)", f"%{word}%")
        ]


async def lived(database: Database) -> None:
    """Jobs that ended in every way in which words may be left, one of them charged."""
    async with opened(database) as store:
        request = {"prompt": WORDS, "seconds": 20, "model": "standard", "instrumental": True, "tags": [WORDS]}
        for ending in (Ending.SUCCEEDED, Ending.ENGINE_ERROR, Ending.ENGINE_CRASHED):
            running = await store.running("ada", quoted=10, request=request, failures_max=1)
            more: dict[str, Any] = {} if ending is Ending.SUCCEEDED else {"message": f"no {WORDS}"}
            await store.settle("ada", running, ending, **more)
        await store.claim("ada", await store.queued("ada", quoted=10_000, request=request))  # refused
    async with database.connection(as_owner=True) as owner:
        await owner.execute(
            "UPDATE jobs SET metadata = jsonb_build_object('for', $1::text), traceparent = $1 "
            "WHERE state = 'succeeded'",
            WORDS,
        )
        await owner.execute("UPDATE attempts SET engine_state = jsonb_build_object('lyrics', $1::text)", WORDS)
        await owner.execute(
            "UPDATE events SET body = jsonb_build_object('note', $1::text) WHERE account_id = 'ada'", WORDS
        )
        await owner.execute(
            "INSERT INTO deliveries (account_id, seq, webhook_id, at, what, state, next_at, last_error) "
            "SELECT account_id, seq, gen_random_uuid(), at, what, 'pending', at, $1 FROM events",
            WORDS,
        )


clip = test_voices.clip


@pytest.fixture
def ada(fermata: Fermata, tmp_path: Path) -> Path:
    """The folder of artifacts, in which ada has a recording; her jobs have ended."""
    fermata.account("ada", 100)
    fermata.account("bob", 100)
    for account in ("ada", "bob"):
        voice = silence(tmp_path / f"{account}.wav", 1)
        fermata.ok("artifacts", "put", str(voice), "--account", account, "--name", f"{WORDS} of {account}")
    finished(lived(fermata.database))
    return tmp_path / "artifacts"


def test_words_and_sounds_are_gone_and_the_books_are_not(fermata: Fermata, ada: Path) -> None:
    """From requests, metadata, messages, attempts, events, deliveries, artifacts and the store; bob keeps his."""
    entries, balance = fermata.ok("accounts", "journal", "ada"), fermata.ok("accounts", "balance", "ada")
    assert {"jobs", "attempts", "artifacts", "deliveries"} <= set(finished(words_anywhere(fermata.database, WORDS)))
    (bobs,) = [path for path in files_in(ada) if "inputs" in path and path not in _of(fermata, "ada", ada)]
    done = erase(fermata)
    assert (0, {"account": "ada", "artifacts": 2}) == (done.code, done.document)
    assert ["artifacts"] == finished(words_anywhere(fermata.database, WORDS))  # bob's
    assert [bobs] == [path for path in files_in(ada) if "inputs" in path]
    assert (entries, balance) == (fermata.ok("accounts", "journal", "ada"), fermata.ok("accounts", "balance", "ada"))
    assert fermata.ok("audit")["ok"]
    # A price can still be explained: numbers, switches and choices of ours are nobody's words.
    (kept,) = {json.dumps(request, sort_keys=True) for request in finished(_requests(fermata.database))}
    assert {"seconds": 20, "model": "standard", "instrumental": True} == json.loads(kept)
    for job in fermata.ok("jobs", "list", "--account", "ada")["jobs"]:
        assert 0 == fermata("jobs", "receipt", job["id"]).code
        assert [] == fermata.ok("jobs", "show", job["id"])["outputs"]


def _of(fermata: Fermata, account: str, folder: Path) -> list[str]:
    listed = fermata.ok("artifacts", "list", "--account", account)["artifacts"]
    ids = {one["artifact"] for one in listed}
    return [path for path in files_in(folder) if Path(path).name in ids]


async def _requests(database: Database) -> list[Any]:
    async with database.connection() as connection:
        return [json.loads(row["request"]) for row in await connection.fetch("SELECT request FROM jobs")]


def test_who_did_it_and_why_stands_in_the_log(fermata: Fermata, ada: Path) -> None:
    """Done again it changes nothing but this."""
    assert 2 == erase(fermata).document["artifacts"]
    assert 0 == erase(fermata).document["artifacts"]
    said = finished(_log(fermata.database))
    assert [("erasures.insert", "kim", "ticket 4711"), ("erasures.update", "kim", "ticket 4711")] == said
    assert fermata.ok("audit")["ok"]


async def _log(database: Database) -> list[tuple[str, str, str]]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT what, actor, after ->> 'reason' FROM audit_log WHERE subject = 'ada' AND what LIKE 'erasures%' "
            "ORDER BY entry_id"
        )
        return [tuple(row) for row in rows]


#: Every transaction of an erasure: for each a process dies in it, before and after its COMMIT.
STEPS = ("erase_account", "erase_jobs", "erase_log", "erase_artifacts")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_that_is_killed_is_done_by_the_next(
    fermata: Fermata, environment: dict[str, str], zygote: Zygote, ada: Path, tmp_path: Path, step: str, moment: str
) -> None:
    """Wherever it dies, the books are exact; done again, nothing is left."""
    armed = {**environment, "FERMATA_FAILPOINTS": f"{step}.{moment}:kill"}
    erasing = ("accounts", "erase", "ada", *WHY, "--confirm", "ada")
    assert -signal.SIGKILL == forked(zygote, armed, tmp_path, *erasing)
    assert fermata.ok("audit")["ok"]
    assert 0 == erase(fermata).code
    assert ["artifacts"] == finished(words_anywhere(fermata.database, WORDS))  # bob's
    assert [] == _of(fermata, "ada", ada)
    assert fermata.ok("audit")["ok"]


@pytest.mark.parametrize("confirmed", [(), ("--confirm", "bob")])
def test_nothing_is_erased_without_its_id_once_more(fermata: Fermata, ada: Path, confirmed: tuple[str, ...]) -> None:
    """One line says what to type."""
    with fermata.nothing_written(ada):
        answer = fermata("accounts", "erase", "ada", *WHY, *confirmed)
    assert (2, True) == (answer.code, "--confirm ada" in answer.complaint)


def test_an_account_with_unfinished_jobs_is_not_erased(fermata: Fermata, ada: Path) -> None:
    """The line says how to end them; after that it is."""
    finished(_queue_one(fermata.database))
    with fermata.nothing_written(ada):
        answer = erase(fermata)
    assert (2, True) == (answer.code, "jobs cancel-many --account ada" in answer.complaint)
    fermata.ok("jobs", "cancel-many", "--account", "ada", "--reason", "erased")
    assert 0 == erase(fermata).code
    assert fermata.ok("audit")["ok"]


async def _queue_one(database: Database) -> None:
    async with opened(database) as store:
        await store.queued("ada", quoted=10)


def test_an_account_that_is_not_there_is_said(fermata: Fermata) -> None:
    """As everywhere."""
    assert (2, True) == ((answer := erase(fermata, "eve")).code, "no account 'eve'" in answer.complaint)


def test_a_voice_is_taken_away_first(fermata: Fermata, ada: Path, clip: Path) -> None:
    """Then its clip goes too, and the row that jobs may name keeps no word."""
    rights = ("--owner", "ada", "--licence", "own recording", "--consent", "Ada, by mail")
    fermata.ok("voices", "add", "alto", str(clip), *rights)
    answer = erase(fermata)
    assert (2, True) == (answer.code, "fermata voices remove alto" in answer.complaint)
    fermata.ok("voices", "remove", "alto")
    assert 0 == erase(fermata).code
    (left,) = fermata.ok("artifacts", "list", "--account", "ada")["artifacts"]
    assert ("erased", []) == (left["name"], [path for path in files_in(ada) if left["artifact"] in path])


async def test_the_log_loses_words_and_nothing_else(database: Database) -> None:
    """Of an erased account its owner can take words out; who did what stays, and so does all of another account."""
    async with opened(database) as store, database.connection(as_owner=True) as owner:
        for account in ("ada", "bob"):
            await store.account(account)
            await store.accounts.grant(account, 5, "g", "kim", note=WORDS)
        before = [dict(row) for row in await owner.fetch(_LOGGED)]
        await Erasing(store.engine).begin("ada", "kim", "ticket 4711")
        assert await Erasing(store.engine).log("ada", 0) is not None
        wordless = [{**row, "note": None} if row["subject"] == "ada" else row for row in before]
        assert wordless == [dict(row) for row in await owner.fetch(_LOGGED)]
        for rewriting in (
            "UPDATE audit_log SET actor = 'nobody' WHERE subject = 'ada'",
            "UPDATE audit_log SET after = after || '{\"granted\": 6}' WHERE subject = 'ada'",
            "UPDATE audit_log SET after = after - 'note' WHERE subject = 'bob'",
            "DELETE FROM audit_log WHERE subject = 'ada'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute(rewriting)


_LOGGED = """
    SELECT entry_id, at, actor, what, subject, after ->> 'granted' AS granted, after ->> 'note' AS note
    FROM audit_log
    WHERE what NOT LIKE 'erasures%'
    ORDER BY entry_id
"""


async def test_only_ended_jobs_of_an_erased_account_are_touched(database: Database) -> None:
    """Whatever a process of ours asks of the database; and its role may erase nobody by itself."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.settle("ada", await store.running("ada", request={"prompt": WORDS}))
        later = await store.queued("ada", request={"prompt": WORDS})
        async with database.connection() as app:
            with pytest.raises(asyncpg.RaiseError, match="unfinished"):
                await app.execute("SELECT fermata_erase_account('ada', 'kim', 'why')")
            await store.claim("ada", later)
        assert WORDS == json.loads(await store.value("SELECT request FROM jobs WHERE job_id = $1", later))["prompt"]


async def sold(store: Store, folder: FolderStore, source: Path, claimed: Claimed | None = None) -> tuple[UUID, Path]:
    """A job of ada's that was paid, and the file of its song."""
    claimed = claimed or await store.running("ada", request={"prompt": WORDS})
    key, _ = await folder.put_output(source, claimed.job.job_id, claimed.token, "song")
    await store.settle("ada", claimed, outputs=[replace(an_output(), storage_key=key)])
    return claimed.job.job_id, folder.path(key)


async def put(store: Store, folder: FolderStore, source: Path) -> tuple[UUID, Path]:
    """A recording of ada's, and its file."""
    key = await folder.keep(await folder.draft(source, recording := uuids.uuid7()), "ada")
    facts = ArtifactFacts(recording, WORDS, "audio/wav", key, bytes(32), 441_000, 44_100, 1, 1000)
    await Artifacts(store.engine).add("ada", facts, ACTOR)
    return recording, folder.path(key)


async def test_what_comes_since_it_began_stays(database: Database, tmp_path: Path) -> None:
    """A pipeline that knows nothing of it submits, is sold and puts meanwhile: rows, files and words stay whole."""
    async with opened(database) as store:
        folder, source = FolderStore(tmp_path / "artifacts"), silence(tmp_path / "song.wav", 1)
        await folder.prepare()
        await store.account("ada", 100)
        (old, old_song), (_, old_recording) = await sold(store, folder, source), await put(store, folder, source)
        held = failpoints.hold("erase_account.committed")
        erasing = asyncio.create_task(erase_whole(Erasing(store.engine), folder, {}, "ada", "ticket 4711", "kim"))
        await held.reached.wait()
        late, song = await sold(store, folder, source)
        recording, file = await put(store, folder, source)
        again = await store.running("ada", request={"prompt": WORDS})
        await store.settle("ada", again, Ending.ENGINE_ERROR, message=WORDS)  # and goes again
        await store.accounts.grant("ada", 5, "late", ACTOR, note=WORDS)
        held.let_go()
        assert Erased("ada", 2) == await erasing
        assert [False, False, True, True] == [one.exists() for one in (old_song, old_recording, song, file)]
        artifacts = await store.fetch("SELECT job_id, name, artifact_id FROM artifacts ORDER BY job_id NULLS LAST")
        assert [(late, "song"), (None, WORDS)] == [(row["job_id"], row["name"]) for row in artifacts]
        assert recording == artifacts[1]["artifact_id"]
        jobs = await store.fetch(
            "SELECT job_id, jsonb_array_length(outputs) AS outputs, request ? 'prompt' AS worded FROM jobs "
            "ORDER BY job_id"
        )
        told = [(old, 0, False), (late, 1, True), (again.job.job_id, None, True)]
        assert told == [(row["job_id"], row["outputs"], row["worded"]) for row in jobs]
        kept = await store.fetch("SELECT job_id FROM attempts WHERE message = $1", WORDS)
        assert [again.job.job_id] == [row["job_id"] for row in kept]
        assert WORDS == await store.value("SELECT after ->> 'note' FROM audit_log WHERE after ->> 'reference' = 'late'")
        assert () == (await audit(store.engine)).violations


@pytest.mark.parametrize("first", ["submit", "erase"])
async def test_an_erasure_and_a_submit_take_turns(database: Database, first: str) -> None:
    """Whoever comes second waits for the first one: it is refused by a job that is there, and hinders none."""
    async with opened(database) as store, opened(database) as other:
        await store.account("ada", 100)
        steps: dict[str, Callable[[], Any]] = {
            "submit": lambda: store.queued("ada"),
            "erase": lambda: Erasing(other.engine).begin("ada", "kim", "ticket 4711"),
        }
        held = failpoints.hold({"submit": "submit.written", "erase": "erase_account.written"}[first])
        leads = asyncio.create_task(steps.pop(first)())
        await held.reached.wait()
        ((_, second),) = steps.items()
        follows = asyncio.create_task(second())
        waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
        await until(lambda: store.value(waits, database.name), "the second one waits")
        held.let_go()
        await leads
        if first == "submit":
            with pytest.raises(Refused, match="1 unfinished job"):
                await follows
        else:
            await follows
