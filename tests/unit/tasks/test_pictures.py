"""Pictures of sound: a waveform above a spectrogram, the same time from left to right, whatever the file's length."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tasks.engines.picturing import SPECTRUM_HEIGHT, WAVE_HEIGHT, WIDTH
from tasks.kind import EngineError
from tasks.pictures import picture

RATE = 44_100


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    """The palette numbers of a picture of ours."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert (WIDTH, WAVE_HEIGHT + SPECTRUM_HEIGHT) == (width, height)
    start = png.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", png[start - 8 : start - 4])
    rows = np.frombuffer(zlib.decompress(png[start : start + length]), np.uint8).reshape(height, width + 1)
    return rows[:, 1:]


def written(folder: Path, samples: npt.NDArray[np.float64]) -> Path:
    path = folder / "sound.wav"
    soundfile.write(path, samples, RATE)
    return path


async def test_the_left_half_is_silent_and_the_right_half_a_tone(tmp_path: Path) -> None:
    """The waveform is a line where nothing sounds; the spectrogram is bright in one row where a tone does."""
    seconds = np.arange(4 * RATE) / RATE
    tone = np.where(seconds < 2, 0, 0.8 * np.sin(2 * np.pi * 440 * seconds))
    drawn = pixels_of(await picture(written(tmp_path, tone), 4 * RATE))
    wave, spectrum = drawn[:WAVE_HEIGHT], drawn[WAVE_HEIGHT:]
    heights = (wave != 255).sum(axis=0)
    assert heights[: WIDTH // 2 - 2].max() <= 2
    assert heights[WIDTH // 2 + 2 :].min() > WAVE_HEIGHT * 0.7
    assert 0 == spectrum[:, : WIDTH // 2 - 40].max()
    loudest = spectrum[:, WIDTH // 2 + 10 : -10].argmax(axis=0)
    frequencies = np.geomspace(RATE / 2, 40, SPECTRUM_HEIGHT)
    assert np.all(np.abs(np.log2(frequencies[loudest] / 440)) < 0.25)


async def test_a_sound_shorter_than_the_picture_is_wide_is_drawn_too(tmp_path: Path) -> None:
    """Ten samples and ten minutes have pictures of one size."""
    assert pixels_of(await picture(written(tmp_path, np.full(10, 0.5)), 10)).any()


async def test_what_is_no_sound_has_no_picture(tmp_path: Path) -> None:
    """Damaged files are an error of the file's, told in words."""
    path = tmp_path / "sound.wav"
    path.write_bytes(b"RIFF" + bytes(500))
    with pytest.raises(EngineError):
        await picture(path, 1000)
