"""Kinds of job for tests of the path: each does one thing that an engine may do, and nothing musical.

`FERMATA_EXTRA_KINDS=tests.kinds:Null,tests.kinds:Gated,…` registers them; `ALL` names every one. Their prices are in
tests/acceptance/prices.toml. A *gate* is a file: the run waits until a test has made it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
import wave
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tasks.kind import (
    AudioInfo,
    Context,
    EngineCrashed,
    EngineError,
    EngineUnavailable,
    InputFile,
    InputLimits,
    InvalidInput,
    OutOfMemory,
    Output,
    Request,
    RunLimits,
    Usage,
)

#: What every output holds: a tenth of a second of silence.
INFO = AudioInfo(frames=800, sample_rate=8_000, channels=1)
ONE = Usage(seconds_out=INFO.seconds)


class NullRequest(Request):
    outputs: int = Field(1, ge=1, le=8)


class Null:
    """Makes its outputs at once."""

    name: ClassVar[str] = "null"
    request_model: ClassVar[type[Request]] = NullRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: NullRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,) * request.outputs

    async def run(
        self, request: NullRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        for number in range(request.outputs):
            await context.finished(silence(context.workdir, f"take-{number + 1}"))


class GatedRequest(Request):
    gate: str = Field(max_length=400)
    #: Outputs that are finished before the gate. One more comes after it.
    before: int = Field(0, ge=0, le=4)
    #: Swallows cancellation, as a bad engine may: only the gate ends it.
    stubborn: bool = False
    #: What it has the books remember once it is through the gate; with None it asks nothing of them.
    remembers: str | None = None
    #: Fails for good once it is through the gate.
    fails: bool = False


class Gated:
    """Runs until its gate is there."""

    name: ClassVar[str] = "gated"
    request_model: ClassVar[type[Request]] = GatedRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: GatedRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,) * (request.before + 1)

    async def run(
        self, request: GatedRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        for number in range(request.before):
            await context.finished(silence(context.workdir, f"early-{number + 1}"))
        context.progress(0.5, "waiting")
        while not Path(request.gate).exists():  # noqa: ASYNC240  a look at a local folder
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                if not request.stubborn:
                    raise
        if request.remembers is not None:
            await context.remember({"said": request.remembers})
        if request.fails:
            raise EngineError("no such voice")
        await context.finished(silence(context.workdir, "take"))


class FailingRequest(Request):
    error: Literal["invalid", "crashed", "unavailable", "memory", "final", "unheard_of", "bug", "exit"]
    #: The first so many attempts fail, the next one succeeds.
    times: int = Field(99, ge=1)
    #: Outputs that are finished before it fails; a success makes one more.
    finished: int = Field(0, ge=0, le=4)


class UnheardOf(EngineError):
    """An error of an engine that the worker was not told of."""

    code = "quota_exceeded"
    retryable = True


class Failing:
    """Fails, as often as asked. Counts its tries in what it remembers."""

    name: ClassVar[str] = "failing"
    request_model: ClassVar[type[Request]] = FailingRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: FailingRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,) * (request.finished + 1)

    async def run(
        self, request: FailingRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        tries = context.engine_state.get("tries", 0) + 1
        await context.remember({"tries": tries})
        for number in range(request.finished):
            await context.finished(silence(context.workdir, f"early-{number + 1}"))
        if tries <= request.times:
            raise _error(request.error)
        await context.finished(silence(context.workdir, "take"))


def _error(name: str) -> BaseException:
    match name:
        case "invalid":
            return InvalidInput("the recording is silent")
        case "crashed":
            return EngineCrashed("the engine's process died (SIGSEGV)")
        case "unavailable":
            return EngineUnavailable("the provider is busy")
        case "memory":
            return OutOfMemory("over its limit")
        case "final":
            return EngineError("no such voice")
        case "unheard_of":
            return UnheardOf("the quota of this month is used up")
        case "exit":
            return SystemExit(1)
    return ZeroDivisionError("a bug")


class PoisonRequest(Request):
    pass


class Poison:
    """Kills the very process that runs it, every time."""

    name: ClassVar[str] = "poison"
    request_model: ClassVar[type[Request]] = PoisonRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: PoisonRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,)

    async def run(
        self, request: PoisonRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class BlockingRequest(Request):
    pass


class Blocking:
    """Never gives the event loop back: nothing of its process moves any more."""

    name: ClassVar[str] = "blocking"
    request_model: ClassVar[type[Request]] = BlockingRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: BlockingRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,)

    async def run(
        self, request: BlockingRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        time.sleep(3600)  # noqa: ASYNC251  that is the point


class ReadingRequest(Request):
    pass


class Reading:
    """Reads a recording."""

    name: ClassVar[str] = "reading"
    request_model: ClassVar[type[Request]] = ReadingRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {"recording": InputLimits()}

    def usage(self, request: ReadingRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (Usage(seconds_in=inputs["recording"].seconds, seconds_out=INFO.seconds),)

    async def run(
        self, request: ReadingRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        recording = inputs["recording"]
        recording.path.read_bytes()
        await context.finished(silence(context.workdir, "take", recording.info.seconds))


class RememberingRequest(Request):
    gate: str = Field(max_length=400)


class Remembering:
    """Orders its work at a provider once: whoever comes after finds the order in what was remembered."""

    name: ClassVar[str] = "remembering"
    request_model: ClassVar[type[Request]] = RememberingRequest
    inputs: ClassVar[Mapping[str, InputLimits]] = {}

    def usage(self, request: RememberingRequest, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        return (ONE,)

    async def run(
        self, request: RememberingRequest, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits
    ) -> None:
        order = context.engine_state.get("order")
        if order is None:
            await context.remember({"order": "order-1"})
            await Gated().run(GatedRequest(gate=request.gate), inputs, context, limits)
        else:
            await context.finished(silence(context.workdir, order))


ALL = ",".join(
    f"{kind.__module__}:{kind.__name__}" for kind in (Null, Gated, Failing, Poison, Blocking, Reading, Remembering)
)


def silence(folder: Path, name: str, seconds_in: Decimal = Decimal(0)) -> Output:
    """A finished output: a real, if quiet, file."""
    path = folder / f"{name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(INFO.channels)
        file.setsampwidth(2)
        file.setframerate(INFO.sample_rate)
        file.writeframes(bytes(2 * INFO.frames))
    content = path.read_bytes()
    return Output(
        name=name,
        path=path,
        media_type="audio/wav",
        info=INFO,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        usage=Usage(seconds_in=seconds_in, seconds_out=INFO.seconds),
    )
