"""Files from strangers: what they hold is found by decoding, and each bad one is refused in words."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tasks import audio
from tasks.audio import ProbeLimits, probe
from tasks.engines.child import close_children
from tasks.kind import AudioInfo, EngineFailure, RefusedRequest
from tests.unit.tasks.processes import children, descriptors

RATE = 22_050


ANY = ProbeLimits()


@pytest.fixture(autouse=True, scope="module")
def no_child_left() -> Iterator[None]:
    yield
    asyncio.run(close_children())


def noise(seconds: float = 0.5, channels: int = 2, sample_rate: int = RATE) -> np.ndarray:
    shape = (round(seconds * sample_rate), channels)
    return np.asarray(np.random.default_rng(5).standard_normal(shape) * 0.1, np.float32)


def a_file(folder: Path, container: str, encoding: str, sound: np.ndarray | None = None, rate: int = RATE) -> Path:
    sound = noise() if sound is None else sound
    path = folder / f"sound-{container}-{encoding}"
    with soundfile.SoundFile(path, "w", rate, sound.shape[1], encoding, format=container) as file:
        for start in range(0, len(sound), 65_536):
            file.write(sound[start : start + 65_536])
    return path


async def refusal(path: Path, limits: ProbeLimits = ANY) -> str:
    with pytest.raises(RefusedRequest) as refused:
        await probe(path, field="inputs.mix", limits=limits)
    assert refused.value.field == "inputs.mix"
    return refused.value.problem


@pytest.mark.parametrize(
    ("container", "encoding", "expected"),
    [
        ("WAV", "PCM_16", "wav"),
        ("WAV", "PCM_U8", "wav"),
        ("WAV", "DOUBLE", "wav"),
        ("WAV", "ULAW", "wav"),
        ("WAVEX", "PCM_24", "wav"),
        ("FLAC", "PCM_16", "flac"),
        ("MP3", "MPEG_LAYER_III", "mp3"),
        ("OGG", "VORBIS", "ogg"),
        ("AIFF", "PCM_16", "aiff"),
        ("AIFF", "FLOAT", "aiff"),
    ],
)
async def test_a_good_file_is_measured(tmp_path: Path, container: str, encoding: str, expected: str) -> None:
    """Length, rate and channels of what was decoded; hash and size of the bytes; the format by content, not name."""
    path = a_file(tmp_path, container, encoding)
    found = await probe(path)
    assert found.info == AudioInfo(frames=len(noise()), sample_rate=RATE, channels=2)
    assert found.format == expected
    assert (found.bytes, found.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


async def test_opus_is_taken_too(tmp_path: Path) -> None:
    """Opus comes in the same container as Vorbis."""
    path = a_file(tmp_path, "OGG", "OPUS", noise(sample_rate=48_000), 48_000)
    assert (await probe(path)).info == AudioInfo(24_000, 48_000, 2)


async def test_a_probe_keeps_its_child_warm_and_leaks_nothing(tmp_path: Path) -> None:
    """Twenty probes, good and bad, need one process and hold no descriptor."""
    good, bad = a_file(tmp_path, "WAV", "PCM_16"), tmp_path / "none.wav"
    await probe(good)
    first, held = children(), descriptors()
    for _ in range(10):
        await probe(good)
        assert await refusal(bad) == "does not exist"
    assert (first, held) == (children(), descriptors())


async def test_an_mp3_without_an_encoders_note_is_measured_by_decoding(tmp_path: Path) -> None:
    """The decoder guesses such a file's length 12 % too long; what counts is what it holds."""
    path = a_file(tmp_path, "MP3", "MPEG_LAYER_III", noise(4))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Xing", b"Xxxx", 1).replace(b"Info", b"Ixxx", 1))
    assert soundfile.info(path).frames > 4 * RATE * 1.05
    assert (await probe(path)).info.frames == pytest.approx(4 * RATE, rel=0.03)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/etc/hostname"), "is a symbolic link; only regular files are taken"),
        (lambda path: path.symlink_to("nowhere"), "is a symbolic link; only regular files are taken"),
        (lambda path: path.write_text("<html>"), "is not audio that we take (WAV, FLAC, MP3, OGG, AIFF)"),
        (lambda path: path.write_bytes(bytes(1000)), "is not audio that we take (WAV, FLAC, MP3, OGG, AIFF)"),
        (lambda path: path.write_bytes(b"RIFF"), "is not audio that we take (WAV, FLAC, MP3, OGG, AIFF)"),
        (lambda path: path.write_bytes(b"\xff\xfb\x90\x64" + bytes(9)), "can't be decoded as mp3: it is damaged"),
        (lambda path: path.write_bytes(b"ID3" + bytes(100)), "can't be decoded as mp3: it is damaged"),
        (lambda path: path.write_bytes(b"fLaC" + bytes(100)), "can't be decoded as flac: it is damaged"),
        (lambda path: path.write_bytes(b"OggS" + bytes(20)), "is truncated: its last page is missing"),
        (lambda path: path.write_bytes(b"OggS" + bytes(100)), "holds more than one stream of sound"),
    ],
)
async def test_what_is_no_sound_is_refused(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    """Missing, empty, no regular file, of another type: refused in its own words, without waiting for a FIFO."""
    path = tmp_path / "sound.wav"
    make(path)
    assert await refusal(path) == problem


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("encoding", ["VORBIS", "OPUS"])
async def test_no_sound_hides_behind_the_end_of_an_ogg(tmp_path: Path, encoding: str) -> None:
    """A second stream, however small: we would measure the first alone, and another decoder plays both."""
    path = a_file(tmp_path, "OGG", encoding, noise(sample_rate=48_000), 48_000)
    alone = path.read_bytes()
    assert (await probe(path)).info.frames == 24_000
    for other in (alone, b"tags" * 100 + alone, alone.replace(alone[14:18], b"2nd.")):
        path.write_bytes(alone + other)
        assert await refusal(path) == "holds more than one stream of sound"
    path.write_bytes(alone + b"tags" * 100)
    assert (await probe(path)).info.frames == 24_000


async def test_an_ogg_is_whole_page_by_page(tmp_path: Path) -> None:
    """What is between two pages, and an end before the one before it, is nobody's mistake but a liar's."""
    path = a_file(tmp_path, "OGG", "VORBIS", noise(20))
    good = path.read_bytes()
    last = good.rfind(b"OggS")
    path.write_bytes(good[:last] + bytes(8) + good[last:])
    assert await refusal(path) == "is damaged: a page does not follow the one before it"
    path.write_bytes(good[: last + 6] + (100).to_bytes(8, "little") + good[last + 14 :])
    assert await refusal(path) == "has a header that contradicts itself: a page ends before the one before it"
    path.write_bytes(good[:last])
    assert await refusal(path) == "is truncated: its last page is missing"


@pytest.mark.parametrize("names", [["../../sound.wav"], ["sound.wav"] * 2_000, ["inner.zip"]])
async def test_an_archive_is_not_unpacked(tmp_path: Path, names: list[str]) -> None:
    """Whatever is in it, sound as well: it is no audio, and nothing appears beside it."""
    (folder := tmp_path / "inputs").mkdir()
    sound = a_file(tmp_path, "WAV", "PCM_16", noise(0.01)).read_bytes()
    with warnings.catch_warnings(), zipfile.ZipFile(folder / "songs.wav", "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name in names:
            archive.writestr(name, sound)
    before = everything_in(tmp_path)
    assert await refusal(folder / "songs.wav") == "is not audio that we take (WAV, FLAC, MP3, OGG, AIFF)"
    assert before == everything_in(tmp_path)


async def test_devices_sockets_and_odd_paths_are_refused(tmp_path: Path) -> None:
    """Nothing but a regular file is even opened."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert await refusal(tmp_path / "socket") == "is not a regular file"
    assert await refusal(Path("/dev/zero")) == "is not a regular file"
    assert await refusal(Path("/proc/self/environ")) == "is empty"
    assert await refusal(tmp_path / "a\0b") == "is not a path"
    assert await refusal(tmp_path / ("x" * 300)) == "can't be opened (File name too long)"


@pytest.mark.parametrize(
    ("container", "encoding", "rate"),
    [
        ("WAV", "IMA_ADPCM", RATE),
        ("WAV", "MS_ADPCM", RATE),
        ("WAV", "GSM610", 8000),
        ("AU", "PCM_16", RATE),
        ("RF64", "PCM_16", RATE),
        ("CAF", "PCM_16", RATE),
        ("W64", "PCM_16", RATE),
    ],
)
async def test_formats_outside_the_list_are_refused(tmp_path: Path, container: str, encoding: str, rate: int) -> None:
    """libsndfile could read more than we want to answer for."""
    problem = await refusal(a_file(tmp_path, container, encoding, noise(channels=1), rate))
    assert "that we don't take" in problem or problem.startswith("is not audio that we take")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
@pytest.mark.parametrize(
    ("container", "encoding"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")],
)
async def test_a_truncated_file_is_refused(tmp_path: Path, container: str, encoding: str, kept: float) -> None:
    """Whatever was cut off, nobody pays for a piece of a file that they take for the whole."""
    path = a_file(tmp_path, container, encoding, noise(3))
    os.truncate(path, int(path.stat().st_size * kept))
    problem = await refusal(path)
    assert problem.startswith(("is truncated", "can't be decoded as"))


def with_frames_of_flac(content: bytearray, frames: int) -> None:
    word = int.from_bytes(content[18:26], "big") >> 36 << 36 | frames
    content[18:26] = word.to_bytes(8, "big")


def with_frames_of_mp3(content: bytearray, frames: int) -> None:
    note = content.find(b"Xing")
    content[note + 8 : note + 12] = frames.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("container", "lie", "problem"),
    [
        ("WAV", lambda c: c.__setitem__(slice(40, 44), b"\xff" * 4), "has a header that doesn't say how long"),
        ("WAV", lambda c: c.__setitem__(slice(40, 44), bytes(4)), "has a header that doesn't say how long"),
        ("WAV", lambda c: c.__setitem__(slice(40, 44), b"\xf0\xff\xff\x7f"), "is truncated: its header tells of 2147"),
        ("WAV", lambda c: c.__setitem__(slice(22, 24), bytes(2)), "has 0 channels"),
        ("WAV", lambda c: c.__setitem__(slice(22, 24), b"\xff\xff"), "has a header that contradicts itself"),
        ("WAV", lambda c: c.__setitem__(slice(32, 34), b"\x03\0"), "has a header that contradicts itself"),
        ("WAV", lambda c: c.__setitem__(slice(34, 36), bytes(2)), "has a header that contradicts itself"),
        ("WAV", lambda c: c.__setitem__(slice(24, 28), bytes(4)), "can't be decoded as wav: it is damaged"),
        ("WAV", lambda c: c.__setitem__(slice(24, 28), b"\xff\xff\xff\x7f"), "has 2147483647 samples a second"),
        ("WAV", lambda c: c.__setitem__(slice(16, 20), bytes(4)), "is damaged"),
        ("WAV", lambda c: c.__setitem__(slice(12, 16), b"junk"), "is damaged: its sound comes before its format"),
        ("WAV", lambda c: c.__setitem__(slice(36, 40), b"junk"), "is damaged: it has no sound"),
        ("AIFF", lambda c: c.__setitem__(slice(22, 26), b"\0\xff\0\0"), "is truncated: its header tells of 16711680"),
        ("FLAC", lambda c: with_frames_of_flac(c, 0), "has a header that doesn't say how long its sound is"),
        ("FLAC", lambda c: with_frames_of_flac(c, 900_000), "is truncated"),
        ("FLAC", lambda c: with_frames_of_flac(c, 100), "bytes behind the sound that its header tells of"),
        ("MP3", lambda c: with_frames_of_mp3(c, 10), "bytes behind the sound that its header tells of"),
        ("MP3", lambda c: with_frames_of_mp3(c, 9999), "is truncated"),
        ("OGG", lambda c: c.extend(bytes(c) * 2), "holds more than one stream of sound"),
        ("OGG", lambda c: c.extend(bytes(200_000)), "bytes behind the sound that its header tells of"),
    ],
)
async def test_a_header_that_lies_is_refused(
    tmp_path: Path, container: str, lie: Callable[[bytearray], None], problem: str
) -> None:
    """The price rests on the length: a header that tells another one than is there is not argued with."""
    encoding = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(container, "PCM_16")
    path = a_file(tmp_path, container, encoding, noise(8))
    content = bytearray(path.read_bytes())
    lie(content)
    path.write_bytes(content)
    assert problem in await refusal(path)


async def test_what_says_more_than_it_holds_never_reaches_memory(tmp_path: Path) -> None:
    """A WAV of 44 bytes that claims 65,535 channels ends in words."""
    header = b"RIFF\xff\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 65_535, RATE, 0, 65_534, 16)
    path = tmp_path / "bomb.wav"
    path.write_bytes(header + b"data\x08\0\0\0" + bytes(8))
    assert "contradicts itself" in await refusal(path)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (ProbeLimits(bytes_max=1000), "at most 1000 are taken"),
        (ProbeLimits(seconds_max=2), "is longer than 2 seconds once decoded"),
        (ProbeLimits(channels_max=1), "has 2 channels; between 1 and 1 are taken"),
        (ProbeLimits(sample_rate_min=44_100), "has 22050 samples a second; between 44100 and 192000 are taken"),
        (ProbeLimits(sample_rate_max=8_000), "has 22050 samples a second; between 8000 and 8000 are taken"),
        (ProbeLimits(probe_seconds=1e-06), "can't be decoded within 1e-06 seconds"),
    ],
)
async def test_a_file_past_a_limit_is_refused_with_the_limit(tmp_path: Path, limits: ProbeLimits, problem: str) -> None:
    """Too large, too long once decoded, too many channels, too slow to decode."""
    assert problem in await refusal(a_file(tmp_path, "FLAC", "PCM_16", noise(3)), limits)


async def test_a_small_file_that_expands_stops_at_the_limit(tmp_path: Path) -> None:
    """Twenty minutes of silence are 30 kB of FLAC: decoding stops at the limit."""
    path = a_file(tmp_path, "FLAC", "PCM_16", np.zeros((1200 * 8000, 1), np.float32), 8000)
    assert path.stat().st_size < 100_000
    assert await refusal(path) == "is longer than 600 seconds once decoded"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "has samples that are not finite numbers"),
        (np.inf, "has samples that are not finite numbers"),
        (1e30, "has samples louder than 64 times full scale"),
    ],
)
async def test_samples_must_be_sound(tmp_path: Path, value: float, problem: str) -> None:
    """A float file may hold what no microphone gave; engines would spread it over the whole output."""
    sound = noise()
    sound[-3, 1] = value
    assert await refusal(a_file(tmp_path, "WAV", "FLOAT", sound)) == problem


@pytest.mark.parametrize("sound", [np.zeros((100, 1)), np.ones((100, 1)), noise(0.5) * 100, noise(1 / RATE)])
async def test_silence_clipping_and_a_single_frame_are_sound(tmp_path: Path, sound: np.ndarray) -> None:
    """Odd, but measurable. What a kind needs more, its own limits say."""
    path = a_file(tmp_path, "WAV", "PCM_16", np.asarray(sound, np.float32))
    assert (await probe(path)).info.frames == len(sound)


@pytest.mark.parametrize(
    ("misbehaviour", "problem"),
    [
        ("segfault", "can't be decoded: it crashes its decoder"),
        ("burn", "can't be decoded: it crashes its decoder"),
        ("take_all_memory", "takes too much memory to decode"),
    ],
)
async def test_a_file_that_breaks_its_decoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misbehaviour: str, problem: str
) -> None:
    """Crash, endless loop or memory: the file is refused, the worker goes on."""
    monkeypatch.setattr(audio, "PROBE_TRIES", 1)
    monkeypatch.setattr(audio, "EXAMINE", f"tests.unit.tasks.misbehaviour:{misbehaviour}_at_a_file")
    path = a_file(tmp_path, "WAV", "PCM_16")
    assert await refusal(path, ProbeLimits(processor_seconds=0.5)) == problem
    monkeypatch.undo()
    assert (await probe(path)).info.channels == 2


async def test_a_crash_that_happens_once_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have killed the child; the file is tried once more."""
    monkeypatch.setattr(audio, "EXAMINE", "tests.unit.tasks.misbehaviour:crash_the_first_time")
    path = a_file(tmp_path, "WAV", "PCM_16")
    assert (await probe(path)).info.channels == 2
    assert path.with_suffix(".seen").exists()


async def test_our_own_failure_is_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is no refusal: the caller may try again."""
    monkeypatch.setattr(audio, "EXAMINE", "tests.unit.tasks.misbehaviour:fail_at_a_file")
    with pytest.raises(EngineFailure):
        await probe(tmp_path / "any.wav")


async def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash, size and length are of the same bytes."""
    monkeypatch.setattr(audio, "EXAMINE", "tests.unit.tasks.misbehaviour:change_while_reading")
    assert await refusal(a_file(tmp_path, "WAV", "PCM_16")) == "was changed while it was read"


async def test_cancelling_a_probe_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes away leaves no decoder running."""
    await close_children()
    monkeypatch.setattr(audio, "EXAMINE", "tests.unit.tasks.misbehaviour:burn_at_a_file")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await probe(tmp_path / "any.wav")
    assert children() == []
