"""A whole deployment whose studio songs are made by a provider: crashes, cancels, refusals, and what each charges."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx2
import numpy as np
import pytest
import soundfile

from tests.acceptance.stage import Stage
from tests.providers import AceStepProvider, CogProvider, Fault, Provider, running
from worker.boot import steering_over
from worker.local.ports import free_port
from worker.local.roles import dsn
from worker.store.ops import Scope

#: 4 credits and 1 for each started 5 seconds, 2.5 times for the tier.
QUOTE = 15


@pytest.fixture
def cog() -> Iterator[CogProvider]:
    with running(provider := CogProvider()):
        yield provider


@pytest.fixture
def ace() -> Iterator[AceStepProvider]:
    with running(provider := AceStepProvider()):
        yield provider


def document(folder: Path, sort: str, provider: Provider, poll_seconds: float = 0.02, more: str = "") -> Path:
    path = folder / "engines.toml"
    path.write_text(
        f'[engines.far]\ntype = "{sort}"\nurl = "{provider.url}"\nprivate = true\n'
        f"poll_seconds = {poll_seconds}\npatience_seconds = 1\n{more}\n"
        '[tiers.generation]\nstudio = "far"\n'
    )
    return path


#: Longer than any of these tests: what is seen sooner was said by the provider.
SELDOM_SECONDS = 60
BY_URL = 'inputs = "url"\n[tiers.stem_split]\nstandard = "far"'
SECRET = "a secret of at least thirty-two characters"


async def reached(stage: Stage) -> dict[str, str]:
    """The settings of a deployment whose API providers can reach, once it answers."""
    port = free_port()
    settings = {"public_url": f"http://127.0.0.1:{port}", "link_secret": SECRET}
    stage.script("api", api_port=port, **settings)

    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    await stage.until(answers, "the API answers")
    return settings


async def under_way(stage: Stage, cog: CogProvider, folder: Path, **settings: str) -> UUID:
    """A song that the provider was asked for and that was looked at once; it is looked at again only if it says so."""
    engines = document(folder, "cog", cog, SELDOM_SECONDS, "webhook = true")
    stage.scheduler()
    stage.worker("generation", engines=engines, **settings)
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: cog.asked("GET /predictions"), "looked at")
    return job_id


async def test_a_killed_workers_song_is_fetched_by_the_next_one(
    stage: Stage, ace: AceStepProvider, tmp_path: Path
) -> None:
    """Given a worker that dies while the provider works, then the next one goes on with its task, and is paid once."""
    engines = document(tmp_path, "ace_step_server", ace)
    stage.scheduler()
    first = stage.worker("generation", engines=engines)
    ace.looks_needed = None
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: ace.asked("POST /query_result"), "polled")
    first.kill()
    ace.looks_needed = 1
    stage.worker("generation", engines=engines)
    seen = await stage.becomes(job_id, "succeeded")
    assert (QUOTE, ["song"], ["lost_worker", "succeeded"]) == (seen.charged, seen.outputs, seen.endings)
    assert (1, 1) == (len(ace.asked("POST /release_task")), len(ace.jobs))
    assert {"available": 985, "held": 0, "spent": QUOTE, "expired": 0} == await stage.balance()


async def test_a_cancel_reaches_the_provider_within_two_seconds(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a song under way over there, when it is cancelled, then both ends are told, and nothing is charged."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    cog.looks_needed = None
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: cog.asked("GET /predictions"), "polled")
    await stage.client.cancel("ada", job_id, "enough")
    seen = await stage.becomes(job_id, "cancelled", seconds=2)
    assert (0, None) == (seen.charged, seen.outputs)
    assert cog.jobs[str(job_id)].cancelled


async def test_what_the_provider_measured_is_on_the_receipt(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a finished prediction, then its predict time stands beside the seconds that were sold."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.becomes(job_id, "succeeded")
    receipt = await stage.client.reads.receipt(job_id)
    assert ("song", "10.000000", "1.250") == tuple(
        receipt.attempts[-1].usage[0][name] for name in ("output", "seconds_out", "predict_seconds")
    )


async def test_a_refusal_ends_the_job_with_a_refund(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a provider that won't have the job, then it isn't tried again, and every credit returns."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    cog.faults = [Fault("PUT", status=422)]
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    seen = await stage.becomes(job_id, "failed")
    assert ("engine_error", 0, ["engine_error"]) == (seen.reason, seen.charged, seen.endings)
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()


async def test_a_provider_that_is_away_for_a_while_delays_the_job(
    stage: Stage, cog: CogProvider, tmp_path: Path
) -> None:
    """Given no answer for longer than an attempt's patience, then the next attempt goes on, on the same hold."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    cog.faults = [Fault("PUT", status=429, headers={"Retry-After": "1.5"})]
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    seen = await stage.becomes(job_id, "succeeded")
    assert QUOTE == seen.charged
    assert {"engine_unavailable"} == set(seen.endings[:-1])
    assert 1 == await stage.value("SELECT count(*) FROM journal WHERE move = 'reserve' AND job_id = $1", job_id)


