"""Voices converted: pitch, formants, loudness and colour move as asked, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tasks
from tasks.audio import probe
from tasks.engines.child import close_children
from tasks.engines.embedded import world
from tasks.engines.embedded.stretches import quiet_stretches
from tasks.engines.embedded.world import Change, Converter, converted, limited, profile_of
from tasks.engines.writing import Sound
from tasks.kind import InputFile, InvalidInput, RunLimits
from tasks.registry import registry
from tasks.validation import parse
from tests.unit.tasks import meters
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.material import Samples, pitch_curve, sung

CONVERSION = registry()["vocal_conversion"]
LIBRIVOX = Path(tasks.__file__).parent / "samples" / "voice-librivox.flac"
RATE = 16_000
NOTES = [220, 246.9, 261.6, 196, 164.8, 220, 293.7, 174.6]
CURVE = pitch_curve(NOTES, 0.6, RATE)
SINGER = 0.5 * sung(CURVE, RATE)
#: Where pitches are measured, and what the singer sang there.
TIMES = np.arange(0.1, len(SINGER) / RATE - 0.1, 0.02)
SUNG = np.interp(TIMES, np.arange(len(CURVE)) / RATE, CURVE)


@pytest.fixture(scope="module", autouse=True)
def no_child_left() -> Iterator[None]:
    yield
    asyncio.run(close_children())


def change(**fields: Any) -> Change:
    usual = {"semitones": 0.0, "formant": 1.0, "preset": "natural", "strength": 1.0, "volume_mix": 1.0}
    return Change(**{**usual, "model": "standard", **fields})


def after(sound: Samples, reference: Samples | None = None, **fields: Any) -> Samples:
    """A voice after a change, without a child and without files."""
    target = None if reference is None else profile_of(reference, RATE)
    own = profile_of(sound, RATE) if target is not None or fields.get("preset") == "robot" else None
    converter = Converter(RATE, change(**fields), own, target)
    blocks = iter([np.asarray(sound[:, None], np.float32)])
    return np.concatenate(list(converted(blocks, RATE, converter)))[:, 0]


def test_the_meters_measure_the_material() -> None:
    """The singer sings what it was told: else the figures below would say nothing."""
    off = meters.cents(meters.pitches(SINGER, RATE, TIMES), SUNG)
    assert len(off) > 0.95 * len(TIMES)
    assert np.median(np.abs(off)) < 3


@pytest.mark.parametrize(
    ("model", "semitones"), [("standard", -5.0), ("standard", 3.0), ("standard", 7.0), ("studio", 3.0)]
)
def test_the_pitch_moves_by_the_asked_semitones(model: str, semitones: float) -> None:
    """Frame by frame: median error within 3 cents (measured 0.6), 95 % of frames within 50 (measured 97–98)."""
    found = meters.pitches(after(SINGER, semitones=semitones, model=model), RATE, TIMES)
    off = meters.cents(found, SUNG * 2 ** (semitones / 12))
    assert len(off) > 0.95 * len(TIMES)
    assert abs(np.median(off)) < 3
    assert (np.abs(off) < 50).mean() > 0.95


@pytest.mark.parametrize("formant", [0.85, 1.0, 1.2])
def test_the_formants_move_by_the_asked_factor(formant: float) -> None:
    """Within 0.03 of the factor (measured 0.01), and the pitch stays."""
    result = after(SINGER, formant=formant)
    assert meters.formant_factor(SINGER, result, RATE) == pytest.approx(formant, abs=0.03)
    assert abs(np.median(meters.cents(meters.pitches(result, RATE, TIMES), SUNG))) < 3


def test_a_pitch_change_leaves_the_formants() -> None:
    """Up by a third is not a smaller singer."""
    assert meters.formant_factor(SINGER, after(SINGER, semitones=4.0), RATE) == pytest.approx(1, abs=0.04)


def test_a_whisper_has_no_pitch() -> None:
    """Nearly no frame has the pitch that was sung there."""
    off = meters.cents(meters.pitches(after(SINGER, preset="whisper"), RATE, TIMES), SUNG)
    assert (np.abs(off) < 50).sum() < 0.05 * len(TIMES)


def test_a_robot_has_one_pitch() -> None:
    """The voice's mean, moved by the semitones, in 90 % of the frames within 20 cents."""
    found = meters.pitches(after(SINGER, preset="robot", semitones=2.0), RATE, TIMES)
    mean = np.exp(np.log(SUNG).mean()) * 2 ** (2 / 12)
    assert (np.abs(meters.cents(found, np.full(len(found), mean))) < 20).mean() > 0.9


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_reference_pulls_the_pitch_by_its_strength(strength: float) -> None:
    """The mean log pitch goes so far of the way to the reference's, within 8 %."""
    lower = 0.5 * sung(pitch_curve([note / 1.6 for note in NOTES[:4]], 0.6, RATE), RATE, vowels="uo")
    found = meters.pitches(after(SINGER, lower, strength=strength), RATE, TIMES)
    moved = np.log(np.median(found[np.isfinite(found)]) / np.median(SUNG))
    own, target = profile_of(SINGER, RATE), profile_of(lower, RATE)
    assert own is not None
    assert target is not None
    assert moved / (target.pitch_mean - own.pitch_mean) == pytest.approx(strength, abs=0.08)


