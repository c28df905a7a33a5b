"""The document that says which engine makes which tier: what it changes, and how it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasks.engines.child import close_children
from tasks.engines.contract import NotHere
from tasks.kind import EngineUnavailable, Kind, RefusedRequest, RunLimits
from tasks.registry import RegistryError, close_engines, lacking, prepared, registry
from tasks.tiers import Tiered
from tasks.validation import parse
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.whistle import Whistle

OWN = 'type = "tests.unit.tasks.whistle:Whistle"'


def kinds_of(folder: Path, document: str) -> dict[str, Kind]:
    path = folder / "engines.toml"
    path.write_text(document)
    return dict(registry(engines=path))


def engines_of(kind: Kind) -> dict[str, object]:
    assert isinstance(kind, Tiered)
    return dict(kind.engines)


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    yield Recorder(tmp_path)
    await close_children()


async def test_a_tier_is_made_by_the_engine_that_the_document_names(context: Recorder, tmp_path: Path) -> None:
    """Only that tier: the others stay with the engine that we ship, and so do other kinds."""
    kinds = kinds_of(tmp_path, f'[engines.tin]\n{OWN}\nhertz = 880\n[tiers.generation]\nstudio = "tin"\n')
    made_by = engines_of(kinds["generation"])
    assert isinstance(made_by["studio"], Whistle)
    assert not isinstance(made_by["standard"], Whistle)
    assert engines_of(registry()["stem_split"]).keys() == engines_of(kinds["stem_split"]).keys()
    request = parse(kinds["generation"], {"prompt": "x", "seconds": 5, "variants": 2, "model": "studio"})
    await kinds["generation"].run(request, {}, context, RunLimits())
    assert [("song", 8_000, 40_000), ("song-2", 8_000, 40_000)] == [
        (output.name, output.info.sample_rate, output.info.frames) for output in context.outputs
    ]


def test_an_engine_turns_down_what_it_cant_do_before_it_is_priced(tmp_path: Path) -> None:
    """Each tier's own engine is asked: what one can't do, another may."""
    kinds = kinds_of(tmp_path, f'[engines.tin]\n{OWN}\n[tiers.generation]\nstudio = "tin"\n')
    with pytest.raises(RefusedRequest, match=r"^lyrics: can't be whistled$"):
        parse(kinds["generation"], {"prompt": "x", "seconds": 5, "lyrics": "la", "model": "studio"})
    with pytest.raises(RefusedRequest, match=r"^lyrics: are not sung by this engine"):
        parse(kinds["generation"], {"prompt": "x", "seconds": 5, "lyrics": "la", "model": "draft"})


def test_a_tier_without_an_engine_is_not_offered(tmp_path: Path) -> None:
    """`off` turns a tier down, and a tier that we ship no engine for is down until the document names one."""
    kinds = kinds_of(tmp_path, '[tiers.generation]\ndraft = "off"\n')
    with pytest.raises(RefusedRequest, match=r"^model: draft is not offered here \(offered: standard, studio\)$"):
        parse(kinds["generation"], {"prompt": "x", "seconds": 5, "model": "draft"})
    with pytest.raises(RefusedRequest, match=r"^model: studio is not offered here \(offered: standard\)$"):
        parse(kinds["stem_split"], {"model": "studio"})


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("[engines", "not TOML: "),
        ("[engine.ace]\n", "engine: is not known (did you mean engines?)"),
        ("engines = 3\n", "engines: must hold tables, as [engines.NAME]"),
        ("[engines.ace]\n", "engines.ace.type: is required (known: "),
        ('[engines.ace]\ntype = "cogg"\n', "engines.ace.type: cogg is not known ("),
        ('[engines.ace]\ntype = "nowhere:Engine"\n', "engines.ace.type: nowhere:Engine can't be loaded: "),
        ('[engines.ace]\ntype = "decimal:Decimal"\n', "engines.ace.type: decimal:Decimal has no Options, which"),
        (f"[engines.off]\n{OWN}\n", "engines.off: the name off has a meaning of its own; choose another"),
        (f"[engines.tin]\n{OWN}\nhertzz = 3\n", "engines.tin.hertzz: is not a known field (did you mean hertz?)"),
        (f"[engines.tin]\n{OWN}\nhertz = 3\n", "engines.tin.hertz: must be between 100 and 2000 (given 3)"),
        ('[tiers.generatoin]\nstudio = "tin"\n', "tiers.generatoin: is not known (did you mean generation?)"),
        ('[tiers.generation]\nstdio = "tin"\n', "tiers.generation.stdio: is not known (did you mean studio?)"),
        ('[tiers.generation]\nstudio = "tin"\n', "tiers.generation.studio: tin is not known (known: none)"),
        ('[tiers.stem_split]\nstudio = "embedded"\n', "tiers.stem_split.studio: we ship no engine for it"),
        (
            f'[engines.tin]\n{OWN}\n[tiers.stem_split]\nstudio = "tin"\n',
            "tiers.stem_split.studio: tin can't make stem_split (it makes: generation)",
        ),
    ],
)
def test_a_document_with_a_mistake_is_refused(tmp_path: Path, document: str, problem: str) -> None:
    """One sentence: which file, where in it, what is wrong, what is known."""
    with pytest.raises(RegistryError) as refused:
        kinds_of(tmp_path, document)
    assert str(refused.value).startswith(f"{tmp_path / 'engines.toml'}: {problem}")
    assert "\n" not in str(refused.value)


def test_a_missing_document_is_refused(tmp_path: Path) -> None:
    """Nothing starts with other engines than were asked for."""
    with pytest.raises(RegistryError, match="can't be read: no such file or directory"):
        registry(engines=tmp_path / "nowhere.toml")


async def test_an_engine_that_cant_start_here_takes_only_its_tier_along(context: Recorder, tmp_path: Path) -> None:
    """The worker is told why; a job of that tier that comes all the same is for another worker, and the rest runs."""
    document = f'[engines.tin]\n{OWN}\nbreath = "gone"\n[tiers.generation]\nstudio = "tin"\n'
    kinds, problems = prepared(kinds_of(tmp_path, document), ["generation", "stem_split"])
    assert [("generation", "studio", "tin has no breath: gone is missing")] == [
        (one.kind, one.tier, one.problem) for one in problems
    ]
    assert isinstance(engines_of(kinds["generation"])["studio"], NotHere)
    request = parse(kinds["generation"], {"prompt": "x", "seconds": 5, "model": "studio"})
    with pytest.raises(EngineUnavailable, match="was not started on this worker"):
        await kinds["generation"].run(request, {}, context, RunLimits())
    draft = parse(kinds["generation"], {"prompt": "x", "seconds": 5, "model": "draft"})
    await kinds["generation"].run(draft, {}, context, RunLimits(memory_bytes=2 * 1024**3))
    assert ["song"] == [output.name for output in context.outputs]


def test_a_relative_path_lies_beside_the_document(tmp_path: Path) -> None:
    """Wherever the worker was started."""
    document = f'[engines.tin]\n{OWN}\nbreath = "air"\n[tiers.generation]\nstudio = "tin"\n'
    kinds = kinds_of(tmp_path, document)
    (tmp_path / "air").touch()
    assert () == prepared(kinds, ["generation"])[1]


def test_a_worker_that_can_start_nothing_of_a_kind_says_so(tmp_path: Path) -> None:
    """Rather than take jobs that it can only leave lying. What else it is there for runs, and those are left."""
    tiers = "\n".join(f'{tier} = "tin"' for tier in ("draft", "standard", "studio"))
    kinds = kinds_of(tmp_path, f'[engines.tin]\n{OWN}\nbreath = "gone"\n[tiers.generation]\n{tiers}\n')
    with pytest.raises(RegistryError, match=r"^no tier of generation can be started here: tin has no breath: gone is"):
        prepared(kinds, ["generation"])
    assert prepared(kinds, ["stem_split"])[1] == ()
    both, problems = prepared(kinds, ["generation", "stem_split"])
    assert {"draft", "standard", "studio"} == {one.tier for one in problems}
    assert {f"generation/{one}" for one in ("", "draft", "standard", "studio")} == lacking(both, ["generation"])
    assert not lacking(both, ["stem_split"]) - {"stem_split/studio"}


async def test_every_engine_is_closed_once(tmp_path: Path) -> None:
    """Also one that makes several tiers."""
    kinds = kinds_of(tmp_path, f'[engines.tin]\n{OWN}\n[tiers.generation]\nstudio = "tin"\ndraft = "tin"\n')
    await close_engines(kinds)
    tin = engines_of(kinds["generation"])["studio"]
    assert isinstance(tin, Whistle)
    assert tin.closed


def test_what_no_engine_makes_is_lacking(tmp_path: Path) -> None:
    """Off, without an engine, or not started; a kind's default tier by the name that requests leave out, too."""
    document = (
        '[engines.far]\ntype = "cog"\nurl = "https://far.example"\nsecret_file = "nowhere"\n'
        '[tiers.generation]\nstandard = "far"\ndraft = "off"\n'
    )
    kinds, _ = prepared(kinds_of(tmp_path, document), ["generation", "stem_split"])
    assert {"generation/standard", "generation/", "generation/draft", "stem_split/studio"} == lacking(
        kinds, ["generation", "stem_split"]
    )
    assert set() == lacking(registry(), ["generation", "vocal_conversion"])
    assert {"stem_split/studio"} == lacking(registry(), ["stem_split"])  # no engine of ours: a document names one
