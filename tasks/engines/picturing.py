"""Sound as a picture: its waveform above its spectrogram, as a PNG. Runs in a child, as it reads strangers' files."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.engines.reading import decoded_blocks, opened_sound
from tasks.engines.report import Report

#: Pixels. One column is one moment of both pictures.
WIDTH, WAVE_HEIGHT, SPECTRUM_HEIGHT = 720, 72, 96
_WINDOW = 2048
#: What the spectrogram shows, from black to its brightest colour, in decibels below full scale.
_DECIBELS = 84.0
#: Lowest frequency shown, in Hz. Rows are spaced by octaves, as ears hear.
_LOWEST = 40.0
_WAVE, _BACK = 254, 255

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]


def draw(report: Report, path: Path, frames: int) -> str:
    """The picture of a file of `frames` frames, base64. Reads block by block: memory does not grow with its length."""
    peaks = np.zeros((2, WIDTH), np.float32)
    windows = np.zeros((WIDTH, _WINDOW), np.float32)
    sample_rate = 0
    with opened_sound(path) as sound:
        sample_rate, at = sound.samplerate, 0
        for block in decoded_blocks(sound):
            _add(block.mean(axis=1), at, max(frames, 1), peaks, windows)
            at += len(block)
    pixels = np.vstack([_waveform(peaks), _spectrogram(windows, sample_rate)])
    return base64.b64encode(png(pixels)).decode()


def _add(mono: Samples, at: int, frames: int, peaks: Samples, windows: Samples) -> None:
    """Count a block of the sound, which begins at frame `at`, into the columns that it touches."""
    columns = np.minimum((np.arange(at, at + len(mono), dtype=np.int64) * WIDTH) // frames, WIDTH - 1)
    firsts = np.flatnonzero(np.diff(columns, prepend=-1))
    touched = columns[firsts]
    peaks[0, touched] = np.maximum(peaks[0, touched], np.maximum.reduceat(mono, firsts))
    peaks[1, touched] = np.minimum(peaks[1, touched], np.minimum.reduceat(mono, firsts))
    for first, column in zip(firsts, touched, strict=True):
        piece = mono[first : first + _WINDOW]
        if not windows[column].any():  # a column that a block before has begun keeps its window
            windows[column, : len(piece)] = piece


def _waveform(peaks: Samples) -> Pixels:
    """A column is as high as the loudest that it holds, at full scale from edge to edge."""
    middle = (WAVE_HEIGHT - 1) / 2
    rows = np.arange(WAVE_HEIGHT, dtype=np.float32)[:, None]
    top, bottom = middle - np.clip(peaks[0], 0, 1) * middle, middle - np.clip(peaks[1], -1, 0) * middle
    inside = (rows >= np.floor(top)) & (rows <= np.ceil(bottom))
    return np.where(inside, _WAVE, _BACK).astype(np.uint8)


def _spectrogram(windows: Samples, sample_rate: int) -> Pixels:
    """A column is the spectrum where it begins, low notes at the foot."""
    spectrum = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW).astype(np.float32), axis=1)) / (_WINDOW / 4)
    decibels = 20 * np.log10(np.maximum(spectrum, 1e-9))
    highest = sample_rate / 2
    frequencies = np.geomspace(highest, min(_LOWEST, highest / 2), SPECTRUM_HEIGHT)
    bins = np.clip(np.rint(frequencies * _WINDOW / max(sample_rate, 1)).astype(int), 1, _WINDOW // 2)
    shades = np.clip(1 + decibels[:, bins].T / _DECIBELS, 0, 1)
    return (shades * 250).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    """A picture of palette colours as a PNG (RFC 2083): header, palette, transparency, rows."""
    height, width = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels]).tobytes()
    opaque = bytes([255] * 254 + [255, 0])  # the last colour is no colour: the page shows through
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", _palette()),
            _chunk(b"tRNS", opaque),
            _chunk(b"IDAT", zlib.compress(rows, 6)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _palette() -> bytes:
    """From night blue over teal to warm yellow; then the waveform's own colour, and the page's."""
    stops = np.array([[13, 17, 34], [28, 52, 98], [20, 120, 136], [92, 184, 132], [250, 214, 104]], np.float32)
    places = np.linspace(0, len(stops) - 1, 254)
    ramp = np.stack([np.interp(places, np.arange(len(stops)), stops[:, part]) for part in range(3)], axis=1)
    return ramp.astype(np.uint8).tobytes() + bytes([47, 129, 166, 255, 255, 255])
