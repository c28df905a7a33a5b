"""Workers of one queue with different engines: a job waits for a worker that makes its tier, and pays for no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
