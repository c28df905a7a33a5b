"""How jobs end, each with its charge: failures of the engine, of a provider, of the storage, of time, and cancels."""

from __future__ import annotations

import os
import signal
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tests.acceptance.stage import Process, Stage, put_plans_in_force, put_prices_in_force
from worker.store.ops import Scope


def from_now(seconds: float) -> datetime:
    """That much later, by a clock that in tests is the database's too."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


# --- failures


@pytest.mark.parametrize(
    ("error", "endings", "reason"),
    [
        ("crashed", ["engine_crashed"] * 3, "engine_crashed"),
        ("unavailable", ["engine_unavailable"] * 3, "engine_unavailable"),
        ("unheard_of", ["engine_failure"] * 3, "engine_failure"),
        ("bug", ["internal_error"] * 3, "internal_error"),
        ("exit", ["internal_error"] * 3, "internal_error"),
        ("memory", ["out_of_memory"] * 2, "out_of_memory"),
        ("invalid", ["invalid_input"], "invalid_input"),
        ("final", ["engine_error"], "engine_error"),
    ],
)
async def test_an_engine_that_keeps_failing(stage: Stage, error: str, endings: list[str], reason: str) -> None:
    """Given an engine that fails each time, then it is tried as often as may help, and nobody pays. Others go on."""
    stage.scheduler()
    worker = stage.worker()
    job_id = await stage.submit("failing", error=error)
    seen = await stage.becomes(job_id, "failed")
    assert (endings, reason, 0, len(endings)) == (seen.endings, seen.reason, seen.charged, seen.failures)
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()
    await stage.becomes(await stage.submit(), "succeeded")
    assert worker.alive


async def test_a_retry_keeps_its_hold_and_backs_off(stage: Stage) -> None:
    """Given an engine that fails at first, then its hold stays, it waits longer each time, and succeeds."""
    stage.scheduler()
    stage.worker(backoff_first_seconds=0.4, backoff_max_seconds=5)
    job_id = await stage.submit("failing", error="unavailable", times=2)
    await stage.until(lambda: stage.value("SELECT state = 'queued' AND failures = 1 FROM jobs"), "failed once")
    assert {"available": 990, "held": 10, "spent": 0, "expired": 0} == await stage.balance()
    seen = await stage.becomes(job_id, "succeeded")
    assert (["engine_unavailable"] * 2 + ["succeeded"], 10, 2) == (seen.endings, seen.charged, seen.failures)
    waits = await stage.rows.fetch(
        "SELECT extract(epoch FROM started_at - lag(ended_at) OVER (ORDER BY attempt))::float AS seconds FROM attempts"
    )
    # Half of it is chance.
    assert 0.2 <= waits[1]["seconds"]
    assert 0.4 <= waits[2]["seconds"]


async def test_a_job_that_kills_its_worker_ends_failed(stage: Stage) -> None:
    """Given a job that kills each process that runs it, then it ends after the third, refunded; others get done."""
    stage.scheduler()
    other = stage.worker("null")
    job_id = await stage.submit("poison")
    for _ in range(3):
        victim = stage.worker("poison")
        assert -signal.SIGKILL == await victim.ended()
    seen = await stage.becomes(job_id, "failed")
    assert (["lost_worker"] * 3, "lost_worker", 0) == (seen.endings, seen.reason, seen.charged)
    assert [["succeeded"]] * 5 == [job.endings for job in await stage.all_ended(await stage.submit_many(5))]
    assert other.alive
    assert {"available": 950, "held": 0, "spent": 50, "expired": 0} == await stage.balance()


async def test_a_run_that_takes_too_long_is_stopped(stage: Stage) -> None:
    """Given a run beyond its limit, then it is stopped, tried again, and fails in the end without a charge."""
    stage.scheduler()
    stage.worker(run_seconds=0.3)
    seen = await stage.becomes(await stage.submit("gated", gate=str(stage.gate())), "failed")
    assert (["time_limit"] * 3, "time_limit", 0) == (seen.endings, seen.reason, seen.charged)


async def test_an_engine_that_will_not_stop_holds_nobody_up(stage: Stage) -> None:
    """Given an engine that swallows its cancellation, then its job is cancelled all the same, and its slot serves."""
    gate = stage.gate()
    stage.scheduler()
    worker = stage.worker(slots=1)
    job_id = await stage.submit("gated", gate=str(gate), stubborn=True)
    await stage.becomes(job_id, "running")
    await stage.client.cancel("ada", job_id, "enough")
    assert 0 == (await stage.becomes(job_id, "cancelled")).charged
    await stage.becomes(await stage.submit(), "succeeded")
    gate.touch()
    assert "does not stop" in worker.said
    assert 0 == await stage.value("SELECT count(*) FROM artifacts WHERE job_id = $1", job_id)


async def test_a_process_whose_loop_is_blocked_ends(stage: Stage) -> None:
    """Given an engine that never gives the event loop back, then its process ends itself and the job is another's."""
    stage.scheduler()
    victim = stage.worker("blocking")
    job_id = await stage.submit("blocking", ends_by=from_now(60))
    await stage.becomes(job_id, "running")
    assert 70 == await victim.ended()
    await stage.becomes(job_id, "queued")
    await stage.client.cancel("ada", job_id, "enough")


