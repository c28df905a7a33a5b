"""Following a job over HTTP: a long look, and a stream that skips nothing, whatever is restarted on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

import httpx2
import pytest
import uvicorn

from config.settings import load
from tests.integration.api_support import ACTOR, served
from tests.integration.books import Store, opened
from tests.servers import Database
from worker.boot import background
from worker.credits.operations import Claimed
from worker.credits.outcomes import Ending
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.leases import Held
from worker.store.reads_following import FollowingReads, Pulse
from worker.web import keyring
from worker.web import server as web_server
from worker.web.routes import following
from worker.web.watching import Watcher


@dataclass
class Stage:
    """A store that plays the workers, and a client of a served API."""

    store: Store
    folder: Path
    key: str
    url: str = ""
    told: list[tuple[str | None, str, dict[str, Any]]] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self, **chosen: Any) -> AsyncIterator[uvicorn.Server]:
        """An API process, as good as: the same server in this loop, on a port of its own."""
        settings = load(
            {},
            database_url=self.store.database.url,
            environment="test",
            artifacts_url=(self.folder / "artifacts").as_uri(),
            api_port=0,
            **chosen,
        )
        async with served(settings) as (server, self.url):
            yield server

    def client(self) -> httpx2.AsyncClient:
        """With the key, and patient."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=httpx2.Timeout(30))

    async def stream(self, job: UUID, last: str | None = None) -> int:
        """Read a job's events into `told` until the stream ends; the status."""
        headers = {} if last is None else {"Last-Event-ID": last}
        async with self.client() as http, http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    self.told.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
                    fields = {}
            return answer.status_code

    @property
    def numbered(self) -> list[tuple[str, str]]:
        """The events that may not be skipped."""
        return [(number, event) for number, event, _ in self.told if number is not None]

    async def until(self, count: int) -> None:
        """Wait until so many numbered events were told."""
        deadline = monotonic() + 10
        while len(self.numbered) < count:
            assert monotonic() < deadline, self.told
            await asyncio.sleep(0.02)

    async def until_told(self, event: tuple[str, dict[str, Any]]) -> None:
        """Wait until this event was told."""
        async with asyncio.timeout(10):
            while event not in [told[1:] for told in self.told]:  # noqa: ASYNC110  a client's list has no event
                await asyncio.sleep(0.02)


@pytest.fixture
async def stage(database: Database, tmp_path: Path) -> AsyncIterator[Stage]:
    async with opened(database) as store:
        await store.account("ada", 1000)
        made = await ApiKeys(store.engine).create(NewKey(Role.VIEWER, "follower"), ACTOR)
        yield Stage(store, tmp_path, made.key)


async def claimed(store: Store, job: UUID) -> Claimed:
    """The job, running."""
    found = await store.claim("ada", job)
    assert isinstance(found, Claimed)
    return found


WHOLE = [
    ("0", "queued"),
    ("1", "started"),
    ("2", "attempt_ended"),
    ("3", "started"),
    ("4", "attempt_ended"),
    ("5", "ended"),
]


async def play(stage: Stage, job: UUID) -> AsyncIterator[None]:
    """A job that fails once, is run again and succeeds; a step each turn."""
    first = await claimed(stage.store, job)
    yield
    await stage.store.settle("ada", first, Ending.ENGINE_CRASHED)
    yield
    async with stage.store.database.connection() as connection:
        await connection.execute("UPDATE due SET not_before = now()")
    second = await claimed(stage.store, job)
    yield
    await stage.store.settle("ada", second)
    yield


async def test_a_stream_tells_the_whole_story_and_ends(stage: Stage) -> None:
    """Each step once, in order, with its facts; progress in between; then there is nothing to come back for."""
    job = await stage.store.queued("ada")
    async with stage.serving():
        reading = asyncio.create_task(stage.stream(job))
        await stage.until(1)
        first = await claimed(stage.store, job)
        await stage.until(2)
        held = Held("ada", job, first.token)
        await stage.store.leases.report([(held, 0.5, "playing")])
        await stage.until_told(("progress", {"progress": 0.5, "stage": "playing"}))
        await stage.store.settle("ada", first)
        assert 200 == await reading
        assert [("0", "queued"), ("1", "started"), ("2", "attempt_ended"), ("3", "ended")] == stage.numbered
        ended = stage.told[-1][2]
        assert ("succeeded", 10, "song") == (ended["state"], ended["charged"], ended["outputs"][0]["name"])
        assert 204 == await stage.stream(job, "3")


