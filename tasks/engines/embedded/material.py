"""An engine's material: the sound of its inputs at the rate it works at, in blocks. Runs in a child only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from tasks.engines.reading import decoded_blocks
from tasks.engines.writing import Sound
from tasks.kind import InvalidInput

#: Source frames that are resampled at once: some seconds, so that a run's memory doesn't grow with its length.
STRETCH_FRAMES = 480_000


def sound_at(path: Path, rate: int, name: str) -> Iterator[Sound]:
    """An input's sound at another rate, in blocks: together exactly as long as the file, rounded down to a frame.

    `name` is the input's, for the `InvalidInput` if the file can't be decoded any more.
    """
    try:
        with soundfile.SoundFile(path) as file:
            yield from resampled(decoded_blocks(file), file.samplerate, rate)
    except soundfile.LibsndfileError:
        raise InvalidInput(f"inputs.{name}: can't be decoded") from None


def resampled(blocks: Iterator[Sound], source_rate: int, rate: int) -> Iterator[Sound]:
    """Blocks at one rate as blocks at another, without a seam and without holding the whole.

    Each stretch is filtered together with so much of its neighbours that its edges come out as its middle does.
    """
    if source_rate == rate:
        yield from blocks
        return
    from scipy.signal import resample_poly  # a second to import, and many files don't need it

    common = math.gcd(source_rate, rate)
    up, down = rate // common, source_rate // common
    convert = partial(resample_poly, up=up, down=down, axis=0)
    reach = down * math.ceil((10 * max(up, down) / up + 1) / down)  # its filter has 20 x max(up, down) taps
    stretch = down * math.ceil(max(STRETCH_FRAMES, reach) / down)
    held, answered = np.zeros((0, 0), np.float32), 0  # of the frames held, so many are there for their neighbours
    for block in blocks:
        held = np.concatenate([held, block]) if held.size else block
        while len(held) >= answered + stretch + reach:
            piece = convert(held[: answered + stretch + reach])
            yield _cut(piece, answered * up // down, stretch * up // down)
            held, answered = held[answered + stretch - reach :], reach
    if len(held) > answered:
        yield _cut(convert(held), answered * up // down, (len(held) - answered) * up // down)


def _cut(piece: Sound, start: int, length: int) -> Sound:
    return np.asarray(piece[start : start + length], np.float32)