# --- partial


@pytest.mark.parametrize("error", ["crashed", "final", "invalid"])
async def test_what_was_finished_before_a_crash_is_sold(stage: Stage, error: str) -> None:
    """Given two outputs and then a failure, then the job succeeds partially and those two are charged."""
    stage.scheduler()
    stage.worker()
    job_id = await stage.submit("failing", error=error, finished=2)
    seen = await stage.becomes(job_id, "succeeded")
    assert (True, "partial", 30, 20) == (seen.partial, seen.reason, seen.quoted, seen.charged)
    assert ["early-1", "early-2"] == seen.outputs
    assert {"available": 980, "held": 0, "spent": 20, "expired": 0} == await stage.balance()


async def test_what_a_lost_worker_finished_is_thrown_away(stage: Stage) -> None:
    """Given two outputs and then a killed worker, then the next attempt makes all of them and only those are sold."""
    gate = stage.gate()
    stage.scheduler(sweep_tick_seconds=0.2)
    doomed = stage.worker()
    job_id = await stage.submit("gated", gate=str(gate), before=2)
    await stage.until(lambda: len(list(stage.outputs(job_id))) == 2, "two outputs kept")
    doomed.kill()
    gate.touch()
    stage.worker()
    seen = await stage.becomes(job_id, "succeeded")
    assert (["lost_worker", "succeeded"], 30) == (seen.endings, seen.charged)
    assert ["early-1", "early-2", "take"] == seen.outputs
    # And once they have aged, the folders of the lost attempt are swept, never those that were sold.
    for folder in stage.attempt_folders():
        os.utime(folder, (0, 0))
    await stage.until(lambda: len(list(stage.outputs(job_id))) == 3, "the lost outputs are swept")
    await stage.until(lambda: not list(stage.artifacts.glob("work/*")), "the lost work folder is swept")
    sold = await stage.rows.fetch("SELECT storage_key FROM artifacts WHERE job_id = $1", job_id)
    assert all((stage.artifacts / key).exists() for (key,) in sold)


async def test_a_cancelled_run_sells_nothing(stage: Stage) -> None:
    """Given two outputs and then a cancel, then it is seen within two seconds, and nothing is charged or readable."""
    stage.scheduler()
    stage.worker(renew_seconds=10, lease_seconds=30)
    job_id = await stage.submit("gated", gate=str(stage.gate()), before=2)
    await stage.until(lambda: len(list(stage.outputs(job_id))) == 2, "two outputs kept")
    await stage.client.cancel("ada", job_id, "changed my mind")
    seen = await stage.becomes(job_id, "cancelled", seconds=2)
    assert ("cancelled_running", 0, None) == (seen.reason, seen.charged, seen.outputs)
    assert 0 == await stage.value("SELECT count(*) FROM artifacts WHERE job_id = $1", job_id)


async def test_a_queued_job_is_cancelled_at_once(stage: Stage) -> None:
    """Given no worker at all, when a queued job is cancelled, then it has ended, before and after its first attempt."""
    job_id = await stage.submit()
    await stage.client.cancel("ada", job_id, "changed my mind")
    assert ("cancelled", "cancelled", 0) == (
        (await stage.job(job_id)).state,
        (await stage.job(job_id)).reason,
        (await stage.job(job_id)).charged,
    )
    stage.scheduler()
    stage.worker(backoff_first_seconds=60, backoff_max_seconds=60)
    held_id = await stage.submit("failing", error="unavailable")
    await stage.until(lambda: stage.value("SELECT failures = 1 FROM jobs WHERE job_id = $1", held_id), "failed once")
    assert 10 == (await stage.balance())["held"]
    await stage.client.cancel("ada", held_id, "changed my mind")
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()


# --- deadlines


async def test_a_deadline_that_passes_while_queued(stage: Stage) -> None:
    """Given no worker, or a paused queue, when `ends_by` passes, then the job is refused; nothing was held."""
    stage.scheduler()
    await stage.controls.pause(Scope.QUEUE, "gated", "a look at it", "ops")
    never = await stage.submit("null", ends_by=from_now(0.8))
    paused = await stage.submit("gated", gate="/nowhere", ends_by=from_now(0.8))
    for job_id in (never, paused):
        seen = await stage.becomes(job_id, "refused")
        assert ("past_ends_by", 0, []) == (seen.reason, seen.charged, seen.endings)


