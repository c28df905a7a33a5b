"""Which audio we take and make, and what a file really holds: decoded to its end in a limited child process."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tasks.engines.child import Restraints, run_in_child
from tasks.formats import MEDIA_TYPES
from tasks.kind import AudioInfo, EngineCrashed, InvalidInput, OutOfMemory, Output, RefusedRequest, RunLimits

#: What runs in the child.
EXAMINE = "tasks.engines.reading:examine"
#: Address space of a probing child; Python, numpy and libsndfile take 200 MiB of it.
PROBE_MEMORY_BYTES = 512 * 1024**2
#: Tries of one file: a child may have been killed by somebody else, but a file that kills two is refused.
PROBE_TRIES = 2


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What a file may hold, and what decoding it may take."""

    bytes_max: int = 200 * 1024**2
    seconds_max: int = 600
    channels_max: int = 2
    sample_rate_min: int = 8_000
    sample_rate_max: int = 192_000
    #: Seconds on the clock, and of one processor. Ten minutes of MP3 take 3.
    probe_seconds: float = 60.0
    processor_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Probed:
    """What a file held when it was decoded from its first to its last frame."""

    info: AudioInfo
    format: str  # a key of MEDIA_TYPES
    bytes: int
    sha256: str  # hex, of the very bytes that were decoded

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.format]


async def probe(path: Path, *, field: str = "file", limits: ProbeLimits = ProbeLimits()) -> Probed:
    """Decode a whole file once and say what it holds. Nothing its header claims is believed.

    Raises `RefusedRequest` (with `field`) for what is missing, empty, no regular file, no audio of a format we
    take, truncated, longer or larger than the limits, damaged, or not what its header says; for samples that are no
    numbers; and for files that crash, hang or bloat their decoder. Any other `EngineError` is our own failure.
    """
    if "\0" in str(path):
        raise RefusedRequest(field, "is not a path")
    for attempt in range(PROBE_TRIES):
        try:
            return await _probed(path, limits)
        except InvalidInput as refused:
            raise RefusedRequest(field, refused.message) from None
        except TimeoutError:
            raise RefusedRequest(field, f"can't be decoded within {limits.probe_seconds:g} seconds") from None
        except OutOfMemory:
            raise RefusedRequest(field, "takes too much memory to decode") from None
        except EngineCrashed:
            if attempt == PROBE_TRIES - 1:
                raise RefusedRequest(field, "can't be decoded: it crashes its decoder") from None
    raise AssertionError("every try returns or raises")


async def _probed(path: Path, limits: ProbeLimits) -> Probed:
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        restraints = Restraints(limits.processor_seconds, file_bytes=1024**2)
        started = monotonic()
        async with asyncio.timeout(limits.probe_seconds):
            found = await run_in_child(
                EXAMINE,
                _arguments(path, limits),
                Silent(Path(folder)),
                RunLimits(memory_bytes=PROBE_MEMORY_BYTES),
                restraints,
            )
        if monotonic() - started > limits.probe_seconds:
            raise TimeoutError  # the answer was there before we came to look at the clock
    info = AudioInfo(int(found["frames"]), int(found["sample_rate"]), int(found["channels"]))
    return Probed(info, str(found["format"]), int(found["bytes"]), str(found["sha256"]))


def _arguments(path: Path, limits: ProbeLimits) -> dict[str, Any]:
    """The child works in another folder, so the path must not be relative."""
    return {"path": path.absolute(), "limits": asdict(limits)}


@dataclass(frozen=True, slots=True)
class Silent:
    """For a run that has nothing to tell but its answer."""

    workdir: Path

    def progress(self, fraction: float, stage: str) -> None:
        return None

    async def finished(self, output: Output) -> None:
        raise AssertionError("a probe makes no outputs")