async def test_a_silent_song_is_made_once_more_and_then_refunded(
    stage: Stage, cog: CogProvider, tmp_path: Path
) -> None:
    """Given a provider whose songs are silent, then one more attempt on the same hold, and every credit returns."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    cog.peak = 0.0
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    seen = await stage.becomes(job_id, "failed")
    assert ("quality_gate", 0, ["quality_gate"] * 2) == (seen.reason, seen.charged, seen.endings)
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()
    assert [str(job_id), f"{job_id}-1"] == list(cog.jobs)
    receipt = await stage.client.reads.receipt(job_id)
    why = "song is silent: -200 dB at its loudest, not above -60"
    for attempt in receipt.attempts:
        assert (why, ()) == (attempt.message, attempt.usage)
        (rejected,) = attempt.rejected
        assert {"output": "song", "peak_db": "-200.0", "rejected": why}.items() <= rejected.items()
        assert 10 == pytest.approx(float(rejected["seconds_out"]), abs=0.1)


async def test_the_second_take_may_be_good(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a first take that is too short, then the second one is sold, its measures and its waveform with it."""
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    cog.stretches = [0.5]
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio", peaks=True)
    seen = await stage.becomes(job_id, "succeeded")
    assert (QUOTE, ["quality_gate", "succeeded"]) == (seen.charged, seen.endings)
    assert ["song", "song-peaks"] == seen.outputs
    receipt = await stage.client.reads.receipt(job_id)
    assert [(0, 1), (1, 0)] == [(len(attempt.usage), len(attempt.rejected)) for attempt in receipt.attempts]
    assert 5 == pytest.approx(float(receipt.attempts[0].rejected[0]["seconds_out"]), abs=0.1)
    assert (QUOTE, QUOTE) == (receipt.charged, sum(line.amount for line in receipt.charge_lines))
    assert {"peak_db": "-6.0", "clipped_ppm": "0"}.items() <= receipt.attempts[-1].usage[0].items()


async def test_a_job_that_is_cancelled_between_attempts_is_called_off(
    stage: Stage, cog: CogProvider, tmp_path: Path
) -> None:
    """Given an order whose worker was lost, when its job is cancelled before another one has it, the provider hears."""
    engines = document(tmp_path, "cog", cog)
    cog.looks_needed = None
    stage.scheduler()
    doomed = stage.worker("generation", engines=engines)
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: cog.asked("GET /predictions"), "looked at")
    await stage.controls.pause(Scope.QUEUE, "generation", "so that nobody else takes it", "test")
    doomed.kill()
    await stage.becomes(job_id, "queued")
    stage.worker("generation", engines=engines)
    await stage.until(lambda: _listens(stage), "the next worker listens")
    assert not cog.jobs[str(job_id)].cancelled
    await stage.client.cancel("ada", job_id, "changed my mind")
    await stage.until(lambda: cog.jobs[str(job_id)].cancelled, "the provider was told")
    seen = await stage.job(job_id)
    assert ("cancelled", 0, ["lost_worker"]) == (seen.state, seen.charged, seen.endings)


async def _listens(stage: Stage) -> bool:
    """Whether a worker has asked for all that it is to hear: looked for as its own role, which sees its statements."""
    connection = await asyncpg.connect(dsn(stage.database.worker_url or stage.database.url))
    try:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE '%LISTEN%fermata_given_up%' "
                "AND pid <> pg_backend_pid()"
            )
        )
    finally:
        await connection.close()