def test_a_reference_pulls_the_colour() -> None:
    """The mean envelopes were 7.5 dB apart, and are not half of it afterwards (measured 0.9)."""
    other = 0.5 * sung(CURVE, RATE, vowels="uo")
    result = after(SINGER, other)
    before, now = (_distance(sound, other) for sound in (SINGER, result))
    assert now < 0.5 * before


def _distance(sound: Samples, other: Samples) -> float:
    """Between two voices' mean envelopes, in dB, their loudness aside."""
    profiles = [profile_of(one, RATE) for one in (sound, other)]
    assert profiles[0] is not None
    assert profiles[1] is not None
    difference = (profiles[0].colour - profiles[1].colour)[: profiles[0].colour.size // 2]
    return float((difference - difference.mean()).std() * 10 / np.log(10))


def test_volume_mix_0_follows_the_voices_own_loudness() -> None:
    """A voice that fades keeps its fade, whatever the change made of it."""
    fading = SINGER * np.linspace(1, 0.05, len(SINGER))
    follows = after(fading, formant=1.4, volume_mix=0.0)
    as_made = after(fading, formant=1.4, volume_mix=1.0)
    assert _loudness_error(fading, follows) < 0.5 * _loudness_error(fading, as_made)


def _loudness_error(sound: Samples, other: Samples) -> float:
    whole = len(sound) // 1600 * 1600
    loudness = [np.log((one[:whole].reshape(-1, 1600) ** 2).mean(axis=1)) / 2 for one in (sound, other)]
    return float(np.abs(loudness[0] - loudness[1]).mean())


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One to two seconds in the place of six to twelve: what holds at a seam holds at any."""
    monkeypatch.setattr(world, "SHORTEST_SECONDS", 1)
    monkeypatch.setattr(world, "LONGEST_SECONDS", 2)


@pytest.mark.parametrize("seconds", [0.1, 1.99, 4.4])
@pytest.mark.usefixtures("short_stretches")
def test_the_length_stays_to_the_sample(seconds: float) -> None:
    """Whether in one stretch or in several."""
    sound = np.resize(SINGER, round(seconds * RATE))
    assert after(sound, semitones=1.0).shape == sound.shape


def test_stretches_are_cut_where_it_is_quiet() -> None:
    """A pause within the allowed lengths is where the cut goes, so no note is torn."""
    sound = np.ones((100_000, 1), np.float32)
    sound[33_000:33_500] = 0
    stretches = [stretch for stretch, _ in quiet_stretches([sound], 20_000, 40_000, 100)]
    assert 33_000 <= len(stretches[0]) - 100 <= 33_400
    assert max(len(stretch) for stretch in stretches) <= 40_100


@pytest.mark.usefixtures("short_stretches")
def test_a_seam_is_not_heard() -> None:
    """Cut into several stretches, the pitch is right at every frame, as in one stretch."""
    found = meters.pitches(after(SINGER, semitones=3.0), RATE, TIMES)
    off = meters.cents(found, SUNG * 2 ** (3 / 12))
    assert len(off) > 0.95 * len(TIMES)
    assert (np.abs(off) < 50).mean() > 0.95


def test_loud_sound_is_bent_not_cut() -> None:
    """Nothing comes over 0.99, quiet sound stays as it is, order is kept."""
    ramp = np.linspace(-3, 3, 1001, dtype=np.float32)[:, None]
    bent = limited(ramp)
    assert np.abs(bent).max() <= 0.99
    assert np.array_equal(bent[np.abs(ramp) <= 0.9], ramp[np.abs(ramp) <= 0.9])
    assert (np.diff(bent[:, 0]) >= 0).all()


async def put(path: Path, sound: Sound, rate: int) -> InputFile:
    """A voice as the store hands it to a run."""
    soundfile.write(path, sound, rate, subtype="PCM_16")
    return InputFile(path, (await probe(path)).info)


@pytest.fixture
def context(tmp_path: Path) -> Recorder:
    (tmp_path / "attempt").mkdir()
    return Recorder(tmp_path / "attempt")


async def test_a_real_voice_is_converted(context: Recorder) -> None:
    """LibriVox's reader a fourth higher, with a reference: the use is what was quoted, the pitch is what was asked."""
    voice = InputFile(LIBRIVOX, (await probe(LIBRIVOX)).info)
    request = parse(CONVERSION, {"semitones": 5, "format": "flac"})
    await CONVERSION.run(request, {"voice": voice}, context, RunLimits())
    (output,) = context.outputs
    assert (output.name, output.info, output.media_type) == ("voice", voice.info, "audio/flac")
    assert (output.usage,) == CONVERSION.usage(request, {"voice": voice.info})
    times = np.arange(0.5, 6.5, 0.02)
    read, spoken = (soundfile.read(path)[0] for path in (output.path, LIBRIVOX))
    off = meters.cents(meters.pitches(read, 16_000, times), meters.pitches(spoken, 16_000, times) * 2 ** (5 / 12))
    assert abs(np.nanmedian(off)) < 10


@pytest.mark.parametrize(
    ("rate", "channels", "answered"),
    [(8_000, 1, 16_000), (44_056, 2, 44_100), (44_100, 2, 44_100), (96_000, 1, 48_000)],
)
async def test_every_rate_and_channel_count_can_be_converted(
    context: Recorder, tmp_path: Path, rate: int, channels: int, answered: int
) -> None:
    """At the input's own rate where all formats know it and WORLD can, with its channels, never longer than it."""
    sound = np.repeat(sung(pitch_curve([220.0, 247.0], 0.5, rate), rate)[:, None], channels, axis=1) * 0.5
    voice = await put(tmp_path / "voice.wav", np.asarray(sound, np.float32), rate)
    await CONVERSION.run(parse(CONVERSION, {"format": "mp3"}), {"voice": voice}, context, RunLimits())
    (output,) = context.outputs
    assert (output.info.sample_rate, output.info.channels) == (answered, channels)
    assert output.info.frames == voice.info.frames * answered // rate
    assert output.usage.seconds_out <= voice.info.seconds


async def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    """Also in a child that has worked before."""
    voice = InputFile(LIBRIVOX, (await probe(LIBRIVOX)).info)
    digests = set()
    for number in range(2):
        context = Recorder(tmp_path / str(number))
        context.workdir.mkdir()
        request = parse(CONVERSION, {"preset": "whisper", "format": "flac"})
        await CONVERSION.run(request, {"voice": voice}, context, RunLimits())
        digests.add(context.outputs[0].sha256)
    assert len(digests) == 1


async def test_a_reference_without_a_voice_is_the_customers_to_mend(context: Recorder, tmp_path: Path) -> None:
    """There is nothing to go towards: the job ends, named by its input."""
    voice = InputFile(LIBRIVOX, (await probe(LIBRIVOX)).info)
    silence = await put(tmp_path / "silence.wav", np.zeros((16_000, 1), np.float32), 16_000)
    with pytest.raises(InvalidInput, match=r"^inputs\.reference: there is no voice"):
        await CONVERSION.run(
            parse(CONVERSION, {"strength": 0.5}), {"voice": voice, "reference": silence}, context, RunLimits()
        )


async def test_silence_can_be_converted(context: Recorder, tmp_path: Path) -> None:
    """A tenth of a second of nothing stays nothing, with a reference and as a robot."""
    silence = await put(tmp_path / "silence.wav", np.zeros((1_600, 1), np.float32), 16_000)
    reference = InputFile(LIBRIVOX, (await probe(LIBRIVOX)).info)
    request = parse(CONVERSION, {"preset": "robot", "semitones": 24, "volume_mix": 0})
    await CONVERSION.run(request, {"voice": silence, "reference": reference}, context, RunLimits())
    assert np.abs(soundfile.read(context.outputs[0].path)[0]).max() < 1e-3


@pytest.mark.usefixtures("short_stretches")
def test_the_work_is_done_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stretch is longer than it may be, so memory doesn't grow with the voice."""
    lengths = []
    analysed = world.analysed

    def measured(samples: world.Samples, *rest: Any) -> Any:
        lengths.append(len(samples))
        return analysed(samples, *rest)

    monkeypatch.setattr(world, "analysed", measured)
    after(SINGER, semitones=1.0)
    assert len(lengths) >= 3
    assert max(lengths) <= 2.01 * RATE