async def awake(stage: Stage, **settings: object) -> Process:
    """A worker, and a scheduler, that have done a job: a deadline of seconds does not pass while they start."""
    stage.scheduler()
    worker = stage.worker(**settings)
    await stage.becomes(await stage.submit(account_id=await stage.account("first", 10)), "succeeded")
    return worker


async def test_a_deadline_that_passes_while_running(stage: Stage) -> None:
    """Given a run that is not done by `ends_by`, then it is stopped, fails without a charge and is not tried again.

    A deadline is the customer's choice: credits that expired meanwhile are not made good, or it would carry them over.
    """
    await awake(stage)
    await stage.account("eve", 10, expires_at=from_now(1.5))
    job_id = await stage.submit("gated", "eve", gate=str(stage.gate()), ends_by=from_now(2))
    seen = await stage.becomes(job_id, "failed")
    assert ("past_ends_by_started", 0) == (seen.reason, seen.charged)
    assert {"available": 0, "held": 0, "spent": 0, "expired": 10} == await stage.balance("eve")


async def test_a_deadline_sells_what_was_finished(stage: Stage) -> None:
    """Given an output that was finished before `ends_by`, then it is sold, and only it.

    What it left unused of credits that expired meanwhile is not made good either.
    """
    await awake(stage)
    await stage.account("eve", 20, expires_at=from_now(1.2))
    job_id = await stage.submit("gated", "eve", gate=str(stage.gate()), before=1, ends_by=from_now(1.5))
    seen = await stage.becomes(job_id, "succeeded")
    assert (True, 10, ["early-1"]) == (seen.partial, seen.charged, seen.outputs)
    assert {"available": 0, "held": 0, "spent": 10, "expired": 10} == await stage.balance("eve")


async def test_a_deadline_that_passes_between_attempts(stage: Stage) -> None:
    """Given a job that failed and backs off, when `ends_by` passes, then it fails and its hold goes back."""
    await awake(stage, backoff_first_seconds=60, backoff_max_seconds=60)
    job_id = await stage.submit("failing", error="unavailable", ends_by=from_now(2))
    seen = await stage.becomes(job_id, "failed")
    assert ("past_ends_by_started", ["engine_unavailable"], 0) == (seen.reason, seen.endings, seen.charged)
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()


async def test_a_hold_ends_soon_after_its_deadline_without_any_worker(stage: Stage) -> None:
    """Given a worker that is frozen for good with a job, when `ends_by` passes, then its hold ends by itself."""
    worker = await awake(stage)
    job_id = await stage.submit("gated", gate=str(stage.gate()), ends_by=from_now(2.5))
    await stage.becomes(job_id, "running")
    worker.freeze()
    seen = await stage.becomes(job_id, "failed", seconds=10)
    assert 0 == seen.charged
    assert {"available": 1000, "held": 0, "spent": 0, "expired": 0} == await stage.balance()


# --- inputs


async def test_an_input_that_is_damaged_after_the_submit(stage: Stage, tmp_path: Path) -> None:
    """Given a stored input that changed or is gone, then its job fails at once, by our fault, and is refunded."""
    stage.scheduler()
    artifact_id = await a_recording(stage, tmp_path)
    changed = await stage.submit("reading", inputs={"recording": str(artifact_id)})
    sound = await stage.submit("reading", inputs={"recording": str(await a_recording(stage, tmp_path))})
    (file,) = stage.artifacts.glob(f"inputs/*/{artifact_id}")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    stage.worker()
    assert 6 == (await stage.becomes(sound, "succeeded")).charged
    seen = await stage.becomes(changed, "failed")
    assert ("input_damaged", ["input_damaged"], 0) == (seen.reason, seen.endings, seen.charged)
    file.unlink()
    gone = await stage.submit("reading", inputs={"recording": str(artifact_id)})
    assert "input_damaged" == (await stage.becomes(gone, "failed")).reason


async def a_recording(stage: Stage, folder: Path) -> UUID:
    """Half a second of silence, put into the store."""
    path = folder / "recording.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    return (await stage.client.put("ada", path, "test")).artifact_id


async def test_storage_that_fails_for_a_while(stage: Stage, tmp_path: Path) -> None:
    """Given a work folder that can't be written for a while, then the attempt is tried again, and succeeds."""
    stage.scheduler()
    artifact_id = await a_recording(stage, tmp_path)
    work = stage.artifacts / "work"
    worker = stage.worker(backoff_first_seconds=0.5, backoff_max_seconds=5, failures_max=20)
    await stage.becomes(await stage.submit(), "succeeded")
    work.rmdir()
    work.touch()  # a file where the folder was: nothing can be made in it
    job_id = await stage.submit("reading", inputs={"recording": str(artifact_id)})
    await stage.until(lambda: stage.value("SELECT failures >= 1 FROM jobs WHERE job_id = $1", job_id), "failed once")
    work.unlink()
    work.mkdir()
    seen = await stage.becomes(job_id, "succeeded")
    assert {"storage_failure", "succeeded"} == set(seen.endings)
    assert worker.alive


