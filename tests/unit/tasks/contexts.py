"""A worker's side of a run, as far as an engine can tell: it writes down all that it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from tasks.kind import Output

#: The one job that is run.
JOB = UUID("01890000-0000-7000-8000-000000000007")


@dataclass
class Recorder:
    """A `Context` (for kinds) and a `Report` (for engines called in this process, see `Told`)."""

    workdir: Path
    engine_state: Mapping[str, Any] = field(default_factory=dict)
    told: list[tuple[float, str]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    first_told: asyncio.Event = field(default_factory=asyncio.Event)
    job_id: UUID = JOB
    abandoned: bool = False

    def progress(self, fraction: float, stage: str) -> None:
        self.told.append((fraction, stage))
        self.first_told.set()

    async def remember(self, state: Mapping[str, Any]) -> None:
        self.engine_state = state

    async def finished(self, output: Output) -> None:
        self.outputs.append(output)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def completion_url(self) -> str | None:
        return None

    async def input_url(self, name: str) -> str | None:
        return None


@dataclass
class Told:
    """A `Report` for an engine that is called without a child process."""

    workdir: Path
    stop_asked: bool = False
    fractions: list[float] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)

    def progress(self, fraction: float, stage: str) -> None:
        self.fractions.append(fraction)

    def finished(self, output: Output) -> None:
        self.outputs.append(output)
