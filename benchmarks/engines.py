"""A song of four minutes through each embedded engine: CPU seconds on one thread, and memory. Against fixed limits."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from benchmarks.report import Figure, at_most
from tasks.engines.child import close_children
from tasks.kind import AudioInfo, InputFile, Kind, Output, RunLimits
from tasks.registry import registry
from tasks.validation import parse

SECONDS = 240
#: CPU seconds a second of audio that were measured of each method, and the factor that the product may take of them.
MEASURED = {
    "song": 0.006,
    "song_draft": 0.006,
    "song_studio": 0.006,
    "voice": 0.19,
    "voice_studio": 0.35,
    "stems_vocals": 0.043,
    "stems_four": 0.104,
}
FACTOR = 1.3
#: Megabytes that a run may have resident at its peak.
MEMORY_MB = 1024


@dataclass
class _Job:
    """A worker's side of a run that nobody pays for."""

    workdir: Path
    job_id: UUID = field(default_factory=lambda: UUID(int=1))
    abandoned: bool = False
    engine_state: Mapping[str, Any] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)

    def progress(self, fraction: float, stage: str) -> None:
        """Nobody looks."""

    async def remember(self, state: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    async def finished(self, output: Output) -> None:
        self.outputs.append(output)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def completion_url(self) -> str | None:
        return None

    async def input_url(self, name: str) -> str | None:
        return None


def measured(rounds: int) -> list[Figure]:
    """The figures of each engine: medians of the rounds, each in a process of its own."""
    return asyncio.run(_measured(rounds))


async def _measured(rounds: int) -> list[Figure]:
    figures: list[Figure] = []
    kinds = registry()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        song = await _song(kinds["generation"], folder)
        stems: dict[str, Any] = {"stems": ["vocals"]}
        runs: dict[str, tuple[str, dict[str, Any], dict[str, InputFile]]] = {
            "song": ("generation", {"prompt": "warm piano", "seconds": SECONDS}, {}),
            "song_draft": ("generation", {"prompt": "warm piano", "seconds": SECONDS, "model": "draft"}, {}),
            "song_studio": ("generation", {"prompt": "warm piano", "seconds": SECONDS, "model": "studio"}, {}),
            "voice": ("vocal_conversion", {"semitones": 3}, {"voice": song}),
            "voice_studio": ("vocal_conversion", {"semitones": 3, "model": "studio"}, {"voice": song}),
            "stems_vocals": ("stem_split", stems, {"mix": song}),
            "stems_four": ("stem_split", {}, {"mix": song}),
        }
        for figure, (kind, params, inputs) in runs.items():
            found = [await _run(kinds[kind], params, inputs, folder) for _ in range(rounds)]
            figures += _figures(figure, median(cpu for cpu, _ in found), max(memory for _, memory in found))
    return figures


def _figures(name: str, cpu_seconds: float, memory_mb: float) -> list[Figure]:
    limit = MEASURED[name] * SECONDS * FACTOR
    return [
        at_most(f"engine_{name}_cpu", cpu_seconds, "CPU s", limit),
        at_most(f"engine_{name}_rss", memory_mb, "MB", MEMORY_MB),
    ]


async def _song(kind: Kind, folder: Path) -> InputFile:
    """Four minutes of music to work on."""
    (folder / "input").mkdir()
    job = _Job(folder / "input")
    await kind.run(parse(kind, {"prompt": "rock 120 bpm", "seconds": SECONDS}), {}, job, RunLimits())
    return InputFile(job.outputs[0].path, job.outputs[0].info)


async def _run(kind: Kind, params: dict[str, Any], inputs: dict[str, InputFile], folder: Path) -> tuple[float, float]:
    """CPU seconds of one run in a process that has its engine loaded, and megabytes at its peak."""
    await close_children()
    with tempfile.TemporaryDirectory(dir=folder) as first, tempfile.TemporaryDirectory(dir=folder) as second:
        warm = {**params, "seconds": 5} if "seconds" in params else params
        await kind.run(parse(kind, warm), {name: _piece(file) for name, file in inputs.items()}, _Job(Path(first)), _L)
        [child] = _children()
        before = _cpu_seconds(child)
        await kind.run(parse(kind, params), inputs, _Job(Path(second)), _L)
        return _cpu_seconds(child) - before, _peak_mb(child)


_L = RunLimits()


def _piece(file: InputFile) -> InputFile:
    """Its first seconds."""
    import soundfile

    path = file.path.with_name("piece.wav")
    sound, rate = soundfile.read(file.path, frames=5 * file.info.sample_rate, always_2d=True)
    soundfile.write(path, sound, rate)
    return InputFile(path, AudioInfo(len(sound), rate, sound.shape[1]))


def _children() -> list[int]:
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for one in lists for pid in one.read_text().split()]


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
