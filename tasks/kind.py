"""The contract between a kind of job and the worker that runs it.

A kind says what may be asked (`request_model`, `inputs`), the most a request can use (`usage`), and how the
sound is made (`run`). It never hears of credits, queues or databases. Embedded engines, HTTP services and GPU
models all fit behind `run`: it is plain async, and whatever burns CPU goes through `tasks.engines.child`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import UUID

# What may be asked stands with those who ask; here it is part of the contract.
from fermata_client.requests import Request as Request


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What was found when a file was decoded to its end. Headers are never believed."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> Decimal:
        """The length in seconds, exact to the microsecond."""
        return (Decimal(self.frames) / Decimal(self.sample_rate)).quantize(Decimal("0.000001"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one output uses: seconds of audio read for it, and seconds of audio written."""

    seconds_in: Decimal = Decimal(0)
    seconds_out: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class InputLimits:
    """What a kind takes under one input name."""

    required: bool = True
    seconds_min: Decimal = Decimal("0.1")
    seconds_max: Decimal = Decimal(600)
    channels_max: int = 2
    sample_rate_min: int = 8_000
    sample_rate_max: int = 192_000


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input as the engine gets it: a private copy in the work folder, its hash already checked."""

    path: Path
    info: AudioInfo


@dataclass(frozen=True, slots=True)
class Output:
    """One finished artifact: complete on disk, fsynced, measured. It is billable even if a later one fails."""

    name: str  # unique within the job: "song", "song-2", "vocals"
    path: Path
    media_type: str  # "audio/wav", "audio/flac", "audio/mpeg", "audio/ogg"
    info: AudioInfo
    bytes: int
    sha256: str  # hex
    usage: Usage
    #: What else was measured, for the receipt: a name and a number with its unit in the name.
    measures: Mapping[str, str] = field(default_factory=dict)
    #: False for what only goes along with another output (its waveform): it is no usage and costs nothing.
    billable: bool = True

    @property
    def told(self) -> Mapping[str, str]:
        """All that was measured of it, for the receipt."""
        used = self.usage
        seconds = {"seconds_in": str(used.seconds_in), "seconds_out": str(used.seconds_out)}
        return {**self.measures, "output": self.name, **seconds}


class Listener(Protocol):
    """Who hears how a run goes."""

    @property
    def workdir(self) -> Path:
        """A private folder for this attempt; swept afterwards."""
        ...

    def progress(self, fraction: float, stage: str) -> None:
        """Say how far it is: 0 to 1. Cheap; the worker writes it at a bounded rate."""
        ...

    async def finished(self, output: Output) -> None:
        """Hand over one finished artifact. Once this returns it is durable and counts as used."""
        ...


class Context(Listener, Protocol):
    """What the worker gives a run."""

    @property
    def job_id(self) -> UUID:
        """The job, the same in each attempt: what a provider is asked by, so that it makes nothing twice."""
        ...

    @property
    def abandoned(self) -> bool:
        """Once a run is stopped: whether nobody wants the job any more. Else another attempt will go on with it."""
        ...

    @property
    def engine_state(self) -> Mapping[str, Any]:
        """What an earlier attempt of this job remembered (a provider's task id); empty at first."""
        ...

    async def remember(self, state: Mapping[str, Any]) -> None:
        """Make `engine_state` durable for the next attempt. Raises if this attempt lost its lease."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait for work elsewhere: so long, or less once its provider said by `completion_url` that it is done."""
        ...

    def completion_url(self) -> str | None:
        """Where a provider may POST that the job's work is done. Only a hint to look. None: it can't reach us."""
        ...

    async def input_url(self, name: str) -> str | None:
        """Where a provider can fetch this input, and nothing else, while the attempt lasts. None: it can't reach it."""
        ...


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What one attempt may take. The worker enforces `seconds`; the child, or who started it, `memory_bytes`."""

    seconds: float = 900.0
    memory_bytes: int = 3 * 1024**3


class Kind(Protocol):
    """A sort of job. Registered in `tasks.registry`; priced by the table of its name in prices.toml.

    One that can tell more of a request than its model does has a `check(request)` too, which raises `RefusedRequest`
    for what can't be done here. No I/O.
    """

    name: ClassVar[str]
    request_model: ClassVar[type[Request]]
    inputs: ClassVar[Mapping[str, InputLimits]]

    def usage(self, request: Any, inputs: Mapping[str, AudioInfo]) -> tuple[Usage, ...]:
        """The most the request can use, one entry an output, in the order the outputs are made.

        Guarantee: no finished output ever uses more than its entry here; the quote and the hold rest on it.
        """
        ...

    async def run(self, request: Any, inputs: Mapping[str, InputFile], context: Context, limits: RunLimits) -> None:
        """Make the sound, handing each finished output to `context.finished`.

        Cancelling the task stops the work at once and kills its child process. Errors: `EngineError`s below.
        """
        ...


def field_of(request: Request, name: str) -> Any:
    """What a request says in the field or property `name`; None where its kind has no such thing."""
    # Asked of the request itself, a missing field costs an exception and its message, at each submit.
    said = vars(request)
    if name in said:
        return said[name]
    return getattr(request, name) if hasattr(type(request), name) else None


class EngineError(Exception):
    """A run that went wrong. Nobody is charged for it; `retryable` says whether another attempt may help.

    EngineError
    ├── InvalidInput        the customer's material or request can't be used: ends the job, no retry
    └── EngineFailure       our side or the provider's
        ├── EngineCrashed   the child process died (segfault, killed): retryable
        ├── OutOfMemory     over its memory limit: retryable once elsewhere
        ├── QualityGate     the result is not good enough to be sold: retryable once
        └── EngineUnavailable  a provider is away or busy: retryable
    """

    code: ClassVar[str] = "engine_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(EngineError):
    code = "invalid_input"


class EngineFailure(EngineError):
    code = "engine_failure"
    retryable = True


class EngineCrashed(EngineFailure):
    code = "engine_crashed"


class OutOfMemory(EngineFailure):
    code = "out_of_memory"


class QualityGate(EngineFailure):
    """`measures`: what the gate has judged by, for the receipt; named as those of an output."""

    code = "quality_gate"

    def __init__(self, message: str, measures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.measures: Mapping[str, str] = measures or {}


class EngineUnavailable(EngineFailure):
    code = "engine_unavailable"


class RefusedRequest(Exception):
    """A request or a file that is turned down: names the field, what is wrong with it, and the limit."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
