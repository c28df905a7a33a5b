"""The crash table, kills: a process dies at each named step of a job's path, and the job is done once and paid once.

The table is complete by construction: a point in `worker.failpoints.POINTS` without a row here fails.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.stage import Stage
from worker.failpoints import MOMENTS, PATH


@dataclass(frozen=True)
class Row:
    """Who is killed at a point, and what the attempts of the job look like in the end."""

    process: str
    endings: tuple[str, ...]


#: Nothing was claimed when it died: one attempt, by whoever came next.
UNCLAIMED = ("succeeded",)
#: It died with the job in its hands: the lease lapses, the second attempt succeeds with the same hold.
LOST = ("lost_worker", "succeeded")

TABLE = {
    "submit.after": Row("pipeline", UNCLAIMED),
    "dispatch.marked": Row("scheduler", UNCLAIMED),
    "dispatch.sent": Row("scheduler", UNCLAIMED),
    # taken from Redis, not yet acknowledged by the actor
    "claim.before": Row("worker", UNCLAIMED),
    "claim.written": Row("worker", UNCLAIMED),
    "claim.committed": Row("worker", LOST),
    "claim.after": Row("worker", LOST),
    "run.before": Row("worker", LOST),
    # the engine wrote its file, and it is kept under the token
    "run.kept": Row("worker", LOST),
    "run.after": Row("worker", LOST),
    "settle.before": Row("worker", LOST),
    "settle.written": Row("worker", LOST),
    "settle.committed": Row("worker", UNCLAIMED),
    "settle.after": Row("worker", UNCLAIMED),
    # of the telling of events: tests/acceptance/test_webhooks.py
    "deliver.claimed": Row("teller", UNCLAIMED),
    "deliver.sent": Row("teller", UNCLAIMED),
}

#: A pipeline that submits one job and is killed before it learns of it.
PIPELINE = """
import asyncio
from config.settings import load
from worker.boot import opened_client
from worker.client import JobRequest

async def main():
    async with opened_client(load()) as (client, _):
        await client.submit(JobRequest("ada", "null", key="only-once"), "pipeline")

asyncio.run(main())
"""


def test_every_point_has_its_row() -> None:
    """A step of the path that no test dies at fails here, and so does a row for a point that is gone."""
    assert PATH | {f"{step}.{moment}" for step in ("claim", "settle") for moment in MOMENTS} == set(TABLE)


@pytest.mark.parametrize("point", [point for point, row in TABLE.items() if row.process == "worker"])
async def test_a_killed_worker_loses_no_job_and_charges_once(stage: Stage, point: str) -> None:
    """Given a worker that dies at the point, when another one is there, then the job succeeds and is charged once."""
    stage.scheduler()
    doomed = stage.worker(failpoints=f"{point}:kill")
    job_id = await stage.submit()
    assert -signal.SIGKILL == await doomed.ended()
    stage.worker()
    seen = await stage.becomes(job_id, "succeeded")
    assert list(TABLE[point].endings) == seen.endings
    assert 10 == seen.charged
    assert ["take-1"] == seen.outputs
    assert {"available": 990, "held": 0, "spent": 10, "expired": 0} == await stage.balance()


@pytest.mark.parametrize("point", [point for point, row in TABLE.items() if row.process == "scheduler"])
async def test_a_killed_scheduler_leaves_nothing_behind(stage: Stage, point: str) -> None:
    """Given a scheduler that dies at the point, when the next one is there, then the job runs, once."""
    doomed = stage.scheduler(failpoints=f"{point}:kill")
    stage.worker()
    job_id = await stage.submit()
    assert -signal.SIGKILL == await doomed.ended()
    stage.scheduler()
    seen = await stage.becomes(job_id, "succeeded")
    assert list(TABLE[point].endings) == seen.endings


async def test_a_scheduler_killed_while_it_reaps(stage: Stage) -> None:
    """Given a lost worker, when the scheduler dies before the reaping is committed, then the next one reaps."""
    doomed = stage.scheduler(failpoints="reap.written:kill")
    lost = stage.worker(failpoints="run.before:kill")
    job_id = await stage.submit()
    await lost.ended()
    assert -signal.SIGKILL == await doomed.ended()
    stage.scheduler()
    stage.worker()
    seen = await stage.becomes(job_id, "succeeded")
    assert list(LOST) == seen.endings


async def test_a_pipeline_killed_after_its_submit_submits_again(stage: Stage, tmp_path: Path) -> None:
    """Given a pipeline killed before it has the answer, when it submits again with its key, then there is one job."""
    stage.scheduler()
    stage.worker()
    doomed = stage.python(PIPELINE, failpoints="submit.after:kill")
    assert -signal.SIGKILL == await doomed.ended()
    assert 1 == await stage.value("SELECT count(*) FROM jobs")
    again = await stage.submit(key="only-once")
    assert 1 == await stage.value("SELECT count(*) FROM jobs")
    assert list(TABLE["submit.after"].endings) == (await stage.becomes(again, "succeeded")).endings
