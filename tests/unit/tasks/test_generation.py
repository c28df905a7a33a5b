"""Songs from words: their length, tempo and key are what was asked, and the same request gives the same sound."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tasks.engines.child import close_children
from tasks.engines.embedded.composer import PARTS, STYLES, Brief, Key, Song, compose, key_in, key_of, tempo_for
from tasks.engines.embedded.synth import PEAK, TIERS, mixed, play
from tasks.engines.ogg import settle_serial
from tasks.engines.writing import Sound
from tasks.kind import EngineError, RunLimits
from tasks.registry import registry
from tasks.validation import parse
from tests.unit.tasks import meters
from tests.unit.tasks.contexts import Recorder

GENERATION = registry()["generation"]


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    yield Recorder(tmp_path)
    await close_children()


async def generated(context: Recorder, **params: Any) -> list[Path]:
    """Run the kind as a worker would, and check what it promises of each output."""
    request = parse(GENERATION, params)
    await GENERATION.run(request, {}, context, RunLimits())
    quoted = GENERATION.usage(request, {})
    for output, most in zip(context.outputs, quoted, strict=True):
        content = output.path.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output.bytes, output.sha256)
        assert output.usage.seconds_out == output.info.seconds
        assert output.usage.seconds_out <= most.seconds_out
        assert output.usage.seconds_in == 0
    assert sorted(context.workdir.iterdir()) == sorted(output.path for output in context.outputs)
    return [output.path for output in context.outputs]


def song(prompt: str = "lofi 90 bpm", seed: int = 0, **fields: Any) -> Song:
    return compose(Brief(prompt, **({"seconds": Decimal(24)} | fields)), seed)


def silent(fraction: float, stage: str) -> None:
    assert 0 <= fraction <= 1


def played(one: Song, model: str = "draft") -> Sound:
    return play(one, TIERS[model], silent)


@pytest.mark.parametrize("model", TIERS)
@pytest.mark.parametrize("seconds", ["5", "7.125", "10.001"])
def test_seconds_are_kept_to_the_sample(model: str, seconds: str) -> None:
    """An exact length is exact: never longer, and less than a sample shorter."""
    rate = TIERS[model].sample_rate
    frames = len(played(song(seconds=Decimal(seconds)), model))
    assert frames == int(Decimal(seconds) * rate)


@pytest.mark.parametrize(
    ("seconds_max", "bpm", "bars", "seconds"),
    [("30", 120, 15, "30"), ("29.999", 120, 14, "28"), ("5", 48, 1, "5"), ("60", 77, 19, "59.220779")],
)
def test_seconds_max_ends_with_the_last_whole_bar_that_fits(
    seconds_max: str, bpm: int, bars: int, seconds: str
) -> None:
    """The piece ends where its music does; what it leaves of its maximum is not used."""
    one = song(seconds=None, seconds_max=Decimal(seconds_max), bpm=bpm)
    assert one.bars == bars
    frames = len(played(one))
    assert Decimal(seconds) - Decimal(frames) / 22_050 < Decimal("0.0001")
    assert Decimal(frames) / 22_050 <= Decimal(seconds)


@given(
    st.decimals(5, 300, places=3),
    st.integers(48, 300),
    st.sampled_from([tier.sample_rate for tier in TIERS.values()]),
)
def test_no_song_is_longer_than_its_maximum(seconds_max: Decimal, bpm: int, rate: int) -> None:
    """The hold rests on it: at any tempo and rate the frames stay within what was quoted."""
    bars = int(seconds_max * bpm / 240)
    one = Song(bpm, Key(0, "major"), "lofi", bars, None, {})
    assert 0 < one.frames(rate) <= seconds_max * rate


async def test_a_run_makes_durable_variants_that_differ(context: Recorder) -> None:
    """Two variants are two outputs, from seed and seed + 1, and each says what it used."""
    first, second = await generated(context, prompt="house", seconds_max=8, seed=5, variants=2, format="flac")
    assert [first.name, second.name] == ["song.flac", "song-2.flac"]
    assert soundfile.info(first).duration == pytest.approx(float(context.outputs[0].info.seconds))
    assert first.read_bytes() != second.read_bytes()
    assert context.told[-1][1].startswith("song 2 of 2")


@pytest.mark.parametrize("audio_format", ["wav", "flac", "mp3", "ogg"])
async def test_every_format_can_be_written_and_read(context: Recorder, audio_format: str) -> None:
    """What is decoded is as long as what was counted, in each format."""
    (path,) = await generated(context, prompt="rock", seconds=70, format=audio_format, model="draft")
    with soundfile.SoundFile(path) as file:
        assert audio_format.upper() == file.format
        assert sum(len(block) for block in file.blocks(65_536)) == context.outputs[0].info.frames


@pytest.mark.parametrize("audio_format", ["wav", "flac", "mp3", "ogg"])
async def test_the_same_seed_gives_the_same_bytes(audio_format: str, tmp_path: Path) -> None:
    """A song can be made again, by another process too; the next seed is another song."""
    digests = []
    for number, seed in enumerate((7, 7, 8)):
        context = Recorder(tmp_path / str(number))
        context.workdir.mkdir()
        await generated(context, prompt="calm folk", seconds=6, seed=seed, format=audio_format)
        digests.append(context.outputs[0].sha256)
        await close_children()
    assert digests[0] == digests[1] != digests[2]


def test_an_ogg_with_our_serial_is_as_good_as_before(tmp_path: Path) -> None:
    """The decoder checks each page's sum: it finds the same sound, and our serial in every page."""
    path = tmp_path / "noise.ogg"
    with soundfile.SoundFile(path, "w", 44_100, 2, "VORBIS", format="OGG") as file:
        file.write(np.random.default_rng(1).standard_normal((65_536, 2)) * 0.1)
    before, pages = soundfile.read(path)[0], path.read_bytes().count(b"OggS")
    settle_serial(path)
    assert np.array_equal(soundfile.read(path)[0], before)
    assert path.read_bytes().count(b"OggS") == pages
    content = path.read_bytes()
    serials = {content[at + 14 : at + 18] for at in range(len(content)) if content.startswith(b"OggS", at)}
    assert serials == {b"\x01\0\0\0"}


