"""The crash table, freezes and races: a process that wakes too late, hints that come twice, cancels that cross."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from tests.acceptance.stage import Process, Stage
from worker.credits.operations import AlreadyEnded, CancelAsked
from worker.queue.hints import HintSender


async def frozen(stage: Stage, process: Process) -> None:
    """Wait until it stands still."""
    await stage.until(lambda: process.frozen, "process frozen")


@pytest.mark.parametrize("point", ["claim.committed", "run.before", "run.kept", "run.after", "settle.before"])
async def test_who_lost_the_lease_can_neither_settle_nor_publish(stage: Stage, point: str) -> None:
    """Given a worker frozen beyond its lease, when another has done its job, then it wakes to throw its work away.

    It goes on to serve: the next job is its own.
    """
    stage.scheduler()
    sleeper = stage.worker(failpoints=f"{point}:stop")
    job_id = await stage.submit()
    await frozen(stage, sleeper)
    other = stage.worker()
    before = await stage.becomes(job_id, "succeeded")
    other.end()
    sleeper.thaw()
    if point != "claim.committed":  # there its transaction's answer has come too late already
        await stage.until(lambda: "output thrown away" in sleeper.said, "the sleeper threw its output away")
    await stage.becomes(await stage.submit(), "succeeded")
    assert before == await stage.job(job_id)
    assert ["lost_worker", "succeeded"] == before.endings
    assert {"available": 980, "held": 0, "spent": 20, "expired": 0} == await stage.balance()


async def test_a_run_that_lost_its_lease_is_stopped(stage: Stage) -> None:
    """Given a run that was reaped while its worker was frozen, when the worker wakes, then it stops the engine."""
    gate = stage.gate()
    stage.scheduler()
    sleeper = stage.worker()
    job_id = await stage.submit("gated", gate=str(gate))
    await stage.becomes(job_id, "running")
    sleeper.freeze()
    await stage.until(lambda: stage.value("SELECT count(*) = 1 FROM attempts"), "reaped")
    other = stage.worker()
    await stage.until(lambda: stage.value("SELECT count(*) = 1 FROM live WHERE attempt = 2"), "claimed again")
    sleeper.thaw()
    await stage.until(lambda: "lease lost, output thrown away" in sleeper.said, "the sleeper gave the job up")
    gate.touch()
    seen = await stage.becomes(job_id, "succeeded")
    assert ["lost_worker", "succeeded"] == seen.endings
    assert other.alive
    assert sleeper.alive


async def test_a_freeze_shorter_than_the_lease_changes_nothing(stage: Stage) -> None:
    """Given a worker that stands still for a moment, then its job goes on where it was."""
    gate = stage.gate()
    stage.scheduler()
    worker = stage.worker(lease_seconds=20, renew_seconds=0.3)
    job_id = await stage.submit("gated", gate=str(gate))
    await stage.becomes(job_id, "running")
    worker.freeze()
    await stage.becomes(await stage.submit(account_id=await stage.account("eve")), "queued")
    worker.thaw()
    gate.touch()
    assert ["succeeded"] == (await stage.becomes(job_id, "succeeded")).endings


@pytest.mark.parametrize("point", ["claim.written", "settle.written"])
async def test_a_process_frozen_inside_a_batch_delays_its_own_account_only(stage: Stage, point: str) -> None:
    """Given a worker frozen with an account locked, then others are served, and this account after the time-out.

    When it wakes, then its transaction is gone and it goes on.
    """
    await stage.account("eve", 100)
    stage.scheduler()
    sleeper = stage.worker(failpoints=f"{point}:stop")
    job_id = await stage.submit()
    await frozen(stage, sleeper)
    other = stage.worker()
    for neighbour in await stage.submit_many(5, account_id="eve"):
        await stage.becomes(neighbour, "succeeded")
    seen = await stage.becomes(job_id, "succeeded")
    assert {"claim.written": ["succeeded"], "settle.written": ["lost_worker", "succeeded"]}[point] == seen.endings
    other.end()
    sleeper.thaw()
    await stage.becomes(await stage.submit(), "succeeded")
    assert seen == await stage.job(job_id)


async def test_hints_that_come_many_times_start_a_job_once(stage: Stage) -> None:
    """Given two workers, when each job's hint comes twenty times, and late ones follow, then each runs once."""
    sender = HintSender(stage.environment["FERMATA_REDIS_URL"], stage.settings.namespace)
    stage.worker(slots=8)
    stage.worker(slots=8)
    stage.scheduler()
    job_ids = await stage.submit_many(20)
    hints = {"null": [("ada", job_id) for job_id in job_ids]}
    for _ in range(20):
        await sender.send(hints, per_message=5)
    seen = await stage.all_ended(job_ids)
    await sender.send(hints, per_message=5)  # late
    await sender.send({"null": [("ada", UUID(int=7)), ("nobody", UUID(int=8))]})  # of no job at all
    await stage.becomes(await stage.submit(), "succeeded")
    await sender.close()
    assert [["succeeded"]] * 20 == [job.endings for job in seen]
    assert {"available": 790, "held": 0, "spent": 210, "expired": 0} == await stage.balance()


async def test_a_finished_result_beats_a_cancel(stage: Stage) -> None:
    """Given a run that has ended, when a cancel comes before it is settled, then the job succeeds."""
    stage.scheduler()
    worker = stage.worker(failpoints="settle.before:stop")
    job_id = await stage.submit()
    await frozen(stage, worker)
    assert CancelAsked() == await stage.client.cancel("ada", job_id, "too late")
    worker.thaw()
    assert 10 == (await stage.becomes(job_id, "succeeded")).charged


async def test_cancels_against_settles(stage: Stage) -> None:
    """Given forty jobs that run, when each is cancelled somewhere on its way, then each ends one way, paid or not."""
    stage.scheduler()
    stage.worker(slots=4)
    job_ids = await stage.submit_many(40)

    async def cancelled(job_id: UUID) -> str:
        answer = await stage.client.cancel("ada", job_id, "changed my mind")
        return "succeeded" if isinstance(answer, AlreadyEnded) else "either"

    answers = await asyncio.gather(*map(cancelled, job_ids))
    seen = await stage.all_ended(job_ids)
    for answer, job in zip(answers, seen, strict=True):
        assert job.state in {"succeeded", "cancelled"}
        assert answer in {"either", job.state}
        assert {"succeeded": 10, "cancelled": 0}[job.state] == job.charged


async def test_two_schedulers_start_nothing_twice(stage: Stage) -> None:
    """Given two schedulers and two workers, when one scheduler is killed under load, then each job ran once."""
    doomed, _ = stage.scheduler(), stage.scheduler()
    stage.worker(slots=4)
    stage.worker(slots=4)
    job_ids = await stage.submit_many(40)
    await stage.until(lambda: stage.value("SELECT count(*) > 5 FROM jobs WHERE state = 'succeeded'"), "some ended")
    doomed.kill()
    job_ids += await stage.submit_many(20)
    assert [["succeeded"]] * 60 == [job.endings for job in await stage.all_ended(job_ids)]
