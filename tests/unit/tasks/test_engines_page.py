"""docs/ENGINES.md: its documents can be read, and its engine of one's own works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.engines.offer import TYPES
from tasks.kind import RefusedRequest
from tasks.registry import RegistryError, registry
from tasks.validation import parse
from tests.unit.tasks import contract
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.contract import Case

PAGE = (Path(__file__).parents[3] / "docs" / "ENGINES.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


async def test_the_engine_of_ones_own_works(context: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied from the page, it keeps the contract."""
    [source], [_, document] = blocks("python"), blocks("toml")
    (tmp_path / "humming.py").write_text(source)
    (tmp_path / "engines.toml").write_text(document)
    monkeypatch.syspath_prepend(tmp_path)
    kind = registry(engines=tmp_path / "engines.toml")["generation"]
    params = {"prompt": "x", "seconds": 6, "model": "draft", "variants": 2, "peaks": False}
    case = Case(kind, params, {}, params, {})
    await contract.makes_what_was_quoted(case, context)
    await contract.makes_the_same_again(case, contract.anew(context))
    with pytest.raises(RefusedRequest, match=r"^lyrics: can't be hummed$"):
        parse(kind, {**params, "lyrics": "la"})
    (tmp_path / "engines.toml").write_text(document.replace("220", "2"))
    with pytest.raises(RegistryError, match=r"engines.hum.hertz: must be between 50 and 1000"):
        registry(engines=tmp_path / "engines.toml")


def test_the_document_on_the_page_is_right(tmp_path: Path) -> None:
    """Every line of it is known."""
    (tmp_path / "engines.toml").write_text(blocks("toml")[0])
    registry(engines=tmp_path / "engines.toml")


def test_the_page_names_every_type() -> None:
    """And no other."""
    types = PAGE.partition("## Services")[0]
    assert set(TYPES) == set(re.findall(r"^\| `(\w+)`", types, re.MULTILINE))
