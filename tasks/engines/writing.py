"""Sound written so that it is durable: in blocks, to a `.part`, synced, renamed, measured. Runs in a child only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from tasks.engines.id3 import tag
from tasks.engines.measuring import Meter
from tasks.engines.ogg import settle_serial
from tasks.engines.report import Report
from tasks.finish import Finish
from tasks.formats import MEDIA_TYPES
from tasks.kind import AudioInfo, Output, QualityGate, Usage

#: Sound as engines hold it: float32, one row a frame, one column a channel.
Sound = NDArray[np.float32]

#: Frames of one write. A minute of Vorbis in one call segfaults libsndfile 1.2; blocks of this size never did.
BLOCK_FRAMES = 65_536
#: Sample rates that every format we write can hold; MP3 knows no others.
SAMPLE_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
#: The loudest sample that a change of loudness may bring: -1 dB, so that no decoder overshoots.
PEAK_MAX = 0.891
#: What is written beside an output for players.
PEAKS_SUFFIX, PEAKS_MEDIA_TYPE = "-peaks", "application/json"

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
        self, report: Report, name: str, finish: Finish, sample_rate: int, channels: int, bits: int = 16
    ) -> None:
        self.name = name
        self._report = report
        self._finish = finish
        self._bits = bits
        self._stack = ExitStack()
        self._path = report.workdir / f"{name}.{finish.format}"
        self._part = self._path.with_suffix(".part")
        self._whole = self._path.with_suffix(".whole")
        self._info = AudioInfo(0, sample_rate, channels)
        self._title = finish.title or name
        self._comment = "; ".join(f"{made}={by}" for made, by in finish.made_by.items())
        self._meter = Meter(sample_rate, peaks=finish.peaks)
        # Loudness is known only when the sound is whole, so until then it is kept as it came.
        self._file = self._opened(self._whole, "WAV", "FLOAT") if finish.loudness is not None else self._encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no half-written file behind."""
        self._stack.close()
        self._part.unlink(missing_ok=True)
        self._whole.unlink(missing_ok=True)

    def write(self, sound: Sound) -> None:
        """Append frames: (frames, channels), full scale is 1. Raises `QualityGate` for samples that are no numbers."""
        if not np.isfinite(sound).all():  # a model's overflow: an encoder would make a bang of it, or crash
            raise QualityGate(f"{self.name} has samples that are no numbers")
        write_blocks(self._file, sound)
        if self._finish.loudness is None:
            self._meter.hear(sound)

    def hand_over(self, seconds_in: Decimal = Decimal(0), measures: Mapping[str, str] = {}) -> None:
        """Make it durable under its name and report it finished, measured. Nothing may be written after.

        `measures` are further ones, of the engine's own.
        """
        taken = dict(measures)
        if self._finish.loudness is not None:
            taken["loudness_lufs"] = self._at_loudness(self._finish.loudness)
        frames = self._file.frames
        self._stack.close()
        if self._finish.format == "ogg":
            settle_serial(self._part)
        if self._finish.format == "mp3":
            tag(self._part, self._title, self._comment)
        info = AudioInfo(frames, self._info.sample_rate, self._info.channels)
        taken |= self._meter.measures
        kept = _kept(self._part, self._path)
        usage = Usage(seconds_in=seconds_in, seconds_out=info.seconds)
        media_type = MEDIA_TYPES[self._finish.format]
        self._report.finished(Output(self.name, self._path, media_type, info, *kept, usage, taken))
        if self._finish.peaks:
            self._hand_over_peaks(info)

    def _hand_over_peaks(self, info: AudioInfo) -> None:
        name = self.name + PEAKS_SUFFIX
        path = self._path.with_name(f"{name}.json")
        self._part.write_text(self._meter.waveform())
        kept = _kept(self._part, path)
        self._report.finished(Output(name, path, PEAKS_MEDIA_TYPE, info, *kept, Usage(), billable=False))

    def _at_loudness(self, wanted: float) -> str:
        """Write what was kept at the wanted loudness; returns the loudness that it came to."""
        from tasks.engines.measuring import loudness_of  # a second to import, and few ask for it

        self._stack.close()
        loudness, peak = loudness_of(self._whole)
        gain = 1.0 if loudness is None else min(10 ** ((wanted - loudness) / 20), PEAK_MAX / peak)
        self._file = self._encoder()
        for block in _blocks_of(self._whole):
            louder = block * np.float32(gain)
            self._file.write(louder)
            self._meter.hear(louder)
        self._whole.unlink()
        return "none" if loudness is None else f"{loudness + 20 * np.log10(gain):.1f}"

    def _encoder(self) -> soundfile.SoundFile:
        container, encoding = _ENCODINGS[self._finish.format]
        file = self._opened(self._part, container, encoding.format(bits=self._bits))
        if self._finish.format != "mp3":
            file.title = self._title
            if self._comment:
                file.comment = self._comment
        return file

    def _opened(self, path: Path, container: str, encoding: str) -> soundfile.SoundFile:
        return self._stack.enter_context(
            soundfile.SoundFile(path, "w", self._info.sample_rate, self._info.channels, encoding, format=container)
        )


def write_blocks(file: soundfile.SoundFile, sound: Sound) -> None:
    """Append frames to an open file, `BLOCK_FRAMES` at a time."""
    for start in range(0, len(sound), BLOCK_FRAMES):
        file.write(sound[start : start + BLOCK_FRAMES])


def output_rate_for(sample_rate: int) -> int:
    """The rate to answer an input with: its own if every format can hold it, else the next one up, at most 48 kHz."""
    return next((rate for rate in SAMPLE_RATES if rate >= sample_rate), SAMPLE_RATES[-1])


def _blocks_of(path: Path) -> Iterator[Sound]:
    with soundfile.SoundFile(path) as file:
        yield from file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True)


def _kept(part: Path, path: Path) -> tuple[int, str]:
    """Give a complete file its name, durably; its bytes and its sha256 in hex."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    part.rename(path)
    _sync_folder(path.parent)
    return size, digest


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
