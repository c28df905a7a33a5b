"""Sound read from files that strangers made. Runs in a child only: decoders have crashed on such files before."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tasks.engines.containers import check_tail, claimed_frames, decoder_knows_frames, format_of
from tasks.engines.report import Report
from tasks.engines.writing import BLOCK_FRAMES, Sound
from tasks.kind import InvalidInput

#: The loudest sample that is still sound: 36 dB over full scale. Engines square samples in float32.
LOUDEST = 64.0
#: Encodings we take within the formats; the rest are telephone codecs and ADPCM.
ENCODINGS = frozenset(
    {
        "PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE",
        "ULAW", "ALAW", "VORBIS", "OPUS", "MPEG_LAYER_III",
    }
)  # fmt: skip


def examine(report: Report, path: Path, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a file to its end and say what it holds; `limits` are a `tasks.audio.ProbeLimits`.

    Raises `InvalidInput` that says what is wrong and what the limit is.
    """
    descriptor = _opened(path)
    try:
        before = os.fstat(descriptor)
        _check_size(before.st_size, limits["bytes_max"])
        audio_format = format_of(descriptor)
        claimed = claimed_frames(descriptor, audio_format, before.st_size)
        digest = _digest(descriptor)
        with _decoder(descriptor, audio_format) as sound:
            if _family(sound.format) != audio_format or sound.subtype not in ENCODINGS:
                raise InvalidInput(f"is {sound.format} in an encoding that we don't take ({sound.subtype})")
            _check_header(sound.channels, sound.samplerate, limits)
            if claimed is None and decoder_knows_frames(descriptor, audio_format, sound.frames):
                claimed = sound.frames
            frames = _count(sound, limits["seconds_max"])
            found = {"frames": frames, "sample_rate": sound.samplerate, "channels": sound.channels}
        _check_claim(frames, claimed)
        check_tail(descriptor, audio_format, before.st_size)
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidInput("was changed while it was read")
        return found | {"format": audio_format, "bytes": before.st_size, "sha256": digest}
    finally:
        os.close(descriptor)


@contextmanager
def opened_sound(path: Path) -> Iterator[soundfile.SoundFile]:
    """The sound of a file that was examined before. Raises `InvalidInput` where it is gone or damaged since."""
    descriptor = _opened(path)
    try:
        with _decoder(descriptor, format_of(descriptor)) as sound:
            yield sound
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """Open a regular file. Nothing else is even opened: a FIFO would wait, a device might act."""
    try:
        if path.is_symlink():
            raise InvalidInput("is a symbolic link; only regular files are taken")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InvalidInput("is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput("does not exist") from None
    except OSError as error:
        raise InvalidInput(f"can't be opened ({os.strerror(error.errno or 0)})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was exchanged meanwhile
        os.close(descriptor)
        raise InvalidInput("is not a regular file")
    return descriptor


def _check_size(size: int, size_max: int) -> None:
    if size == 0:
        raise InvalidInput("is empty")
    if size > size_max:
        raise InvalidInput(f"has {size} bytes; at most {size_max} are taken")


def _digest(descriptor: int) -> str:
    with open(descriptor, "rb", closefd=False) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.lseek(descriptor, 0, os.SEEK_SET)
    return digest


def _decoder(descriptor: int, audio_format: str) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(descriptor, closefd=False)
    except (soundfile.LibsndfileError, RuntimeError):
        raise InvalidInput(f"can't be decoded as {audio_format}: it is damaged") from None


def _family(name: str) -> str:
    return "wav" if name == "WAVEX" else name.lower()


def _check_header(channels: int, sample_rate: int, limits: Mapping[str, Any]) -> None:
    if not 1 <= channels <= limits["channels_max"]:
        raise InvalidInput(f"has {channels} channels; between 1 and {limits['channels_max']} are taken")
    low, high = limits["sample_rate_min"], limits["sample_rate_max"]
    if not low <= sample_rate <= high:
        raise InvalidInput(f"has {sample_rate} samples a second; between {low} and {high} are taken")


def _count(sound: soundfile.SoundFile, seconds_max: int) -> int:
    """The frames that can really be decoded, each sample looked at once."""
    frames = 0
    for block in decoded_blocks(sound):
        frames += len(block)
        if frames > seconds_max * sound.samplerate:
            raise InvalidInput(f"is longer than {seconds_max} seconds once decoded")
        if not np.isfinite(block).all():
            raise InvalidInput("has samples that are not finite numbers")
        if np.abs(block).max() > LOUDEST:
            raise InvalidInput(f"has samples louder than {LOUDEST:g} times full scale")
    return frames


def _check_claim(frames: int, claimed: int | None) -> None:
    if frames == 0:
        raise InvalidInput("has no sound in it")
    if claimed is not None and frames < claimed:
        raise InvalidInput(f"is truncated: its header tells of {claimed} frames, {frames} can be decoded")
    if claimed is not None and frames > claimed:
        raise InvalidInput(f"has a header that lies: it tells of {claimed} frames, {frames} can be decoded")


def decoded_blocks(sound: soundfile.SoundFile) -> Iterator[Sound]:
    """All that can be decoded from here on, in blocks. Raises `InvalidInput` where the file is damaged."""
    while True:
        try:
            block: Sound = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError):
            raise InvalidInput("is truncated or damaged: it can't be decoded to its end") from None
        if not len(block):
            return
        yield block