async def test_a_job_that_is_ended_by_force_is_called_off(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a run that hangs at its provider, when a person ends it, then the provider hears of it too."""
    cog.looks_needed = None
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog))
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: cog.asked("GET /predictions"), "looked at")
    await steering_over(stage.client, stage.store).force_end(job_id, "hangs", "olga")
    await stage.until(lambda: cog.jobs[str(job_id)].cancelled, "the provider was told")
    assert ("failed", 0) == ((seen := await stage.job(job_id)).state, seen.charged)


async def test_a_webhook_has_the_worker_look_at_once(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a provider that says when it is done, and once more, then the song is there long before the next look."""
    settings = await reached(stage)
    cog.looks_needed = None
    job_id = await under_way(stage, cog, tmp_path, **settings)
    cog.looks_needed = 0
    assert [204, 204, 204] == [cog.say_done(str(job_id)) for _ in range(3)]
    seen = await stage.becomes(job_id, "succeeded")
    assert (QUOTE, ["succeeded"], 1) == (seen.charged, seen.endings, len(cog.asked("PUT")))
    assert 204 == cog.say_done(str(job_id))  # late: nobody listens, nothing changes
    assert {"available": 985, "held": 0, "spent": QUOTE, "expired": 0} == await stage.balance()


async def test_a_forged_webhook_changes_nothing(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a word with a wrong key, or a true one too early, then polling stays the truth and nothing is settled."""
    settings = await reached(stage)
    cog.looks_needed = None
    job_id = await under_way(stage, cog, tmp_path, **settings)
    looks = len(cog.asked("GET /predictions"))
    assert 403 == cog.say_done(str(job_id), key="A" * 43)
    assert 204 == cog.say_done(str(job_id))  # it says that it is done, and isn't
    await stage.until(lambda: len(cog.asked("GET /predictions")) > looks, "looked once more")
    assert looks + 1 == len(cog.asked("GET /predictions"))
    assert "running" == (await stage.job(job_id)).state
    cog.looks_needed = 0
    cog.say_done(str(job_id))
    assert QUOTE == (await stage.becomes(job_id, "succeeded")).charged


async def test_a_webhook_that_comes_before_we_wait_is_heard(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a provider that says so before it has answered our order, then it is looked at once more at once."""
    settings = await reached(stage)
    cog.hasty, cog.looks_needed = True, 2
    job_id = await under_way(stage, cog, tmp_path, **settings)
    assert ["succeeded"] == (await stage.becomes(job_id, "succeeded")).endings


async def test_a_lost_webhook_costs_time_only(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a provider that never says a word, then the next look finds the song."""
    settings = await reached(stage)
    stage.scheduler()
    stage.worker("generation", engines=document(tmp_path, "cog", cog, 0.5, "webhook = true"), **settings)
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    assert QUOTE == (await stage.becomes(job_id, "succeeded")).charged
    assert settings["public_url"] in str(cog.jobs[str(job_id)].webhook)


async def test_a_webhook_finds_whichever_worker_goes_on(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given a worker that dies, then the word that came with its order wakes the worker that has the job now."""
    settings = await reached(stage)
    cog.looks_needed = None
    job_id = await under_way(stage, cog, tmp_path, **settings)
    stage.processes[-1].kill()
    looks = len(cog.asked("GET /predictions"))
    stage.worker("generation", engines=tmp_path / "engines.toml", **settings)
    await stage.until(lambda: len(cog.asked("GET /predictions")) > looks, "the next worker looked")
    cog.looks_needed = 0
    cog.say_done(str(job_id))
    seen = await stage.becomes(job_id, "succeeded")
    assert (["lost_worker", "succeeded"], 1) == (seen.endings, len(cog.asked("PUT")))


async def test_a_mix_is_fetched_by_its_link(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given inputs by URL, then the provider fetches the very file from our API, by a link for this one artifact."""
    settings = await reached(stage)
    stage.scheduler()
    stage.worker("stem_split", engines=document(tmp_path, "cog", cog, more=BY_URL), **settings)
    mix = tmp_path / "mix.wav"
    soundfile.write(mix, 0.3 * np.sin(np.arange(88_200) / 20), 44_100)
    artifact = await stage.client.put("ada", mix, "test", "mix.wav")
    job_id = await stage.submit("stem_split", inputs={"mix": str(artifact.artifact_id)}, stems=["vocals"])
    seen = await stage.becomes(job_id, "succeeded")
    assert ["vocals"] == seen.outputs
    url = cog.jobs[str(job_id)].given["mix"]
    assert mix.read_bytes() == httpx2.get(url).content
    assert 403 == httpx2.get(url.replace("key=", "key=x")).status_code
