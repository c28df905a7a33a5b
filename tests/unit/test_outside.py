"""A provider's word that work is done: kept, bounded, and never more than a hint."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import UUID

import pytest

from worker.artifacts.folder import FolderStore
from worker.links import Links
from worker.outside import LOOK_SECONDS_MIN, Outside, Stored

JOB, OTHER, TOKEN, LATER = (UUID(int=number) for number in range(1, 5))
LONG = 30.0


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    made = Outside(FolderStore(tmp_path), Links("https://fermata.example", b"x" * 32), link_seconds=900)
    made.listen(TOKEN, JOB)
    return made


async def paused(outside: Outside, seconds: float = LONG) -> float:
    """Seconds that a pause took."""
    began = time.monotonic()
    await outside.pause(TOKEN, seconds)
    return time.monotonic() - began


async def test_a_word_ends_the_pause(outside: Outside) -> None:
    """Whoever waits looks at once."""
    asyncio.get_running_loop().call_later(LOOK_SECONDS_MIN * 1.5, outside.heard, f"{OTHER} {JOB}")
    assert await paused(outside) < LONG / 3


async def test_a_word_that_came_early_is_kept(outside: Outside) -> None:
    """It may come before anybody waits for it; but it counts once."""
    outside.heard(str(JOB))
    assert await paused(outside) < LONG / 3
    assert await paused(outside, LOOK_SECONDS_MIN * 2) >= LOOK_SECONDS_MIN * 2


async def test_a_word_about_another_job_is_not_ours(outside: Outside) -> None:
    """Nor one about a job whose attempt is over."""
    outside.heard(str(OTHER))
    outside.heard("nonsense; DROP TABLE jobs")
    assert await paused(outside, LOOK_SECONDS_MIN * 2) >= LOOK_SECONDS_MIN * 2
    outside.stop_listening(TOKEN)
    outside.heard(str(JOB))


async def test_a_connection_that_was_lost_may_have_missed_something(outside: Outside) -> None:
    """Everybody looks once."""
    outside.heard("")
    assert await paused(outside) < LONG / 3


async def test_no_flood_of_words_becomes_a_flood_of_looks(outside: Outside) -> None:
    """However often a provider says the same."""
    looks, ends = 0, time.monotonic() + LOOK_SECONDS_MIN * 3
    while time.monotonic() < ends:
        outside.heard(str(JOB))
        await outside.pause(TOKEN, LONG)
        looks += 1
    assert looks <= 4


async def test_the_next_attempt_of_a_job_hears_too(outside: Outside) -> None:
    """Even while an older one of this process is not gone yet."""
    outside.listen(LATER, JOB)
    outside.heard(str(JOB))
    outside.stop_listening(TOKEN)
    async with asyncio.timeout(LONG / 3):
        await outside.pause(LATER, LONG)


async def test_inputs_in_a_folder_go_through_the_api(outside: Outside) -> None:
    """Signed for this artifact; where providers can't come, there is no link."""
    stored = Stored(OTHER, "inputs/x/y")
    assert f"https://fermata.example/v1/engines/inputs?artifact={OTHER}&" in str(await outside.input_url(stored))
    outside.links = None
    assert (None, None) == (await outside.input_url(stored), outside.completion_url(JOB))
