"""Embedded engines in a whole deployment: a cancel and a deadline reach the process that makes the sound."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import soundfile

from tests.acceptance.stage import ACTOR, Stage
from tests.unit.tasks.processes import running


def engine_processes(worker: int) -> list[int]:
    """The children of a worker that make sound."""
    lists = Path(f"/proc/{worker}/task").glob("*/children")
    return [int(pid) for one in lists for pid in one.read_text().split()]


async def a_long_conversion(stage: Stage, folder: Path, **more: Any) -> UUID:
    """Ten minutes of a voice: minutes of work."""
    path = folder / "voice.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(590 * 16_000) / 12), 16_000)
    voice = await stage.client.put("ada", path, ACTOR)
    return await stage.submit("vocal_conversion", inputs={"voice": str(voice.artifact_id)}, semitones=2, **more)


async def test_a_cancel_ends_the_sound_within_two_seconds(stage: Stage, tmp_path: Path) -> None:
    """Given an engine at work, when its job is cancelled, then job and process have ended, and nothing is charged."""
    stage.scheduler()
    worker = stage.worker("vocal_conversion")
    job_id = await a_long_conversion(stage, tmp_path)
    await stage.until(lambda: stage.value("SELECT progress > 0 FROM live WHERE job_id = $1", job_id), "at work")
    [process] = engine_processes(worker.pid)
    await stage.client.cancel("ada", job_id, "enough")
    seen = await stage.becomes(job_id, "cancelled", seconds=2)
    assert (0, None, False) == (seen.charged, seen.outputs, running(process))


async def test_a_deadline_ends_the_sound(stage: Stage, tmp_path: Path) -> None:
    """Given an engine that needs longer than its job has, then the job ends at its time and its process with it."""
    stage.scheduler()
    worker = stage.worker("vocal_conversion")
    job_id = await a_long_conversion(stage, tmp_path, ends_by=datetime.now(UTC) + timedelta(seconds=8))
    await stage.until(lambda: engine_processes(worker.pid), "at work")
    [process] = engine_processes(worker.pid)
    seen = await stage.becomes(job_id, "failed", seconds=12)
    assert ("past_ends_by_started", 0, False) == (seen.reason, seen.charged, running(process))
