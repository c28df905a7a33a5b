"""How outputs are finished and let through: formats, loudness, tags, waveforms, gates."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pyloudnorm
import pytest
import soundfile

from tasks.checking import Checked
from tasks.engines.child import close_children
from tasks.engines.contract import Commission
from tasks.engines.measuring import SAMPLES_PER_PIXEL, Meter
from tasks.engines.writing import OutputFile, Sound
from tasks.finish import Finish
from tasks.formats import Format
from tasks.gates import Gates, problem_with
from tasks.generation import Generation
from tasks.kind import AudioInfo, Context, EngineFailure, Output, QualityGate, RefusedRequest, RunLimits, Usage
from tasks.registry import RegistryError, registry
from tasks.validation import parse
from tests.unit.tasks.contexts import JOB, Recorder, Told
from tests.unit.tasks.whistle import Whistle, WhistleOptions

RATE = 44_100
SECONDS = 6


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    yield Recorder(tmp_path)
    await close_children()


def a_sound(peak: float = 0.5, seconds: float = SECONDS) -> Sound:
    """A chord that swells, the right channel at half the left one's level. No hiss: lossy formats leave that out."""
    frames = round(seconds * RATE)
    times = np.arange(frames) / RATE
    chord = np.sum([np.sin(2 * np.pi * hertz * times) for hertz in (220, 554, 1320, 2640)], axis=0)
    chord *= peak / np.abs(chord).max() * np.linspace(0.3, 1, frames)
    return np.asarray(np.stack([chord, chord / 2], axis=1), np.float32)


def written(folder: Path, finish: Finish, sound: Sound | None = None) -> list[Output]:
    """What is handed over of a sound, written in pieces as engines do."""
    told = Told(folder)
    with OutputFile(told, "song", finish, RATE, 2) as file:
        for piece in np.array_split(a_sound() if sound is None else sound, 7):
            file.write(piece)
        file.hand_over(Decimal(3))
    assert sorted(output.path for output in told.outputs) == sorted(folder.iterdir())
    return told.outputs


@pytest.mark.parametrize("audio_format", get_args(Format))
def test_tags_say_what_a_file_is_and_what_made_it(tmp_path: Path, audio_format: Format) -> None:
    """In every format: whoever finds it later can find its job."""
    finish = Finish(audio_format, title="Été", made_by={"job": str(JOB), "model": "studio", "seed": "7"})
    [output] = written(tmp_path, finish)
    with soundfile.SoundFile(output.path) as file:
        assert ("Été", f"job={JOB}; model=studio; seed=7") == (file.title, file.comment)


@pytest.mark.parametrize("audio_format", get_args(Format))
@pytest.mark.parametrize("loudness", [-30.0, -20.0])
def test_an_output_comes_at_the_loudness_that_was_asked(tmp_path: Path, audio_format: Format, loudness: float) -> None:
    """In every format, as an independent reading of the file finds it; its length stays."""
    [output] = written(tmp_path, Finish(audio_format, loudness=loudness))
    sound, rate = soundfile.read(output.path)
    assert pyloudnorm.Meter(rate).integrated_loudness(sound) == pytest.approx(loudness, abs=0.2)
    assert float(output.measures["loudness_lufs"]) == pytest.approx(loudness, abs=0.1)
    assert SECONDS * RATE == output.info.frames


def test_loudness_never_brings_clipping(tmp_path: Path) -> None:
    """Asked for more than its peaks allow, it stops at -1 dB and says how far it came."""
    [output] = written(tmp_path, Finish("wav", loudness=-5))
    sound, _ = soundfile.read(output.path)
    assert np.abs(sound).max() == pytest.approx(0.891, abs=0.001)
    assert ("-1.0", "0") == (output.measures["peak_db"], output.measures["clipped_ppm"])
    assert float(output.measures["loudness_lufs"]) < -5


@pytest.mark.parametrize("sound", [np.zeros((RATE, 2), np.float32), a_sound(seconds=0.2)], ids=["silent", "short"])
def test_what_has_no_loudness_stays_as_it_is(tmp_path: Path, sound: Sound) -> None:
    """Nothing is made of silence, and 0.2 seconds can't be measured."""
    [output] = written(tmp_path, Finish("wav", loudness=-20), sound)
    found, _ = soundfile.read(output.path, dtype="float32")
    assert np.abs(found - sound).max() < 1e-4
    assert "none" == output.measures["loudness_lufs"]


