"""Leaving in good order: a deploy costs nobody anything."""

from __future__ import annotations

import signal

from tests.acceptance.stage import Stage
from worker.store.workers import Workers


async def test_jobs_end_within_the_drain(stage: Stage) -> None:
    """Given the installed script with running jobs, when SIGTERM comes, then they end, nothing starts, exit code 0."""
    gate = stage.gate()
    stage.scheduler()
    worker = stage.script("worker", slots=2)
    running = await stage.submit_many(2, "gated", gate=str(gate))
    for job_id in running:
        await stage.becomes(job_id, "running")
    worker.send(signal.SIGTERM)
    await stage.until(lambda: stage.value("SELECT bool_and(draining) FROM workers"), "said to be draining")
    late = await stage.submit()
    gate.touch()
    assert 0 == await worker.ended()
    assert [["succeeded"]] * 2 == [(await stage.job(job_id)).endings for job_id in running]
    assert "queued" == (await stage.job(late)).state
    assert await stage.value("SELECT bool_and(stopped_at IS NOT NULL) FROM workers")


async def test_ops_drain_a_worker_from_afar(stage: Stage) -> None:
    """Given a worker with a running job, when ops ask it to drain, then the job ends, nothing starts, exit code 0."""
    stage.scheduler()
    worker = stage.script("worker", slots=2)
    running = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(running, "running")
    assert await Workers(stage.store.engine).ask_to_drain(await stage.value("SELECT worker_id FROM workers"), "ops")
    await stage.until(lambda: stage.value("SELECT bool_and(draining) FROM workers"), "said to be draining")
    late = await stage.submit()
    stage.gate().touch()
    assert 0 == await worker.ended()
    assert ["succeeded"] == (await stage.job(running)).endings
    assert "queued" == (await stage.job(late)).state


async def test_what_takes_longer_goes_back_uncounted(stage: Stage) -> None:
    """Given a job that outlasts the drain, then it is handed back, and the next worker goes on with the same hold."""
    gate = stage.gate()
    stage.scheduler()
    worker = stage.script("worker", drain_seconds=0.5)
    job_id = await stage.submit("gated", gate=str(gate))
    await stage.becomes(job_id, "running")
    worker.send(signal.SIGTERM)
    assert 0 == await worker.ended()
    handed_back = await stage.job(job_id)
    assert ("queued", 0, ["handed_back"]) == (handed_back.state, handed_back.failures, handed_back.endings)
    assert {"available": 990, "held": 10, "spent": 0, "expired": 0} == await stage.balance()
    stage.worker()
    gate.touch()
    seen = await stage.becomes(job_id, "succeeded")
    assert (["handed_back", "succeeded"], 0, 10) == (seen.endings, seen.failures, seen.charged)
    assert 1 == await stage.value("SELECT count(*) FROM journal WHERE move = 'reserve' AND job_id = $1", job_id)


async def test_a_second_signal_hands_back_at_once(stage: Stage) -> None:
    """Given a worker that drains for a long time, when SIGTERM comes again, then it leaves at once, exit code 0."""
    stage.scheduler()
    worker = stage.script("worker", drain_seconds=600)
    job_id = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(job_id, "running")
    worker.send(signal.SIGTERM)
    await stage.until(lambda: "worker draining" in worker.said, "draining")
    worker.send(signal.SIGTERM)
    assert 0 == await worker.ended()
    assert ("queued", 0) == ((await stage.job(job_id)).state, (await stage.job(job_id)).failures)


async def test_a_deploy_under_load_costs_no_job(stage: Stage) -> None:
    """Given a backlog, when each worker is replaced while it works, then every job succeeds, none has failed."""
    stage.scheduler()
    old = [stage.worker(slots=4, drain_seconds=0.2) for _ in range(2)]
    job_ids = await stage.submit_many(80, account_id=await stage.account("eve", 3200), outputs=4)
    await stage.until(lambda: stage.value("SELECT count(*) > 5 FROM jobs WHERE state = 'succeeded'"), "some ended")
    for worker in old:
        worker.send(signal.SIGTERM)
        stage.worker(slots=4)
    assert [0, 0] == [await worker.ended() for worker in old]
    seen = await stage.all_ended(job_ids)
    assert {("succeeded", 0, 40)} == {(job.state, job.failures, job.charged) for job in seen}
    assert {"succeeded", "handed_back"} >= {ending for job in seen for ending in job.endings}


async def test_a_scheduler_leaves_with_exit_code_0(stage: Stage) -> None:
    """Given the installed script, when SIGTERM comes, then the scheduler ends in order."""
    scheduler = stage.script("scheduler")
    await stage.until(lambda: "scheduler started" in scheduler.said, "started")
    scheduler.send(signal.SIGTERM)
    assert 0 == await scheduler.ended()