def test_a_longer_piece_is_the_same_piece() -> None:
    """The seed decides the music, the length only where it ends."""
    short, long = song(seconds=Decimal(12)), song(seconds=Decimal(48))
    for part in ("drums", "bass", "chords"):
        in_the_first_bars = [note for note in short.parts[part] if note.start_beats < 12]
        assert in_the_first_bars == [note for note in long.parts[part] if note.start_beats < 12]


@pytest.mark.parametrize(
    "prompt",
    ["calm lofi 80 bpm", "house 124 BPM", "rock at 140bpm", "sad cinematic 90 bpm", "folk 100 bpm", "pop 112 bpm"],
)
def test_the_tempo_that_is_heard_is_the_asked_one(prompt: str) -> None:
    """Measured from the onsets of the sound, within 2.5 beats a minute."""
    asked = int("".join(character for character in prompt if character.isdigit()))
    assert meters.tempo(played(song(prompt)), 22_050) == pytest.approx(asked, abs=2.5)


@pytest.mark.parametrize("name", ["F# minor", "C major"])
@pytest.mark.parametrize("style", ["lofi", "pop", "folk", "cinematic"])
def test_the_key_that_is_heard_is_the_asked_one_or_its_relative(name: str, style: str) -> None:
    """Measured from the notes' shares of the sound; relatives share all their notes."""
    asked = key_of(name)
    relative = (asked.tonic + 3) % 12, "major"
    if asked.mode == "major":
        relative = (asked.tonic - 3) % 12, "minor"
    sound = mixed(song(style=style, key=name, seed=3), TIERS["draft"], ("bass", "chords", "lead"), silent)
    assert meters.key(sound, 22_050) in [(asked.tonic, asked.mode), relative]