@pytest.mark.parametrize("audio_format", get_args(Format))
@pytest.mark.parametrize("loudness", [None, -20.0])
def test_what_is_no_number_is_not_sold(tmp_path: Path, audio_format: Format, loudness: float | None) -> None:
    """A model's overflow would be a bang in one format and a crash in another; no file of it is left."""
    sound = a_sound()
    sound[RATE : RATE + 10, 1] = np.nan
    with pytest.raises(QualityGate, match=r"^song has samples that are no numbers$"):
        written(tmp_path, Finish(audio_format, loudness=loudness), sound)
    assert [] == list(tmp_path.iterdir())


def test_a_waveform_goes_along_for_players(tmp_path: Path) -> None:
    """audiowaveform's JSON: the lowest and highest sample of each pixel; no use of anything, so it costs nothing."""
    song, peaks = written(tmp_path, Finish("flac", peaks=True, loudness=-20))
    drawn = json.loads(peaks.path.read_text())
    assert (2, 1, RATE, SAMPLES_PER_PIXEL, 8) == tuple(
        drawn[name] for name in ("version", "channels", "sample_rate", "samples_per_pixel", "bits")
    )
    sound, _ = soundfile.read(song.path)
    pixels = [sound[start : start + SAMPLES_PER_PIXEL] for start in range(0, len(sound), SAMPLES_PER_PIXEL)]
    assert drawn["length"] == len(pixels) == len(drawn["data"]) // 2
    expected = [value for pixel in pixels for value in (pixel.min() * 127, pixel.max() * 127)]
    assert np.abs(np.array(drawn["data"]) - expected).max() <= 1
    assert ("song-peaks", "application/json", False, Usage()) == (
        peaks.name,
        peaks.media_type,
        peaks.billable,
        peaks.usage,
    )


def test_a_meter_hears_level_and_clipping() -> None:
    """However the sound is cut into pieces."""
    meter = Meter(RATE, peaks=False)
    sound = np.full((1000, 2), 0.5, np.float32)
    sound[:5] = 1.0
    for piece in np.array_split(sound, 9):
        meter.hear(piece)
    assert {"peak_db": "0.0", "mean_db": "-6.0", "clipped_ppm": "5000"} == meter.measures
    assert {"peak_db": "-200.0", "mean_db": "-200.0", "clipped_ppm": "0"} == Meter(RATE, peaks=False).measures


# --- gates


def an_output(name: str = "song", seconds: int = 10, **measures: str) -> Output:
    info = AudioInfo(seconds * RATE, RATE, 2)
    return Output(name, Path("x"), "audio/wav", info, 1, "0", Usage(seconds_out=info.seconds), measures)


@pytest.mark.parametrize(
    ("output", "least", "gates", "problem"),
    [
        (an_output(peak_db="-70"), 10, Gates(silent_db=-60), "song is silent: -70 dB at its loudest, not above -60"),
        (an_output(peak_db="-59"), 10, Gates(silent_db=-60), None),
        (an_output(peak_db="-200"), 10, Gates(), None),
        (an_output(clipped_ppm="11"), 10, Gates(clipped_ppm=10), "song is clipped: 11 samples in a million, more"),
        (an_output(clipped_ppm="10"), 10, Gates(clipped_ppm=10), None),
        (an_output(seconds=9), 10, Gates(), "song is too short: 9.00 of 10.00 seconds"),
        (an_output(seconds=9), 10, Gates(short_seconds=1), None),
        (an_output(seconds=9), 10, Gates(short_seconds=None), None),
        (an_output(seconds=9), None, Gates(), None),
        (an_output(), 10, Gates(silent_db=-60, clipped_ppm=0), None),
    ],
)
def test_a_gate_says_what_it_measured(output: Output, least: int | None, gates: Gates, problem: str | None) -> None:
    """With the limit beside it; what was not measured passes."""
    found = problem_with(output, None if least is None else Decimal(least), gates)
    assert found is None if problem is None else (found or "").startswith(problem)


def checked(context: Context, names: tuple[str, ...] = ("song", "song-2")) -> Checked:
    asked = (Usage(seconds_out=Decimal(10)),) * len(names)
    return Checked(context, Commission("generation", None, {}, asked, names, Finish("wav")), Gates(), False)


async def test_nothing_comes_through_that_was_not_due(context: Recorder) -> None:
    """No further output, none under another name, none that uses more than was quoted."""
    through = checked(context)
    with pytest.raises(EngineFailure, match=r"^the engine made song-2 where song was due$"):
        await through.finished(an_output("song-2"))
    await through.finished(an_output("song", seconds=11))
    await through.finished(an_output("song-2"))
    with pytest.raises(EngineFailure, match=r"^the engine made song-3 where nothing was due$"):
        await through.finished(an_output("song-3"))
    assert [Decimal(10)] * 2 == [output.usage.seconds_out for output in context.outputs]


