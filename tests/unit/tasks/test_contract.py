"""Every engine that needs nothing but this machine is put through the contract; local models in tests/torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tasks.kind import AudioInfo, InputFile, Kind
from tasks.registry import close_engines, registry
from tests.providers import AceStepProvider, CogProvider, running
from tests.unit.tasks import contract
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.contract import Case
from tests.unit.tasks.material import pitch_curve, sung

RATE = 22_050
EMBEDDED = ("composer", "vocoder", "splitter")
REMOTE = ("cog", "ace_step_server")
OWN = ("whistle",)


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
            return Case(kind, far, {}, far, {})
        provider = CogProvider() if engine == "cog" else AceStepProvider()
        stack.enter_context(running(provider))
        document = (
            f'[engines.far]\ntype = "{engine}"\nurl = "{provider.url}"\nprivate = true\npoll_seconds = 0.01\n'
            '[tiers.generation]\nstudio = "far"\n'
        )

        def endless() -> None:
            provider.looks_needed = None

        made = Case(kind_of("generation", document), far, {}, far, {}, endless)
        provider.looks_needed = 1
        return made

    yield case
    for kind in opened:
        await close_engines({kind.name: kind})


@pytest.mark.parametrize("engine", [*EMBEDDED, *REMOTE, *OWN])
async def test_it_makes_what_was_quoted(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """In order, whole, measured, within the quote, its progress never going back."""
    await contract.makes_what_was_quoted(case_of(engine), context)


@pytest.mark.parametrize("engine", [*EMBEDDED, *OWN])
async def test_it_makes_the_same_again(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Those that promise it; services promise nothing of the kind."""
    case = case_of(engine)
    assert case.deterministic
    await contract.makes_the_same_again(case, context)


@pytest.mark.parametrize("engine", EMBEDDED)
async def test_it_stops_when_it_is_cancelled(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Within two seconds; the next run works. (For services: test_remote.py.)"""
    await contract.stops_when_it_is_cancelled(case_of(engine), context)


@pytest.mark.parametrize("engine", [*EMBEDDED, *REMOTE])
async def test_it_stops_at_its_deadline(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Whatever it is at."""
    await contract.stops_at_its_deadline(case_of(engine), context)


@pytest.mark.parametrize("engine", EMBEDDED)
async def test_it_survives_a_crash(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Of the process that its sound is made in."""
    await contract.survives_a_crash_of_its_process(case_of(engine), context)


@pytest.mark.parametrize("engine", ["composer", "splitter", *REMOTE, *OWN])
async def test_it_keeps_what_was_finished(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Of two outputs the first, when the engine dies before the second."""
    await contract.keeps_what_was_finished(case_of(engine), context)


@pytest.mark.parametrize("engine", [*EMBEDDED, *REMOTE, *OWN])
async def test_it_ends_for_want_of_memory(case_of: Callable[[str], Case], context: Recorder, engine: str) -> None:
    """Each writes its sound in a child that has a limit."""
    await contract.ends_for_want_of_memory(case_of(engine), context)
