"""A kind that takes its time, beside those of tests/kinds.py: what a kill must be able to hit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tasks.kind import AudioInfo, Context, InputFile, InputLimits, Request, RunLimits, Usage
from tests import kinds

PRICES = """
[timed.output]
base = 10
"""


class TimedRequest(Request):
    milliseconds: int = Field(50, ge=0, le=10_000)
    outputs: int = Field(1, ge=1, le=4)


class Timed:
    """Makes its outputs one after the other, each in so many milliseconds."""

    name: ClassVar[str] = "timed"
    request_model: ClassVar[type[Request]] = TimedRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: TimedRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (kinds.ONE,) * request.outputs

    async def run(
        self, request: TimedRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        for number in range(request.outputs):
            await asyncio.sleep(request.milliseconds / 1000)
            context.progress((number + 1) / request.outputs, "playing")
            await context.finished(kinds.silence(context.workdir, f"take-{number + 1}"))


ALL = f"{kinds.ALL},{Timed.__module__}:{Timed.__name__}"
