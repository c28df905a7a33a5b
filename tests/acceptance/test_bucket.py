"""A deployment whose API, scheduler and workers share no disk: audio lies in a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from fermata_client.client import AsyncFermata
from fermata_client.client import JobRequest as AskedJob
from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import ACTOR, Stage, Zygote, opened_stage
from tests.buckets import SECRET, Bucket, running_bucket
from tests.integration.cli_support import files_in, run_command, silence
from tests.servers import Database
from worker.client import JobRequest
from worker.local.ports import free_port
from worker.store.api_keys import ApiKeys, NewKey, Role


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """An S3-compatible server of this test's own."""
    with running_bucket() as running:
        yield running


@pytest.fixture
async def stage(
    database: Database, environment: dict[str, str], tmp_path: Path, zygote: Zygote, bucket: Bucket
) -> AsyncIterator[Stage]:
    """A deployment on that bucket; the test itself works in a folder of its own, as an API would."""
    given = {f"FERMATA_{name.upper()}": value for name, value in bucket.settings.items()}
    given["FERMATA_SCRATCH_DIR"] = str(tmp_path / "api")
    async with opened_stage(database, environment | given, tmp_path, zygote) as opened:
        yield opened
    await assert_books_exact(database)


async def test_a_job_runs_from_a_bucket_into_a_bucket(stage: Stage, bucket: Bucket, tmp_path: Path) -> None:
    """Given a scheduler and a worker with disks of their own, then a take is made, sold and fetched."""
    stage.scheduler(scratch_dir=tmp_path / "scheduler")
    stage.worker(scratch_dir=tmp_path / "worker")
    recording = await stage.client.put("ada", silence(tmp_path / "recording.wav", 2.0), ACTOR)
    asked = JobRequest("ada", "reading", {}, {"recording": str(recording.artifact_id)})
    job_id = (await stage.client.submit(asked, ACTOR)).job_id
    (job,) = await stage.all_ended([job_id])
    assert "succeeded" == job.state
    artifact = await stage.value("SELECT artifact_id FROM artifacts WHERE job_id = $1", job_id)
    size = await stage.value("SELECT bytes FROM artifacts WHERE job_id = $1", job_id)
    environment = {**stage.environment, "FERMATA_SCRATCH_DIR": str(tmp_path / "cli")}
    done = run_command(environment, "artifacts", "get", str(artifact), "--to", str(tmp_path / "take.wav"))
    assert 0 == done.code, done.err
    assert size == (tmp_path / "take.wav").stat().st_size
    assert ["inputs", "outputs"] == [key.split("/")[1] for key in bucket.listed()]
    # Nothing is left on any disk, and no log knows the bucket's secret.
    await stage.until(lambda: [] == files_in(tmp_path / "worker"), "work folders deleted")
    assert [] == files_in(tmp_path / "api") + files_in(tmp_path / "scheduler") + files_in(tmp_path / "cli")
    assert SECRET not in "".join(process.said for process in stage.processes)


async def test_a_worker_without_its_bucket_says_so_and_does_not_start(stage: Stage, bucket: Bucket) -> None:
    """Better than to claim jobs that it can't finish: one line, exit code 3, and nothing claimed."""
    worker = stage.worker(artifacts_url=bucket.url_by(1))
    assert 3 == await worker.ended()
    assert "does not answer" in worker.said
    assert "Traceback" not in worker.said
    assert SECRET not in worker.said


async def test_an_api_hands_files_to_workers_through_a_bucket(stage: Stage, bucket: Bucket, tmp_path: Path) -> None:
    """Given an API with a disk of its own, then what is uploaded there is read by a worker, and its take comes back."""
    key = (await ApiKeys(stage.store.engine).create(NewKey(Role.PIPELINE, "theirs", None), ACTOR)).key
    port = free_port()
    stage.script("api", api_port=str(port), scratch_dir=tmp_path / "api-process")
    stage.scheduler(scratch_dir=tmp_path / "scheduler")
    stage.worker(scratch_dir=tmp_path / "worker")
    async with AsyncFermata(f"http://127.0.0.1:{port}", key) as client:
        stored = await client.upload("ada", silence(tmp_path / "recording.wav", 2.0))
        asked = AskedJob(account="ada", request={}, kind="reading", inputs={"recording": stored.artifact})
        done = await client.wait((await client.submit(asked)).id, timeout=60)
        assert "succeeded" == done.state
        taken = await client.artifact(done.outputs[0].artifact)
        path = await client.download(taken.artifact, tmp_path / "take.wav")
        assert taken.bytes == len(await asyncio.to_thread(path.read_bytes))
    part = await asyncio.to_thread(
        lambda: httpx2.get(
            f"http://127.0.0.1:{port}/v1/artifacts/{taken.artifact}",
            headers={"Authorization": f"Bearer {key}", "Range": "bytes=4-11"},
        )
    )
    assert (206, path.read_bytes()[4:12]) == (part.status_code, part.content)
    assert 2 == len(bucket.listed())
    assert [] == files_in(tmp_path / "api-process")
