"""Local models are put through the same contract as every engine. Their memory is watched, not limited."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tasks.engines.child import close_children
from tasks.kind import AudioInfo, InputFile
from tasks.registry import registry
from tests.torch import tiny
from tests.unit.tasks import contract
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.contract import Case

MISSING = [name for name in ("torch", "diffusers", "transformers", "demucs") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra torch is not installed: {', '.join(MISSING)} missing")

RATE = 44_100


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("models")
    tiny.ace_step(folder / "ace")
    tiny.demucs(folder / "stems")
    (folder / "engines.toml").write_text(
        '[engines.ace]\ntype = "ace_step"\nfolder = "ace"\nseconds_min = 1\ninference_steps = 4\n'
        '[engines.stems]\ntype = "demucs"\nfolder = "stems"\nmodel = "tiny"\ntrusted = true\n'
        '[tiers.generation]\nstudio = "ace"\n[tiers.stem_split]\nstudio = "stems"\n'
        '[gates.generation]\nsilent_db = "off"\nclipped_ppm = "off"\n'
    )
    kinds = registry(engines=folder / "engines.toml")
    mixes = {}
    for name, seconds in (("short", 3), ("long", 300)):
        sound = 0.3 * np.sin(np.arange(seconds * RATE) / 9)
        soundfile.write(folder / f"{name}.wav", sound, RATE)
        mixes[name] = {"mix": InputFile(folder / f"{name}.wav", AudioInfo(len(sound), RATE, 1))}
    song = {"prompt": "rock", "seconds": 5, "variants": 2, "model": "studio"}
    stems = {"stems": ["vocals", "drums"], "model": "studio"}
    return {
        "ace_step": Case(kinds["generation"], song, {}, {**song, "seconds": 300}, {}),
        "demucs": Case(kinds["stem_split"], stems, mixes["short"], stems, mixes["long"]),
    }


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    folder = tmp_path / "attempt"
    folder.mkdir()
    yield Recorder(folder)
    await close_children()


@pytest.mark.parametrize("name", contract.PROPERTIES)
@pytest.mark.parametrize("model", contract.MODELS)
async def test_every_model_keeps_the_contract(cases: dict[str, Case], context: Recorder, model: str, name: str) -> None:
    """Each property of each model, on the CPU, where the same request gives the same bytes though none promises it."""
    await contract.goes_through(model, name, cases[model], context)
