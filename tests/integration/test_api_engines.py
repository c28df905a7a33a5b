"""Providers at our door: what a signed link opens, and what a forged one doesn't."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import soundfile

from tests.integration.api_support import Api, an_api
from tests.servers import Database
from worker.links import Links
from worker.local.roles import dsn
from worker.store.listening import listen
from worker.store.nudges import CHANNEL, Nudges

SECRET = "a secret of at least thirty-two characters"
LINKS = Links("http://fermata", SECRET.encode())
ONE, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path, public_url="http://fermata", link_secret=SECRET) as made:
        await made.account("ada")
        yield made


@pytest.fixture
async def heard(database: Database) -> AsyncIterator[asyncio.Queue[str]]:
    """What a worker process of the deployment hears."""
    told: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(listen(dsn(database.url), {CHANNEL: told.put_nowait}))
    async with asyncio.timeout(10):
        assert "" == await told.get()  # it is connected: something may have been missed before
    yield told
    listening.cancel()


async def test_a_signed_word_reaches_every_worker(api: Api, heard: asyncio.Queue[str]) -> None:
    """Whatever the body is; as often as it comes."""
    for body in (b'{"status": "succeeded"}', b"", b"\xff" * 200_000):
        done = await api.http.post(LINKS.completion(ONE), content=body)
        assert (204, b"") == (done.status_code, done.content)
        async with asyncio.timeout(10):
            assert str(ONE) == await heard.get()


async def test_a_forged_word_reaches_nobody(api: Api, heard: asyncio.Queue[str]) -> None:
    """No key, another job's, another secret's: turned away before anything is said."""
    forged = [
        LINKS.completion(ONE).replace(str(ONE), str(OTHER)),
        LINKS.completion(ONE)[:-1],
        Links("http://fermata", b"z" * 32).completion(ONE),
        f"http://fermata/v1/engines/webhooks?job={ONE}&key=",
    ]
    assert [403] * 4 == [(await api.http.post(url, json={})).status_code for url in forged]
    assert 422 == (await api.http.post(f"http://fermata/v1/engines/webhooks?job={ONE}")).status_code
    await api.http.post(LINKS.completion(OTHER))
    async with asyncio.timeout(10):
        assert str(OTHER) == await heard.get()  # the first that was said at all


async def test_words_that_come_together_are_said_together(api: Api, heard: asyncio.Queue[str]) -> None:
    """A NOTIFY holds up every COMMIT: a flood of webhooks becomes a few."""
    nudges, jobs = Nudges(api.services.engine), [UUID(int=number) for number in range(1, 501)]
    await asyncio.gather(*(nudges.say(job) for job in jobs * 2))
    said: list[str] = []
    async with asyncio.timeout(10):
        while {id_ for payload in said for id_ in payload.split()} < {str(job) for job in jobs}:
            said.append(await heard.get())
    assert len(said) <= 8


async def test_a_link_fetches_its_input(api: Api, tmp_path: Path) -> None:
    """The very bytes, or a range of them, without a key; not once it is over, and no other artifact."""
    path = tmp_path / "mix.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(8_000) / 9), 8_000)
    facts = await api.services.client.put("ada", path, "test", "mix.wav")
    other = tmp_path / "other.wav"
    soundfile.write(other, 0.3 * np.sin(np.arange(8_000) / 7), 8_000)
    others = await api.services.client.put("ada", other, "test", "other.wav")
    url = LINKS.input(facts.artifact_id, 10**10)
    whole = await api.http.get(url)
    assert (200, path.read_bytes()) == (whole.status_code, whole.content)
    part = await api.http.get(url, headers={"Range": "bytes=10-19"})
    assert (206, path.read_bytes()[10:20]) == (part.status_code, part.content)
    refused = [
        LINKS.input(facts.artifact_id, 1),
        url.replace(str(facts.artifact_id), str(others.artifact_id)),
        url.replace("until=10000000000", "until=10000000001"),
    ]
    assert [403] * 3 == [(await api.http.get(one)).status_code for one in refused]
    assert 404 == (await api.http.get(LINKS.input(ONE, 10**10))).status_code


async def test_where_no_provider_comes_there_is_no_door(database: Database, tmp_path: Path) -> None:
    """Without the settings for it."""
    async with an_api(database, tmp_path) as api:
        assert 404 == (await api.http.post(LINKS.completion(ONE))).status_code
        assert 404 == (await api.http.get(LINKS.input(ONE, 10**10))).status_code
