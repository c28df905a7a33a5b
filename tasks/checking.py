"""What stands between an engine and the worker: outputs are counted, measured and let through, or not.

No engine can hand over more than was quoted, under another name, or what its kind's gates don't let pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from tasks.engines.contract import Commission
from tasks.gates import Gates, problem_with
from tasks.kind import Context, EngineFailure, Output, QualityGate, Usage


@dataclass(slots=True)
class Checked:
    """The worker's context as an engine sees it."""

    context: Context
    commission: Commission
    gates: Gates
    may_be_shorter: bool
    _came: list[str] = field(default_factory=list)
    _fraction: float = 0.0

    @property
    def job_id(self) -> UUID:
        return self.context.job_id

    @property
    def workdir(self) -> Path:
        return self.context.workdir

    @property
    def abandoned(self) -> bool:
        return self.context.abandoned

    @property
    def engine_state(self) -> Mapping[str, Any]:
        return self.context.engine_state

    def progress(self, fraction: float, stage: str) -> None:
        """Never back: what an attempt has come to is not taken away again."""
        self._fraction = max(self._fraction, fraction)
        self.context.progress(self._fraction, stage)

    async def remember(self, state: Mapping[str, Any]) -> None:
        await self.context.remember(state)

    async def pause(self, seconds: float) -> None:
        await self.context.pause(seconds)

    def completion_url(self) -> str | None:
        return self.context.completion_url()

    async def input_url(self, name: str) -> str | None:
        return await self.context.input_url(name)

    async def finished(self, output: Output) -> None:
        """Let an output through. Raises `QualityGate` for one that may not be sold."""
        if not output.billable:
            await self.context.finished(output)
            return
        expected = self.commission.names[len(self._came) :]
        if not expected or output.name != expected[0]:
            raise EngineFailure(f"the engine made {output.name} where {expected[0] if expected else 'nothing'} was due")
        asked = self.commission.asked[len(self._came)]
        least_seconds = None if self.may_be_shorter else asked.seconds_out
        if (problem := problem_with(output, least_seconds, self.gates)) is not None:
            raise QualityGate(problem, output.told)
        await self.context.finished(replace(output, usage=_at_most(output.usage, asked)))
        self._came.append(output.name)

    def check_all_came(self) -> None:
        """Raises `QualityGate` if the engine ended in peace without all its outputs."""
        came, asked = len(self._came), len(self.commission.names)
        if came < asked:
            raise QualityGate(
                f"{came} of the {asked} outputs that were asked came",
                {"outputs_asked": str(asked), "outputs_came": str(came)},
            )


def _at_most(usage: Usage, asked: Usage) -> Usage:
    """Rounding must not take an output over its quote."""
    return Usage(min(usage.seconds_in, asked.seconds_in), min(usage.seconds_out, asked.seconds_out))