async def test_a_stream_closes_with_the_key_that_opened_it(stage: Stage) -> None:
    """Also where nothing happens: a token of a minute is not looked through for an hour."""
    job = await stage.store.queued("ada")
    until = datetime.now(UTC) + timedelta(seconds=2)
    made = await ApiKeys(stage.store.engine).create(NewKey(Role.VIEWER, "short", None, until), ACTOR)
    stage.key = made.key
    async with stage.serving(), asyncio.timeout(8):
        assert 200 == await stage.stream(job)
    assert [("0", "queued")] == stage.numbered


async def test_whoever_comes_back_skips_nothing(stage: Stage) -> None:
    """From any number on, also if the API was restarted, or was away while things happened."""
    job = await stage.store.queued("ada")
    steps = play(stage, job)
    async with stage.serving() as server:
        reading = asyncio.create_task(stage.stream(job))
        await stage.until(1)
        await anext(steps)
        await stage.until(2)
        server.should_exit = True
        assert 200 == await reading  # its end is no end of the story
    await anext(steps)
    await anext(steps)
    async with stage.serving():
        reading = asyncio.create_task(stage.stream(job, stage.numbered[-1][0]))
        await stage.until(4)
        await anext(steps)
        assert 200 == await reading
        assert WHOLE == stage.numbered
        for start in range(-1, 5):
            stage.told.clear()
            assert 200 == await stage.stream(job, None if start < 0 else str(start))
            assert WHOLE[start + 1 :] == stage.numbered


class CountedReads(FollowingReads):
    """Reads that say how often they were asked."""

    looks = 0

    async def pulses(self, job_ids: Sequence[UUID]) -> Mapping[UUID, Pulse]:
        self.looks += 1
        return await super().pulses(job_ids)


async def test_many_followers_cost_one_look(stage: Stage) -> None:
    """However many follow, one statement at a tick asks for all; each hears of its own job, and of no other."""
    one, other = await stage.store.queued("ada"), await stage.store.queued("ada")
    reads = CountedReads(stage.store.engine)
    watcher = Watcher(reads, per_key=1_000, per_token=1)
    key = await ApiKeys(stage.store.engine).opening(stage.key)
    assert key is not None
    async with background(watcher.run()):
        with ExitStack() as stack:
            ones = [stack.enter_context(watcher.following(one, key)) for _ in range(500)]
            others = [stack.enter_context(watcher.following(other, key)) for _ in range(500)]
            assert all(await asyncio.gather(*(each.news(10) for each in [*ones, *others])))  # how it stands
            first = reads.looks
            waiting = asyncio.gather(*(each.news(10) for each in ones))
            await claimed(stage.store, one)
            assert all(await waiting)
            assert not any(await asyncio.gather(*(each.news(0) for each in others)))
            assert reads.looks - first <= 20
    assert {} == watcher._watched


