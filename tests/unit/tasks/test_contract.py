"""Every engine that needs nothing but this machine is put through the contract; local models in tests/torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from tasks.engines.offer import TYPES
from tasks.kind import AudioInfo, InputFile, Kind
from tasks.registry import SHIPPED, close_engines, registry
from tasks.tiers import Tiered
from tests.providers import AceStepProvider, CogProvider, running
from tests.unit.tasks import contract
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.contract import Case
from tests.unit.tasks.material import pitch_curve, sung

RATE = 22_050


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InputFile]:
    """A voice of two seconds, and of a minute."""
    folder, voice = tmp_path_factory.mktemp("material"), sung(pitch_curve([220.0, 247.0], 1.0, RATE), RATE) * 0.5
    found = {}
    for name, sound in (("short", voice), ("long", np.tile(voice, 30))):
        soundfile.write(folder / f"{name}.wav", sound, RATE)
        found[name] = InputFile(folder / f"{name}.wav", AudioInfo(len(sound), RATE, 1))
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def case_of(
    material: dict[str, InputFile], tmp_path: Path, stack: ExitStack
) -> AsyncIterator[Callable[[str], Case]]:
    """The case of an engine, by its name."""
    opened: list[Kind] = []

    def kind_of(name: str, document: str) -> Kind:
        (tmp_path / "engines.toml").write_text(document)
        kind = registry(engines=tmp_path / "engines.toml")[name]
        opened.append(kind)
        return kind

    def case(engine: str) -> Case:
        song = {"prompt": "rock", "seconds": 10, "variants": 2, "format": "flac"}
        hours = {"prompt": "rock", "seconds": 300, "variants": 4, "model": "studio"}
        if engine == "composer":
            return Case(registry()["generation"], song, {}, hours, {})
        if engine == "vocoder":
            short, long = {"voice": material["short"]}, {"voice": material["long"]}
            params: dict[str, Any] = {"semitones": 2, "model": "studio"}
            return Case(registry()["vocal_conversion"], params, short, params, long)
        if engine == "splitter":
            short, long = {"mix": material["short"]}, {"mix": material["long"]}
            return Case(registry()["stem_split"], {"stems": ["vocals", "drums"]}, short, {}, long)
        far = {**song, "model": "studio"}
        if engine == "whistle":
            own = 'type = "tests.unit.tasks.whistle:Whistle"'
            kind = kind_of("generation", f'[engines.tin]\n{own}\n[tiers.generation]\nstudio = "tin"\n')
            return Case(kind, far, {}, hours, {})
        provider = CogProvider() if engine == "cog" else AceStepProvider()
        stack.enter_context(running(provider))
        document = (
            f'[engines.far]\ntype = "{engine}"\nurl = "{provider.url}"\nprivate = true\npoll_seconds = 0.01\n'
            "patience_seconds = 0.5\n"
            '[tiers.generation]\nstudio = "far"\n'
        )

        def endless() -> None:
            provider.looks_needed = None

        def mend() -> None:
            provider.looks_needed, provider.dead = 1, False

        mend()
        return Case(kind_of("generation", document), far, {}, far, {}, endless, mend, provider.die)

    yield case
    for kind in opened:
        await close_engines({kind.name: kind})


@pytest.mark.parametrize("name", contract.PROPERTIES)
@pytest.mark.parametrize("engine", [*contract.EMBEDDED, *contract.SERVICES, *contract.OWN])
async def test_every_engine_keeps_the_contract(
    case_of: Callable[[str], Case], context: Recorder, engine: str, name: str
) -> None:
    """Each property of each engine that needs nothing but this machine."""
    await contract.goes_through(engine, name, case_of(engine), context)


def test_no_engine_is_left_out() -> None:
    """Whatever a document can name, and whatever makes a tier without one, has its row; no exception is for nobody."""
    assert set(TYPES) == {*contract.SERVICES, *contract.MODELS}
    shipped = {type(engine).__name__.lower() for kind in SHIPPED for engine in cast("Tiered", kind).engines.values()}
    assert shipped == set(contract.EMBEDDED)
    engines = {*contract.EMBEDDED, *contract.SERVICES, *contract.OWN, *contract.MODELS}
    assert all(engine in engines and name in contract.PROPERTIES for engine, name in contract.EXCEPT)
