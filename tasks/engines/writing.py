"""Sound written so that it is durable: in blocks, to a `.part`, synced, renamed, measured. Runs in a child only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from tasks.engines.ogg import settle_serial
from tasks.engines.report import Report
from tasks.formats import MEDIA_TYPES
from tasks.kind import AudioInfo, Output, Usage

#: Sound as engines hold it: float32, one row a frame, one column a channel.
Sound = NDArray[np.float32]

#: Frames of one write. A minute of Vorbis in one call segfaults libsndfile 1.2; blocks of this size never did.
BLOCK_FRAMES = 65_536
#: Sample rates that every format we write can hold; MP3 knows no others.
SAMPLE_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)

_ENCODINGS: Mapping[str, tuple[str, str]] = {
    "wav": ("WAV", "PCM_{bits}"),
    "flac": ("FLAC", "PCM_{bits}"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
}


class OutputFile:
    """One output being written. Nothing has its final name before it is complete on disk.

    `bits` (16 or 24) holds for wav and flac. Samples above full scale are clipped.
    """

    def __init__(
        self, report: Report, name: str, audio_format: str, sample_rate: int, channels: int, bits: int = 16
    ) -> None:
        container, encoding = _ENCODINGS[audio_format]
        self.name = name
        self._path = report.workdir / f"{name}.{audio_format}"
        self._part = self._path.with_suffix(".part")
        self._media_type = MEDIA_TYPES[audio_format]
        self._frames = 0
        self._file = soundfile.SoundFile(
            self._part, "w", sample_rate, channels, encoding.format(bits=bits), format=container
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no half-written file behind."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, sound: Sound) -> None:
        """Append frames: (frames, channels), full scale is 1."""
        write_blocks(self._file, sound)
        self._frames += len(sound)

    def finish(self, seconds_in: Decimal = Decimal(0), measures: Mapping[str, str] = {}) -> Output:
        """Make it durable under its name, and say what was written. Nothing may be written after."""
        info = AudioInfo(self._frames, self._file.samplerate, self._file.channels)
        self._file.close()
        if self._media_type == MEDIA_TYPES["ogg"]:
            settle_serial(self._part)
        with self._part.open("rb") as part:
            os.fsync(part.fileno())
            digest = hashlib.file_digest(part, "sha256").hexdigest()
            size = part.tell()
        self._part.rename(self._path)
        _sync_folder(self._path.parent)
        usage = Usage(seconds_in=seconds_in, seconds_out=info.seconds)
        return Output(self.name, self._path, self._media_type, info, size, digest, usage, measures)


def write_blocks(file: soundfile.SoundFile, sound: Sound) -> None:
    """Append frames to an open file, `BLOCK_FRAMES` at a time."""
    for start in range(0, len(sound), BLOCK_FRAMES):
        file.write(sound[start : start + BLOCK_FRAMES])


def output_rate_for(sample_rate: int) -> int:
    """The rate to answer an input with: its own if every format can hold it, else the next one up, at most 48 kHz."""
    return next((rate for rate in SAMPLE_RATES if rate >= sample_rate), SAMPLE_RATES[-1])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
