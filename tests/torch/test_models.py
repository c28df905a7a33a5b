"""Local models with tiny random weights, through the true loading code: what they make, share, and how they stop."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tasks.engines.child import close_children
from tasks.kind import AudioInfo, EngineFailure, InputFile, RunLimits
from tasks.registry import prepared, registry
from tasks.tiers import Tiered
from tasks.validation import parse
from tests.torch import tiny
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.processes import children
from tests.waiting import wait_until

MISSING = [name for name in ("torch", "diffusers", "transformers", "demucs") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra torch is not installed: {', '.join(MISSING)} missing")

SECONDS = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny.ace_step(folder / "ace")
    tiny.demucs(folder / "stems")
    return folder


@pytest.fixture
def kinds(weights: Path) -> dict[str, Any]:
    document = weights / "engines.toml"
    document.write_text(
        '[engines.ace]\ntype = "ace_step"\nfolder = "ace"\nseconds_min = 1\ninference_steps = 4\n'
        '[engines.stems]\ntype = "demucs"\nfolder = "stems"\nmodel = "tiny"\ntrusted = true\n'
        '[tiers.generation]\nstudio = "ace"\n[tiers.stem_split]\nstudio = "stems"\n'
        # Random weights make what they make.
        '[gates.generation]\nsilent_db = "off"\nclipped_ppm = "off"\n'
    )
    found, problems = prepared(registry(engines=document), ["generation", "stem_split"])
    assert () == problems
    return dict(found)


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    yield Recorder(tmp_path)
    await close_children()


async def song(kind: Any, context: Recorder, **fields: Any) -> None:
    request = parse(kind, {"prompt": "warm piano", "seconds": SECONDS + 1, "model": "studio", **fields})
    await kind.run(request, {}, context, RunLimits())


def anew(context: Recorder) -> Recorder:
    folder = context.workdir / "next"
    folder.mkdir()
    return Recorder(folder)


async def split(kind: Any, context: Recorder, stems: list[str]) -> InputFile:
    path = context.workdir / "mix.wav"
    info = AudioInfo(SECONDS * 22_050, 22_050, 1)
    soundfile.write(path, 0.3 * np.sin(np.arange(info.frames) / 9), info.sample_rate)
    request = parse(kind, {"stems": stems, "model": "studio"})
    await kind.run(request, {"mix": InputFile(path, info)}, context, RunLimits())
    return InputFile(path, info)


async def test_a_model_makes_songs_and_another_takes_a_mix_apart(kinds: dict[str, Any], context: Recorder) -> None:
    """Exactly as long as asked, the same for the same seed, one process for both models, one loading for each."""
    await song(kinds["generation"], context, variants=2, lyrics="la la", bpm=90)
    assert [("song", 240_000, 48_000), ("song-2", 240_000, 48_000)] == [
        (output.name, output.info.frames, output.info.sample_rate) for output in context.outputs
    ]
    assert context.outputs[0].sha256 != context.outputs[1].sha256
    [process] = children()
    later = anew(context)
    began = time.process_time()
    await song(kinds["generation"], later, variants=2, lyrics="la la", bpm=90)
    assert [output.sha256 for output in context.outputs] == [output.sha256 for output in later.outputs]
    assert time.process_time() - began < 2  # nothing of it is done in the worker
    stems = anew(later)
    mix = await split(kinds["stem_split"], stems, ["drums", "vocals"])
    assert [("vocals", SECONDS * 44_100, 1), ("drums", SECONDS * 44_100, 1)] == [
        (output.name, output.info.frames, output.info.channels) for output in stems.outputs
    ]
    assert {mix.info.seconds} == {output.usage.seconds_in for output in stems.outputs}
    assert [process] == children()
    for one in (context, later, stems):
        fractions = [fraction for fraction, _ in one.told]
        assert (sorted(fractions), True) == (fractions, 0.05 < max(fractions) <= 1)


async def test_a_variant_is_what_it_is_alone(kinds: dict[str, Any], context: Recorder) -> None:
    """The second of two is the first of the next seed: exactly when made one by one, within a hair in one batch."""

    def sound(made: Recorder, number: int) -> Any:
        return soundfile.read(made.outputs[number].path)[0]

    engine = kinds["generation"].engines["studio"]
    await song(kinds["generation"], context, variants=2, seed=7)
    alone = anew(context)
    await song(kinds["generation"], alone, seed=8)
    assert np.array_equal(sound(context, 1), sound(alone, 0))
    engine.options = engine.options.model_copy(update={"songs_at_once": 2})
    together = anew(alone)
    await song(kinds["generation"], together, variants=2, seed=7)
    for number in range(2):
        assert np.abs(sound(context, number) - sound(together, number)).max() < 1e-5
    assert np.abs(sound(together, 0) - sound(together, 1)).max() > 0.01


async def test_a_cancel_stops_the_model_and_keeps_it(kinds: dict[str, Any], context: Recorder) -> None:
    """At its next step, within two seconds; the process and what it has loaded serve the next run."""
    await song(kinds["generation"], context)
    [process] = children()
    later = anew(context)
    slow = kinds["generation"].engines["studio"]
    slow.options = slow.options.model_copy(update={"inference_steps": 200})
    working = asyncio.create_task(song(kinds["generation"], later, seconds=60))
    await asyncio.to_thread(wait_until, lambda: any(stage == "making" for _, stage in later.told), "it makes")
    began = time.monotonic()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert time.monotonic() - began < 2
    slow.options = slow.options.model_copy(update={"inference_steps": 4})
    last = anew(later)
    await song(kinds["generation"], last)
    assert ([], ["song"], [process]) == (later.outputs, [one.name for one in last.outputs], children())


async def test_slots_take_turns_with_one_process(kinds: dict[str, Any], context: Recorder) -> None:
    """However many jobs of the device's models are there at once."""
    other = anew(context)
    stems = anew(other)
    await asyncio.gather(
        song(kinds["generation"], context),
        song(kinds["generation"], other, seed=1),
        split(kinds["stem_split"], stems, ["bass"]),
    )
    assert [1, 1, 1] == [len(one.outputs) for one in (context, other, stems)]
    assert 1 == len(children())


async def test_weights_that_can_t_be_loaded_are_our_failure(
    kinds: dict[str, Any], context: Recorder, weights: Path
) -> None:
    """And the next run works."""
    generation = kinds["generation"]
    assert isinstance(generation, Tiered)
    file = next((weights / "ace" / "transformer").glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    try:
        with pytest.raises(EngineFailure, match=r"^the model can't be loaded \("):
            await song(generation, context)
    finally:
        file.write_bytes(whole)
    await song(generation, later := anew(context))
    assert 1 == len(later.outputs)
