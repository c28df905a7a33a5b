"""The client as our own processes call it: whatever is handed to it ends as an answer or names the field."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import uuid_utils.compat as uuids

from config.settings import load
from tasks.kind import RefusedRequest
from tests.integration.cli_support import files_in, silence
from tests.servers import Database
from worker.boot import opened_client
from worker.client import Client, JobRequest
from worker.store.artifacts import Artifacts
from worker.store.errors import Conflict, LedgerUnavailable, OutcomeUnknown, Refused

ACTOR = "test"
SONG = {"prompt": "x", "seconds": 20}
LATER = datetime(2199, 12, 1, 10, tzinfo=UTC)


@asynccontextmanager
async def a_client(database: Database, folder: Path) -> AsyncIterator[Client]:
    """A client with one account, `ada`, that has credits."""
    settings = load({}, database_url=database.url, environment="test", artifacts_url=(folder / "artifacts").as_uri())
    async with opened_client(settings) as (client, store):
        await store.accounts.create("ada", ACTOR)
        await store.accounts.grant("ada", 1000, "start", ACTOR)
        yield client


def asked(**more: Any) -> JobRequest:
    """A song, but for what is given."""
    return JobRequest(**{"account_id": "ada", "kind": "generation", "params": SONG, **more})


def nested(depth: int) -> dict[str, Any]:
    """Objects within each other."""
    innermost: dict[str, Any] = {}
    for _ in range(depth):
        innermost = {"a": innermost}
    return innermost


def endless() -> dict[str, Any]:
    """An object that holds itself."""
    whole: dict[str, Any] = {}
    whole["again"] = [whole]
    return whole


def doubled(times: int) -> list[Any]:
    """Small in memory, without end when written out."""
    each: list[Any] = []
    for _ in range(times):
        each = [each, each]
    return each


#: What is wrong, the field that is named, and a piece of what is said of it.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"run_at": datetime.max.replace(tzinfo=UTC)}, "run_at", "between the years 2000 and 2200"),
    ({"run_at": datetime.min.replace(tzinfo=UTC)}, "run_at", "between the years 2000 and 2200"),
    ({"ends_by": datetime.max.replace(tzinfo=timezone(-timedelta(hours=9)))}, "ends_by", "between the years"),
    ({"run_at": LATER.replace(tzinfo=None)}, "run_at", "must carry a time zone"),
    ({"ends_by": LATER.replace(tzinfo=None)}, "ends_by", "must carry a time zone"),
    ({"run_at": "2026-12-01"}, "run_at", "must be a date and time"),
    ({"ends_by": 5}, "ends_by", "must be a date and time"),
    ({"ends_by": datetime(2024, 1, 1, tzinfo=UTC)}, "ends_by", "must be in the future"),
    ({"run_at": LATER, "ends_by": LATER}, "ends_by", "must be after run_at"),
    ({"metadata": nested(7_000)}, "metadata", "at most 64 deep"),
    ({"metadata": endless()}, "metadata", "at most 64 deep"),
    ({"metadata": {"a": doubled(40)}}, "metadata", "at most 65,536 values"),
    ({"metadata": {"a": [0] * 65_536}}, "metadata", "at most 65,536 values"),
    ({"metadata": [1]}, "metadata", "must be an object"),
    ({"metadata": None}, "metadata", "must be an object"),
    ({"metadata": {"a": [float("nan")]}}, "metadata", "numbers must be finite"),
    ({"metadata": {"a": float("-inf")}}, "metadata", "numbers must be finite"),
    ({"metadata": {"a": "\0"}}, "metadata", "NUL"),
    ({"metadata": {"\0": 1}}, "metadata", "NUL"),
    ({"metadata": {"a": "\ud800"}}, "metadata", "lone surrogates"),
    ({"metadata": {1: 1}}, "metadata", "names must be text"),
    ({"metadata": {"a": object()}}, "metadata", "must be JSON"),
    ({"metadata": {"a": 10**5_000}}, "metadata", "must be JSON"),
    ({"inputs": None}, "inputs", "must be an object"),
    ({"inputs": ["a"]}, "inputs", "must be an object"),
    ({"inputs": {1: str(uuids.uuid7())}}, "inputs", "names must be text"),
    ({"inputs": {"voice": 1}}, "inputs.voice", "must be the id of an artifact"),
    ({"params": None}, "params", "must be an object"),
    ({"key": 5}, "key", "1 to 255 printable characters"),
    ({"key": "\0"}, "key", "1 to 255 printable characters"),
    ({"key": "Lied-ü"}, "key", "1 to 255 printable ASCII characters"),
    ({"account_id": 5}, "account", "an id has 1 to 128"),
    ({"account_id": None}, "account", "an id has 1 to 128"),
    ({"kind": []}, "kind", "no such kind"),
    ({"on_insufficient": ["wait"]}, "on_insufficient", "must be refuse or wait"),
    ({"max_credits": "5"}, "max_credits", "must be a whole number"),
    ({"retry_of": str(uuids.uuid7())}, "retry_of", "must be the id of a job"),
]


async def test_whatever_is_asked_for_the_field_is_named(
    database: Database, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """No error of Python's or of the database's gets out; nothing is stored, and a good neighbour is."""
    async with a_client(database, tmp_path) as client:
        for wrong, field, problem in WRONG:
            with subtests.test(field=field, problem=problem):
                refused, taken = await client.submit_many([asked(**wrong), asked(key="good")], ACTOR)
                assert isinstance(refused, Refused | RefusedRequest), repr(refused)
                assert field == refused.field
                assert problem in refused.problem
                assert not isinstance(taken, Exception)
        assert await counted(database, "jobs") == 1


@pytest.mark.parametrize("actor", ["", "a\0b", "\udcff", "x" * 129, None])
async def test_who_asked_can_be_written_down(database: Database, tmp_path: Path, actor: Any) -> None:
    """For a job as for a file."""
    async with a_client(database, tmp_path) as client:
        for call in (client.submit(asked(), actor), client.put("ada", silence(tmp_path / "a.wav", 1), actor)):
            with pytest.raises(RefusedRequest, match="actor: must be 1 to 128 printable"):
                await call
        assert [] == files_in(tmp_path / "artifacts")


async def test_metadata_comes_back_as_it_was_given(database: Database, tmp_path: Path) -> None:
    """A backslash before u0000 is six harmless characters; JSON as deep as we take it is taken."""
    given = {"path": "C:\\u0000", "more": [None, True, 1.5, 2**70, nested(60)], "snow": "❄"}
    async with a_client(database, tmp_path) as client:
        job = await client.submit(asked(metadata=given), ACTOR)
        assert given == (await client.retries.asked(job.job_id)).metadata


async def test_the_same_instant_in_another_zone_is_the_same_request(database: Database, tmp_path: Path) -> None:
    """By its key it is answered as before; another instant is a conflict."""
    tokyo = timezone(timedelta(hours=9))
    async with a_client(database, tmp_path) as client:
        first = await client.submit(asked(key="k", run_at=LATER, ends_by=LATER + timedelta(days=1)), ACTOR)
        elsewhere = asked(
            key="k", run_at=LATER.astimezone(tokyo), ends_by=(LATER + timedelta(days=1)).astimezone(tokyo)
        )
        again = await client.submit(elsewhere, ACTOR)
        assert (first.job_id, True) == (again.job_id, again.replayed)
        with pytest.raises(Conflict):
            await client.submit(asked(key="k", run_at=LATER.replace(tzinfo=tokyo)), ACTOR)


@pytest.mark.parametrize("reason", ["", "x" * 501, "a\nb", "\0", "\ud800", None])
async def test_a_reason_to_cancel_is_one_line(database: Database, tmp_path: Path, reason: Any) -> None:
    """It is shown to the customer; the job goes on as it was."""
    async with a_client(database, tmp_path) as client:
        job = await client.submit(asked(), ACTOR)
        with pytest.raises(RefusedRequest, match="reason: must be 1 to 500 printable characters"):
            await client.cancel("ada", job.job_id, reason)
        assert "queued" == (await client.reads.job(job.job_id)).state
        await client.cancel("ada", job.job_id, "x" * 500)
        assert "cancelled" == (await client.reads.job(job.job_id)).state


async def test_a_job_is_named_by_its_id(database: Database, tmp_path: Path) -> None:
    """Text is no id here, whichever call it is."""
    job: Any = str(uuids.uuid7())
    async with a_client(database, tmp_path) as client:
        for call in (client.cancel("ada", job, "no"), client.retry(job, ACTOR), client.wait(job)):
            with pytest.raises(RefusedRequest, match="job: must be the id of a job"):
                await call


# --- files -----------------------------------------------------------------------------------------------------


async def test_a_file_is_kept_where_its_row_may_be_there(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the COMMIT was lost after it had been done: the row's file is still there."""
    add = Artifacts.add

    async def loses_the_answer(*arguments: Any) -> None:
        await add(*arguments)
        raise OutcomeUnknown("the answer of a COMMIT was lost")

    monkeypatch.setattr(Artifacts, "add", loses_the_answer)
    async with a_client(database, tmp_path) as client:
        with pytest.raises(OutcomeUnknown):
            await client.put("ada", silence(tmp_path / "a.wav", 1), ACTOR)
    assert (1, 1) == (await counted(database, "artifacts"), len(files_in(tmp_path / "artifacts")))