async def test_a_key_follows_so_many_jobs_and_leaves_room_for_others(stage: Stage) -> None:
    """429 before the answer has begun, for a stream and a long look; a token has less; a place that is left is free."""
    job = await stage.store.queued("ada")
    keys = ApiKeys(stage.store.engine)
    token = (await keys.token("ada", 600, ACTOR)).key
    async with stage.serving(api_followers_per_key=2, api_followers_per_token=1) as server:
        watcher = server.config.app.state.services.watcher  # type: ignore[union-attr]
        for secret, most in ((stage.key, 2), (token, 1)):
            stage.key = secret
            streams = [asyncio.create_task(stage.stream(job)) for _ in range(most)]
            async with asyncio.timeout(10):
                while sum(watcher._by_key.values()) < most:  # noqa: ASYNC110  a server's counter has no event
                    await asyncio.sleep(0.01)
            async with stage.client() as http:
                for path in (f"/v1/jobs/{job}/events", f"/v1/jobs/{job}?wait=1"):
                    refused = await http.get(path)
                    assert (429, "rate_limited") == (refused.status_code, refused.json()["code"])
                    assert "5" == refused.headers["Retry-After"]
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)
            async with asyncio.timeout(10):
                while watcher._by_key:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_revoked_key_closes_its_streams_and_its_tokens_streams(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, by whatever process it was revoked; a long look then answers 401."""
    monkeypatch.setattr(following, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(keyring, "REMEMBERED_SECONDS", 0.1)
    job = await stage.store.queued("ada")
    keys = ApiKeys(stage.store.engine)
    minter = await keys.create(NewKey(Role.PIPELINE, "minter"), ACTOR)
    token = await keys.token("ada", 600, ACTOR, minted_by=minter.shown.id)
    async with stage.serving():
        ended = []
        for secret in (minter.key, token.key):
            stage.key = secret
            ended.append(asyncio.create_task(stage.stream(job)))
            await stage.until(len(ended))
        async with stage.client() as http:
            looking = asyncio.create_task(http.get(f"/v1/jobs/{job}?wait=2"))
            await keys.revoke(minter.shown.id, ACTOR)
            assert [200, 200] == await asyncio.wait_for(asyncio.gather(*ended), 10)
            assert 401 == (await looking).status_code
            assert 401 == (await http.get(f"/v1/jobs/{job}")).status_code


async def test_a_long_look_answers_when_the_job_ends(stage: Stage) -> None:
    """At once for an ended one, at its end for another, and as it stands when the time is over."""
    job = await stage.store.queued("ada")
    async with stage.serving(), stage.client() as http:
        started = monotonic()
        assert "queued" == (await http.get(f"/v1/jobs/{job}?wait=1")).json()["state"]
        assert 1 <= monotonic() - started
        looking = asyncio.create_task(http.get(f"/v1/jobs/{job}?wait=30"))
        await stage.store.settle("ada", await claimed(stage.store, job))
        assert "succeeded" == (await asyncio.wait_for(looking, 10)).json()["state"]
        assert "succeeded" == (await http.get(f"/v1/jobs/{job}?wait=30")).json()["state"]
        assert 422 == (await http.get(f"/v1/jobs/{job}?wait=61")).status_code


async def test_a_bad_place_in_a_story_is_refused(stage: Stage) -> None:
    """422; and 404 for a job that is not there."""
    job = await stage.store.queued("ada")
    async with stage.serving(), stage.client() as http:
        bad = await http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "x"})
        assert 422 == bad.status_code
        assert 404 == (await http.get("/v1/jobs/0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88/events")).status_code


# --- the head of a request -------------------------------------------------------------------------------------


async def _closed(stage: Stage, *pieces: bytes) -> bytes:
    """What comes back until the connection is closed."""
    host, port = stage.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_head_that_does_not_come_is_not_waited_for(
    stage: Stage, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow clients hold no connection."""
    monkeypatch.setattr(web_server, "HEAD_SECONDS", 0.2)
    async with stage.serving():
        assert b"" == await _closed(stage, sent)


async def test_a_head_without_end_is_refused(stage: Stage) -> None:
    """However it is cut into pieces."""
    async with stage.serving():
        said = await _closed(stage, b"GET /livez HTTP/1.1\r\nHost: x\r\n", *[b"X-A: " + b"x" * 8_000 + b"\r\n"] * 12)
        assert said.startswith(b"HTTP/1.1 400")


async def test_a_connection_is_used_again(stage: Stage) -> None:
    """The limits of a head begin anew with each request."""
    async with stage.serving(), stage.client() as http:
        for _ in range(5):
            assert 200 == (await http.get("/livez", headers={"X-Pad": "x" * 15_000})).status_code


async def test_a_body_is_no_part_of_the_head(stage: Stage) -> None:
    """However much of it comes with the head in one piece: its own limit is looked at, not the head's."""
    async with stage.serving(), stage.client() as http:
        done = await http.post("/v1/jobs/batch", content=b"[" + b" " * 500_000 + b"]", headers={"X-Pad": "x"})
        assert 403 == done.status_code  # a viewer may not; what matters is that it was read as a request