# --- what an engine remembers


async def test_the_next_attempt_is_handed_what_the_engine_remembered(stage: Stage) -> None:
    """Given an engine that ordered its work at a provider, when its worker is lost, then the next finds the order."""
    stage.scheduler()
    doomed = stage.worker()
    job_id = await stage.submit("remembering", gate=str(stage.gate()))
    await stage.until(lambda: stage.value("SELECT engine_state IS NOT NULL FROM live"), "remembered")
    doomed.kill()
    stage.worker()
    seen = await stage.becomes(job_id, "succeeded")
    assert (["lost_worker", "succeeded"], ["order-1"]) == (seen.endings, seen.outputs)


# --- prices and cycles


async def test_a_price_change_leaves_submitted_jobs_alone(stage: Stage) -> None:
    """Given a queued job, when prices double, then it is charged by the book it was quoted from, a new one not."""
    old = await stage.submit("gated", gate=str(stage.gate()))
    await put_prices_in_force(stage.database, gated="20")
    new = await stage.submit("gated", gate=str(stage.gate()))
    stage.gate().touch()
    stage.scheduler()
    stage.worker()
    assert [10, 20] == [(await stage.becomes(job_id, "succeeded")).charged for job_id in (old, new)]


async def test_a_job_keeps_its_book_and_its_plan_while_it_waits_and_is_tried_again(stage: Stage) -> None:
    """Given a job that waits for credits, when its account gets a plan and prices change, then its price is the old.

    It waits, is paid by the new subscription and fails once; the plan that it gets meanwhile would halve its price, and
    the book that follows would double it.
    """
    half = '10\n[[failing.overrides]]\nwhen = { plan = "creator" }\nmultiplier = 0.5'
    first = await put_prices_in_force(stage.database, failing=half)
    await stage.account("eve", 0)
    stage.scheduler()
    stage.worker(backoff_first_seconds=0.1)
    job_id = await stage.submit("failing", "eve", error="unavailable", times=1, on_insufficient="wait")
    await stage.becomes(job_id, "waiting")
    await put_prices_in_force(stage.database, failing="20")
    await stage.store.accounts.subscribe("eve", "creator", "start", "test")
    seen = await stage.becomes(job_id, "succeeded")
    assert (10, 10, ["engine_unavailable", "succeeded"]) == (seen.quoted, seen.charged, seen.endings)
    receipt = await stage.client.reads.receipt(job_id)
    assert (first, None, 10) == (receipt.book, receipt.plan, receipt.reserved)


@pytest.mark.parametrize(
    ("kind", "ended", "afterwards"),
    [
        ("gated", ("succeeded", 10), {"available": 1200, "held": 0, "spent": 10, "expired": 1190}),
        # Our failure: what came back too late is made good. The customer's change of mind: it expires.
        ("failing_late", ("failed", 0), {"available": 1210, "held": 0, "spent": 0, "expired": 1200}),
        ("cancelled", ("cancelled", 0), {"available": 1200, "held": 0, "spent": 0, "expired": 1200}),
    ],
)
async def test_a_cycle_that_ends_during_the_run(
    stage: Stage, kind: str, ended: tuple[str, int], afterwards: dict[str, int]
) -> None:
    """Given a job that started in the old cycle, when that ends, then it is paid or returned by the old lot.

    The next cycle's 1200 credits are there by then: whoever meets the ended cycle first begins it.
    """
    await put_plans_in_force(stage.database, "gated")
    await stage.account("eve", 0)
    await stage.store.accounts.subscribe("eve", "creator", "start", "test")
    stage.scheduler()
    stage.worker(failures_max=1)
    job_id = await stage.submit("gated", "eve", gate=str(stage.gate()), fails=kind == "failing_late")
    await stage.becomes(job_id, "running")
    await stage.end_cycle("eve")
    if kind == "cancelled":
        await stage.client.cancel("eve", job_id, "changed my mind")
    else:
        stage.gate().touch()
    seen = await stage.becomes(job_id, ended[0])
    assert ended == (seen.state, seen.charged)
    await stage.until(
        lambda: stage.value("SELECT sum(available) FILTER (WHERE expires_at < fermata_now()) = 0 FROM lots"),
        "the old lot is written off",
    )
    assert afterwards == await stage.balance("eve")