async def test_a_file_is_kept_when_its_registering_is_cancelled(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its row may be there."""
    add, added = Artifacts.add, asyncio.Event()

    async def hangs_afterwards(*arguments: Any) -> None:
        await add(*arguments)
        added.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Artifacts, "add", hangs_afterwards)
    async with a_client(database, tmp_path) as client:
        putting = asyncio.create_task(client.put("ada", silence(tmp_path / "a.wav", 1), ACTOR))
        async with asyncio.timeout(20):
            await added.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
    assert (1, 1) == (await counted(database, "artifacts"), len(files_in(tmp_path / "artifacts")))


async def test_nothing_is_left_of_a_file_that_was_surely_not_registered(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books were out of reach, and said so before anything was written."""

    async def is_away(*_: Any) -> None:
        raise LedgerUnavailable("PostgreSQL is out of reach")

    monkeypatch.setattr(Artifacts, "add", is_away)
    async with a_client(database, tmp_path) as client:
        with pytest.raises(LedgerUnavailable):
            await client.put("ada", silence(tmp_path / "a.wav", 1), ACTOR)
    assert [] == files_in(tmp_path / "artifacts")


async def counted(database: Database, table: str) -> int:
    """How many rows a table has."""
    async with database.connection() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


#: A program of somebody else that submits a song; it logs as it was told to.
_HOST = """
import asyncio, logging, os, sys
from config.settings import load
from worker.boot import opened_client
from worker.client import JobRequest

if sys.argv[1:]:
    logging.basicConfig(level=sys.argv[1])

async def main():
    async with opened_client(load(os.environ)) as (client, store):
        await store.accounts.create("ada", "host")
        await store.accounts.grant("ada", 1000, "start", "host")
        await client.submit(JobRequest("ada", "generation", {"prompt": "x", "seconds": 20}), "host")

asyncio.run(main())
"""


@pytest.mark.parametrize("told", [[], ["INFO"]], ids=["silent", "asked-for"])
def test_inside_another_program_what_is_logged_goes_where_that_program_says(
    environment: dict[str, str], told: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOST, *told], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    if told:
        assert "INFO:worker.client:event='submitted'" in done.stderr
    else:
        assert done.stderr == ""
