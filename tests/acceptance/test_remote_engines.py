"""A whole deployment whose studio songs are made by a provider: crashes, cancels, refusals, and what each charges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.stage import Stage
from tests.providers import AceStepProvider, CogProvider, Fault, Provider, running

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


def document(folder: Path, sort: str, provider: Provider) -> Path:
    path = folder / "engines.toml"
    path.write_text(
        f'[engines.far]\ntype = "{sort}"\nurl = "{provider.url}"\nprivate = true\n'
        'poll_seconds = 0.02\npatience_seconds = 1\n[tiers.generation]\nstudio = "far"\n'
    )
    return path


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
    assert "song is silent: -200 dB at its loudest, not above -60" == receipt.attempts[0].message


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
    assert 1 == len(receipt.attempts[-1].usage)
    assert {"peak_db": "-6.0", "clipped_ppm": "0"}.items() <= receipt.attempts[-1].usage[0].items()
