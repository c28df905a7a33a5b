"""What an output sounds like, in numbers: peak, loudness, clipping, and its waveform. Runs in a child only."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

#: As `tasks.engines.writing.Sound`, which imports us.
_Sound = NDArray[np.float32]

#: From here on a sample is at full scale: the last step but one of 16 bits.
FULL_SCALE = 1 - 2**-15
#: Quieter than any sample that is not zero.
SILENCE_DB = -200.0
#: Samples that one pixel of a waveform stands for.
SAMPLES_PER_PIXEL = 1024


class Meter:
    """Listens to an output while it is written."""

    def __init__(self, sample_rate: int, *, peaks: bool) -> None:
        self._sample_rate = sample_rate
        self._wants_peaks = peaks
        self._peak = self._power = 0.0
        self._samples = self._clipped = 0
        self._pixels: list[tuple[int, int]] = []
        self._rest = np.zeros((0, 1), np.float32)

    def hear(self, sound: _Sound) -> None:
        """Take in frames, as they come."""
        if not len(sound):
            return
        size = np.abs(sound)
        self._peak = max(self._peak, float(size.max()))
        self._power += float(np.square(sound, dtype=np.float64).sum())
        self._clipped += int(np.count_nonzero(size >= FULL_SCALE))
        self._samples += sound.size
        if self._wants_peaks:
            self._draw(sound)

    @property
    def measures(self) -> dict[str, str]:
        """Peak and mean level in dB of full scale, and the samples at full scale in a million."""
        samples = max(1, self._samples)
        return {
            "peak_db": f"{_db(self._peak):.1f}",
            "mean_db": f"{_db(math.sqrt(self._power / samples)):.1f}",
            "clipped_ppm": f"{self._clipped * 1_000_000 / samples:.0f}",
        }

    def waveform(self) -> str:
        """The lowest and highest sample of each pixel, all channels together: audiowaveform's JSON, version 2."""
        if len(self._rest):
            self._pixels.append(_extremes(self._rest))
            self._rest = self._rest[:0]
        document = {
            "version": 2,
            "channels": 1,
            "sample_rate": self._sample_rate,
            "samples_per_pixel": SAMPLES_PER_PIXEL,
            "bits": 8,
            "length": len(self._pixels),
            "data": [value for pixel in self._pixels for value in pixel],
        }
        return json.dumps(document, separators=(",", ":"))

    def _draw(self, sound: _Sound) -> None:
        held = np.concatenate([self._rest, sound]) if len(self._rest) else sound
        whole = len(held) // SAMPLES_PER_PIXEL * SAMPLES_PER_PIXEL
        for start in range(0, whole, SAMPLES_PER_PIXEL):
            self._pixels.append(_extremes(held[start : start + SAMPLES_PER_PIXEL]))
        self._rest = held[whole:].copy()


def loudness_of(path: Path) -> tuple[float | None, float]:
    """Integrated loudness of a file in LUFS (ITU-R BS.1770-4), and its loudest sample.

    None for what is silent, or too short to be measured: less than 0.4 seconds.
    """
    import pyloudnorm

    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    peak = float(np.abs(sound).max(initial=0.0))
    meter = pyloudnorm.Meter(rate)
    if len(sound) < meter.block_size * rate:
        return None, peak
    loudness = float(meter.integrated_loudness(sound))
    return (loudness if math.isfinite(loudness) else None), peak


def _extremes(sound: _Sound) -> tuple[int, int]:
    low, high = float(sound.min()), float(sound.max())
    return max(-128, round(low * 127)), min(127, round(high * 127))


def _db(value: float) -> float:
    return max(SILENCE_DB, 20 * math.log10(value)) if value > 0 else SILENCE_DB