async def test_too_few_outputs_don_t_pass(context: Recorder) -> None:
    """An engine that ends in peace without all it was asked has not succeeded; what came stays counted."""
    through = checked(context)
    await through.finished(an_output("song"))
    with pytest.raises(QualityGate, match=r"^1 of the 2 outputs that were asked came$") as caught:
        through.check_all_came()
    assert {"outputs_asked": "2", "outputs_came": "1"} == caught.value.measures
    assert ["song"] == [output.name for output in context.outputs]


async def test_progress_never_goes_back(context: Recorder) -> None:
    """Whatever an engine says."""
    through = checked(context)
    for fraction in (0.2, 0.1, 0.5):
        through.progress(fraction, "x")
    assert [0.2, 0.2, 0.5] == [fraction for fraction, _ in context.told]


class Mute(Whistle):
    """Whistles, but nothing comes out."""

    deterministic: ClassVar[bool] = True

    async def run(self, commission: Commission, context: Context, limits: RunLimits) -> None:
        with OutputFile(_Handing(context), "song", commission.finish, 8_000, 1) as file:
            file.write(np.zeros((5 * 8_000, 1), np.float32))
            file.hand_over()
        await context.finished(_Handing.taken.pop())


class _Handing:
    """A `Report` for an engine that needs no child."""

    taken: ClassVar[list[Output]] = []

    def __init__(self, context: Context) -> None:
        self.workdir = context.workdir
        self.stop_asked = False

    def progress(self, fraction: float, stage: str) -> None:
        """Silent."""

    def finished(self, output: Output) -> None:
        self.taken.append(output)


async def test_a_silent_song_is_not_sold(context: Recorder) -> None:
    """The kind's own gates hold for each engine."""
    kind = Generation({"studio": Mute("mute", WhistleOptions())})
    request = parse(kind, {"prompt": "x", "seconds": 5, "model": "studio"})
    with pytest.raises(QualityGate, match=r"^song is silent: -200 dB at its loudest, not above -60$") as caught:
        await kind.run(request, {}, context, RunLimits())
    judged = {"output": "song", "peak_db": "-200.0", "seconds_in": "0", "seconds_out": "5.000000"}
    assert judged.items() <= caught.value.measures.items()
    assert [] == context.outputs


async def test_a_document_sets_the_gates(tmp_path: Path) -> None:
    """Each by itself; the others stay as they are."""
    document = tmp_path / "engines.toml"
    document.write_text('[gates.generation]\nsilent_db = "off"\n[gates.stem_split]\nclipped_ppm = 5\n')
    kinds: Mapping[str, Any] = registry(engines=document)
    assert Gates(silent_db=None, clipped_ppm=10_000) == kinds["generation"].gates
    assert Gates(clipped_ppm=5) == kinds["stem_split"].gates
    assert Gates() == kinds["vocal_conversion"].gates


@pytest.mark.parametrize(
    ("gates", "problem"),
    [
        ("[gates.generation]\nsilent = 3", "gates.generation.silent: is not a known field (did you mean silent_db?)"),
        ("[gates.generation]\nsilent_db = 3", "gates.generation.silent_db: must be between -200 and 0 (given 3"),
        ("[gates.song]\nsilent_db = -3", "gates.song: is not known (known: generation, vocal_conversion, stem_split)"),
    ],
)
def test_gates_with_a_mistake_are_refused(tmp_path: Path, gates: str, problem: str) -> None:
    """By their place in the document."""
    document = tmp_path / "engines.toml"
    document.write_text(gates)
    with pytest.raises(RegistryError) as refused:
        registry(engines=document)
    assert f"{document}: {problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("loudness", -3, "must be between -40 and -5"),
        ("title", "", "must not be empty"),
        ("title", "a\0b", "must not contain NUL characters"),
        ("title", "x" * 201, "must be at most 200 characters long (given 201)"),
        ("peaks", 1, ""),
        ("format", "m4a", "must be 'wav', 'flac', 'mp3' or 'ogg'"),
    ],
)
def test_finishing_that_can_t_be_is_refused(field: str, value: object, problem: str) -> None:
    """For each kind alike."""
    for kind in registry().values():
        given = {"prompt": "x", "seconds": 5} if kind.name == "generation" else {}
        with pytest.raises(RefusedRequest) as refused:
            parse(kind, {**given, field: value})
        assert field == refused.value.field
        assert problem in refused.value.problem
