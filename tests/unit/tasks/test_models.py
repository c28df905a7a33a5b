"""Local models before they run: a tier without its extra, its weights or its trust does not start, and says why."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tasks.engines.contract import EngineNotReady
from tasks.engines.torch.demucs import Demucs, DemucsOptions
from tasks.engines.torch.device import check_folder, check_installed, check_trusted
from tasks.registry import RegistryError, prepared, registry


def test_a_missing_extra_is_named() -> None:
    """With what to install."""
    sentence = r"^ace needs nowhere_such: install fermata-worker with the extra torch$"
    with pytest.raises(EngineNotReady, match=sentence):
        check_installed("ace", ("json", "nowhere_such"))
    check_installed("ace", ("json",))


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the extra torch is installed here")
def test_without_the_extra_its_tier_alone_does_not_start(tmp_path: Path) -> None:
    """The others run."""
    document = tmp_path / "engines.toml"
    document.write_text('[engines.ace]\ntype = "ace_step"\nfolder = "ace"\n[tiers.generation]\nstudio = "ace"\n')
    _, [problem] = prepared(registry(engines=document), ["generation"])
    assert ("generation", "studio") == (problem.kind, problem.tier)
    assert problem.problem.startswith("ace needs torch, ")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """With the file that is looked for."""
    with pytest.raises(EngineNotReady, match=r"^ace has no weights: .*/model_index.json is not there"):
        check_folder("ace", tmp_path, ("model_index.json",))
    (tmp_path / "model_index.json").touch()
    check_folder("ace", tmp_path, ("model_index.json",))


def test_what_is_unpickled_must_be_trusted(tmp_path: Path) -> None:
    """By word in the document, and by who can write there."""
    (tmp_path / "tiny.yaml").touch(0o644)
    tmp_path.chmod(0o755)
    check_trusted("stems", tmp_path)
    (tmp_path / "tiny.yaml").chmod(0o666)
    with pytest.raises(EngineNotReady, match=r"^stems unpickles its weights, and .*tiny.yaml can be written by others"):
        check_trusted("stems", tmp_path)
    (tmp_path / "tiny.yaml").unlink()
    (tmp_path / "tiny.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(EngineNotReady, match=r"^stems can't look through its weights: .*tiny.yaml \(No such file"):
        check_trusted("stems", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("demucs") is None, reason="the extra torch is not installed")
def test_demucs_does_not_start_untrusted(tmp_path: Path) -> None:
    """Somebody has to say so."""
    (tmp_path / "tiny.yaml").touch()
    with pytest.raises(EngineNotReady, match=r"say trusted = true$"):
        Demucs("stems", DemucsOptions(folder=tmp_path, model="tiny")).prepare()


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ('device = "gpu"', "engines.ace.device: must look like ^(cpu|mps|cuda"),
        ('dtype = "int4"', "engines.ace.dtype: must be 'float32', 'bfloat16' or 'float16'"),
        ("folder = 3", "engines.ace.folder"),
        ("hub = true", "engines.ace.hub: is not a known field"),
    ],
)
def test_a_model_that_can_t_be_is_refused(tmp_path: Path, option: str, problem: str) -> None:
    """There is no word for fetching weights from a hub."""
    document = tmp_path / "engines.toml"
    folder = "" if option.startswith("folder") else 'folder = "x"\n'
    document.write_text(f'[engines.ace]\ntype = "ace_step"\n{folder}{option}\n')
    with pytest.raises(RegistryError) as refused:
        registry(engines=document)
    assert problem in str(refused.value)


def test_demucs_has_one_dtype(tmp_path: Path) -> None:
    """What it would not heed is refused."""
    document = tmp_path / "engines.toml"
    document.write_text('[engines.stems]\ntype = "demucs"\nfolder = "x"\ndtype = "float16"\n')
    with pytest.raises(RegistryError, match=r"engines\.stems: dtype: Demucs runs in float32 only$"):
        registry(engines=document)
