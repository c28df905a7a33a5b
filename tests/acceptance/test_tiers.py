"""Workers of one queue with different engines: a job waits for a worker that makes its tier, and pays for no other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tasks.registry import registry
from tests.acceptance.stage import Stage
from tests.providers import CogProvider, running
from worker.doctor import Status, examine

#: An engine of ours whose secret is not there: its tier is not started.
LACKING = (
    '[engines.far]\ntype = "cog"\nurl = "http://127.0.0.1:1"\nprivate = true\nsecret_file = "nowhere"\n'
    '[tiers.generation]\nstudio = "far"\n'
)


@pytest.fixture
def cog() -> Iterator[CogProvider]:
    with running(provider := CogProvider()):
        yield provider


async def test_a_job_waits_for_a_worker_that_makes_its_tier(stage: Stage, cog: CogProvider, tmp_path: Path) -> None:
    """Given workers that can't, then it is not claimed, nothing is reserved, others run; the first that can runs it."""
    (tmp_path / "lacking.toml").write_text(LACKING)
    stage.scheduler()
    first = stage.worker("generation", engines=tmp_path / "lacking.toml")
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio")
    await stage.until(lambda: "no living worker makes this tier" in first.said, "the worker saw its hint")
    plain = await stage.submit("generation", prompt="x", seconds=10)
    assert ["succeeded"] == (await stage.becomes(plain, "succeeded")).endings
    waiting = await stage.job(job_id)
    assert ("queued", 0, 0, []) == (waiting.state, waiting.attempt, waiting.failures, list(waiting.endings))
    assert 0 == (await stage.balance())["held"]
    assert "no_worker" == (await stage.client.reads.job(job_id)).waiting_for
    checks = {check.name: check for check in (await examine(stage.settings)).checks}
    assert Status.WARN is checks["tiers"].status
    assert "no living worker makes generation/studio" in checks["tiers"].what
    able = LACKING.replace("http://127.0.0.1:1", cog.url).replace('secret_file = "nowhere"\n', "poll_seconds = 0.02\n")
    (tmp_path / "able.toml").write_text(able)
    stage.worker("generation", engines=tmp_path / "able.toml")
    seen = await stage.becomes(job_id, "succeeded", seconds=60)
    assert (["succeeded"], 15) == (list(seen.endings), seen.charged)
    checks = {check.name: check for check in (await examine(stage.settings)).checks}
    assert Status.OK is checks["tiers"].status


async def test_many_jobs_find_the_one_worker_that_makes_their_tier(
    stage: Stage, cog: CogProvider, tmp_path: Path
) -> None:
    """Given three workers, two of which can't, then each job is run by the third, in its first attempt."""
    (tmp_path / "lacking.toml").write_text(LACKING)
    able = LACKING.replace("http://127.0.0.1:1", cog.url).replace('secret_file = "nowhere"\n', "poll_seconds = 0.02\n")
    (tmp_path / "able.toml").write_text(able)
    for document in ("lacking", "lacking", "able"):
        stage.worker("generation", engines=tmp_path / f"{document}.toml")
    stage.scheduler()
    jobs = await stage.submit_many(6, "generation", prompt="x", seconds=10, model="studio")
    for seen in await stage.all_ended(jobs):
        assert (["succeeded"], 15) == (list(seen.endings), seen.charged)
    assert 6 == len(cog.jobs)


async def test_a_job_that_nobody_can_make_ends_at_its_end(stage: Stage, tmp_path: Path) -> None:
    """Given no worker that ever makes its tier, then it is over at `ends_by`, never claimed, and nothing is charged."""
    (tmp_path / "lacking.toml").write_text(LACKING)
    stage.scheduler()
    stage.worker("generation", engines=tmp_path / "lacking.toml")
    ends_by = datetime.now(UTC) + timedelta(seconds=3)
    job_id = await stage.submit("generation", prompt="x", seconds=10, model="studio", ends_by=ends_by)
    seen = await stage.becomes(job_id, "refused")
    assert ("past_ends_by", 0, 0, []) == (seen.reason, seen.charged, seen.attempt, list(seen.endings))
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()


async def test_a_worker_without_the_document_leaves_what_no_engine_of_ours_makes(
    stage: Stage, cog: CogProvider, tmp_path: Path
) -> None:
    """Given that it alone is there, then the job waits unclaimed for one who has the document."""
    able = tmp_path / "able.toml"
    able.write_text(
        f'[engines.far]\ntype = "cog"\nurl = "{cog.url}"\nprivate = true\npoll_seconds = 0.02\n'
        '[tiers.stem_split]\nstudio = "far"\n'
    )
    stage.scheduler()
    bare = stage.worker("stem_split")
    soundfile.write(tmp_path / "mix.wav", 0.3 * np.sin(np.arange(44_100) / 9), 44_100)
    stage.client.kinds = registry(engines=able)
    mix = await stage.client.put("ada", tmp_path / "mix.wav", "test", "mix.wav")
    job_id = await stage.submit("stem_split", inputs={"mix": str(mix.artifact_id)}, stems=["vocals"], model="studio")
    await stage.until(lambda: "no living worker makes this tier" in bare.said, "the worker saw its hint")
    stage.worker("stem_split", engines=able)
    seen = await stage.becomes(job_id, "succeeded", seconds=60)
    assert (["succeeded"], ["vocals"]) == (list(seen.endings), seen.outputs)
