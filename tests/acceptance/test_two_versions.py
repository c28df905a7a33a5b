"""An upgrade and the way back: the release before works beside this one, on this one's schema, and no job is lost.

In the order that docs/DEPLOY.md promises: the schema first, then workers, then schedulers; back in the opposite order.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tests.acceptance.stage import ACTOR, ROOT, Process, Stage
from worker.local.processes import spawn
from worker.local.roles import dsn

#: The tree before: of schema 0022, the one before this tree's newest. Move it on with each release.
BEFORE = "4b9d651b3de7089188d40be3f0cb6e4f4e473d09"
JOBS = 200
#: Attempts that each version must have ended in a phase. In the short version a few of each will do.
EACH, EACH_SHORT = 15, 3


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the release before, from the history of this repository."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history of this clone does not reach {BEFORE[:8]}: {archive.stderr.decode().strip()[:80]}")
    folder = tmp_path_factory.mktemp("before")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def before(stage: Stage, tree: Path, verb: str, *queues: str) -> Process:
    """A process of the release before: from its own folder Python takes its own modules."""
    log = stage.folder / f"before-{verb}-{len(stage.processes)}.log"
    environment = {
        **stage.environment,
        "FERMATA_DATABASE_URL": dsn(stage.database.worker_url or stage.database.url),
        "FERMATA_EXTRA_KINDS": "tests.kinds:Null",
        "FERMATA_SLOTS": "2",
    }
    with log.open("wb") as output:
        child = spawn(
            [sys.executable, "-m", "worker.cli", verb, *queues],
            on_parent_death=signal.SIGKILL,
            cwd=tree,
            env=environment,
            stdout=output,
            stderr=output,
        )
    process = Process(child.pid, log, lambda _: child.wait(10))
    stage.processes.append(process)
    return process


@asynccontextmanager
async def submitting(stage: Stage, jobs: list[UUID], least: int) -> AsyncIterator[None]:
    """For as long as the block, and then up to `least` in all, jobs come in: there are always some in flight."""
    stop = asyncio.Event()

    async def submit() -> None:
        async with stage.database.connection() as own:
            while not stop.is_set() or len(jobs) < least:
                jobs.extend(await stage.submit_many(4))
                await stage.until(lambda: own.fetchval("SELECT count(*) < 40 FROM due"), "they are taken", 60)

    async with asyncio.TaskGroup() as group:
        group.create_task(submit())
        yield
        stop.set()


async def ended_by(stage: Stage, each: int, *workers: Process) -> None:
    """Wait until each of these has ended so many attempts from now on."""

    async def count(worker: Process) -> int:
        return int(await stage.value("SELECT count(*) FROM attempts WHERE worker_id LIKE $1", f"%-{worker.pid}-%"))

    started = [await count(worker) for worker in workers]

    async def all_have() -> bool:
        return all([await count(worker) >= first + each for worker, first in zip(workers, started, strict=True)])

    await stage.until(all_have, "each version ended attempts", 60)


async def let_go(*processes: Process) -> None:
    """End them as systemd does; they hand back what they hold."""
    for process in processes:
        process.send(signal.SIGTERM)
    for process in processes:
        assert 0 == await process.ended(), process.said


@pytest.mark.proof
async def test_two_versions_share_the_work_and_either_may_go(stage: Stage, release_before: Path, whole: bool) -> None:
    """Given jobs all the time, then the old alone, both and the new alone end them; whole, the way back too."""
    await stage.store.accounts.grant("ada", 1_000_000, "for all of it", ACTOR)
    jobs: list[UUID] = []
    each, least = (EACH, JOBS) if whole else (EACH_SHORT, 0)
    async with submitting(stage, jobs, least):
        old_worker, old_scheduler = (
            before(stage, release_before, "worker", "null"),
            before(stage, release_before, "scheduler"),
        )
        await ended_by(stage, each, old_worker)
        new_worker = stage.worker("null", slots=2)
        await ended_by(stage, each, old_worker, new_worker)
        await let_go(old_worker)
        new_scheduler = stage.scheduler()  # beside the old one
        await ended_by(stage, each, new_worker)
        await let_go(old_scheduler)
        await ended_by(stage, each, new_worker)
        if whole:
            await go_back(stage, release_before, new_worker, new_scheduler)
    seen = await stage.all_ended(jobs)
    assert len(seen) >= max(least, 4 * each)
    assert {("succeeded", 1)} == {(job.state, job.failures + 1) for job in seen}
    assert sum(job.charged or 0 for job in seen) == (await stage.balance())["spent"]
    assert len(jobs) == await stage.value("SELECT count(*) FROM reservations WHERE state = 'committed'")


async def go_back(stage: Stage, release_before: Path, new_worker: Process, new_scheduler: Process) -> None:
    """In the opposite order, until the old ones are alone."""
    before(stage, release_before, "scheduler")
    await ended_by(stage, EACH, new_worker)
    await let_go(new_scheduler)
    old_worker = before(stage, release_before, "worker", "null")
    await ended_by(stage, EACH, new_worker, old_worker)
    await let_go(new_worker)
    await ended_by(stage, EACH, old_worker)
