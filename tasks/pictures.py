"""Pictures of sound, for people who look before they listen."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from pathlib import Path

from tasks.audio import PROBE_MEMORY_BYTES, Silent
from tasks.engines.child import Restraints, run_in_child
from tasks.kind import RunLimits

#: What runs in the child.
DRAW = "tasks.engines.picturing:draw"
#: Seconds on the clock, and of one processor. Ten minutes of stereo take 2.
_SECONDS, _PROCESSOR_SECONDS = 30.0, 20.0


async def picture(path: Path, frames: int) -> bytes:
    """A PNG of a sound file of `frames` frames: waveform above spectrogram, the same time from left to right.
    `path` must be absolute: the child works in another folder.

    Raises `EngineError` where the file can't be decoded, `TimeoutError` where that takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="picture-") as folder:
        async with asyncio.timeout(_SECONDS):
            drawn = await run_in_child(
                DRAW,
                {"path": path, "frames": frames},
                Silent(Path(folder)),
                RunLimits(memory_bytes=PROBE_MEMORY_BYTES),
                Restraints(_PROCESSOR_SECONDS, file_bytes=1024**2),
            )
    return base64.b64decode(str(drawn))
