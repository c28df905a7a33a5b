"""An engine of one's own, as small as one can be: a document names it as `tests.unit.tasks.whistle:Whistle`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tasks.engines.child import run_in_child
from tasks.engines.contract import Commission, EngineNotReady
from tasks.engines.offer import Options, PathOption
from tasks.engines.report import Report
from tasks.engines.writing import OutputFile
from tasks.finish import Finish
from tasks.kind import Context, RefusedRequest, RunLimits

RATE = 8_000


class WhistleOptions(Options):
    """What the document may say of it."""

    hertz: int = Field(440, ge=100, le=2000)
    #: Where its breath is kept. Without it, it can't start.
    breath: PathOption | None = None


class Whistle:
    """Whistles one tone for as long as was asked."""

    Options: ClassVar[type[Options]] = WhistleOptions
    kinds: ClassVar[frozenset[str]] = frozenset({"generation"})
    deterministic: ClassVar[bool] = True

    def __init__(self, name: str, options: WhistleOptions) -> None:
        self.name = name
        self.options = options
        self.closed = False

    def check(self, kind: str, request: Any) -> None:
        if request.lyrics is not None:
            raise RefusedRequest("lyrics", "can't be whistled")

    def prepare(self) -> None:
        if self.options.breath is not None and not self.options.breath.exists():
            raise EngineNotReady(f"{self.name} has no breath: {self.options.breath.name} is missing")

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        arguments = {
            "names": commission.names,
            "seconds": [float(usage.seconds_out) for usage in commission.asked],
            "hertz": self.options.hertz,
            "finish": commission.finish,
        }
        await run_in_child(whistle, arguments, context, limits)

    async def close(self) -> None:
        self.closed = True


def whistle(report: Report, names: list[str], seconds: list[float], hertz: int, finish: Finish) -> None:
    """Runs in the child."""
    report.progress(0.0, "breathing in")
    for number, (name, length) in enumerate(zip(names, seconds, strict=True)):
        tone = np.sin(np.arange(round(length * RATE)) * (2 * np.pi * hertz / RATE))
        with OutputFile(report, name, finish, RATE, 1) as file:
            file.write(np.asarray(0.5 * tone[:, None], np.float32))
            file.hand_over()
        report.progress((number + 1) / len(names), name)