@given(st.sampled_from(sorted(STYLES)), st.sampled_from(["C major", "E minor", "Ab major"]), st.integers(0, 99))
def test_every_note_belongs_to_the_key(style: str, name: str, seed: int) -> None:
    """Whatever is drawn, no pitched note leaves the scale."""
    scale = {"C major": {0, 2, 4, 5, 7, 9, 11}, "E minor": {4, 6, 7, 9, 11, 0, 2}, "Ab major": {8, 10, 0, 1, 3, 5, 7}}
    one = song(style=style, key=name, seed=seed)
    pitches = {note.pitch % 12 for part in PARTS if part != "drums" for note in one.parts[part]}
    assert pitches <= scale[name]


@pytest.mark.parametrize(
    ("prompt", "bpm", "style", "expected"),
    [
        ("house at 130 BPM", None, None, 130),
        ("house at 130 bpm", 90, None, 90),
        ("house", None, None, 124),
        ("slow house", None, None, 105),
        ("fast house", None, None, 143),
        ("house", None, "lofi", 78),
        ("999 bpm house", None, None, 124),
        ("nothing we know", None, None, 78),
    ],
)
def test_the_tempo_is_read_from_the_words(prompt: str, bpm: int | None, style: str | None, expected: int) -> None:
    """Field before number in the prompt before style; moods move a style's own tempo."""
    assert tempo_for(prompt, bpm, style) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a song in A minor", Key(9, "minor")),
        ("Bb Major swing", Key(10, "major")),
        ("F#-minor", Key(6, "minor")),
        ("a major hit", None),
        ("DNA minor", None),
    ],
)
def test_the_key_is_read_from_the_words(prompt: str, expected: Key | None) -> None:
    """A small a is an article, a letter inside a word is no note."""
    assert key_in(prompt) == expected


def test_the_tiers_differ_in_what_is_heard() -> None:
    """draft is 22 kHz mono, standard 44.1 kHz stereo with a room, studio 48 kHz with detuned voices: more to hear."""
    draft, standard, studio = (played(song(seconds=Decimal(8)), model) for model in ("draft", "standard", "studio"))
    assert (draft.shape[1], standard.shape[1], studio.shape[1]) == (1, 2, 2)
    assert not np.array_equal(standard[:, 0], standard[:, 1])
    assert len(studio) / 8 == 48_000


@pytest.mark.parametrize(
    ("style", "model"), [*((style, "draft") for style in STYLES), ("lofi", "standard"), ("lofi", "studio")]
)
def test_every_style_sounds_and_never_clips(style: str, model: str) -> None:
    """Its peak is at -1 dB of full scale, it is not silent for long, and it ends in silence."""
    sound = played(song(style=style, seconds=Decimal(10)), model)
    assert np.abs(sound).max() == pytest.approx(PEAK, abs=1e-4)
    assert np.isfinite(sound).all()
    seconds = sound[: len(sound) // 10 * 10].reshape(10, -1)
    assert (np.sqrt((seconds[:9] ** 2).mean(axis=1)) > 0.005).all()
    assert np.abs(sound[-1]).max() == 0


def test_parts_add_up_to_the_mix() -> None:
    """Single parts are the true stems of a song, at the loudness they have in it."""
    one = song(seconds=Decimal(6))
    stems = [mixed(one, TIERS["standard"], (part,), silent) for part in PARTS]
    assert np.abs(sum(stems) - mixed(one, TIERS["standard"], PARTS, silent)).max() < 1e-5


async def test_variants_that_were_finished_stay_when_a_later_one_fails(
    context: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends half-way has handed over what it had finished."""
    finished = context.finished

    async def only_one(output: Any) -> None:
        await finished(output)
        if len(context.outputs) == 2:
            raise EngineError("the second could not be counted")

    monkeypatch.setattr(context, "finished", only_one)
    with pytest.raises(EngineError):
        await GENERATION.run(
            parse(GENERATION, {"prompt": "pop", "seconds": 5, "variants": 4}), {}, context, RunLimits()
        )
    assert [output.name for output in context.outputs] == ["song", "song-2"]
