"""The compiled hot path: what is rewritten for it, that it behaves as the interpreted one, that it is never stale.

These run on both builds: `make test` has them interpreted, `make test-compiled` compiled.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from hatch_build import HOT, rewritten
from worker import compiled
from worker.credits.lots import BrokenInvariant, Entry, Lot, LotSource, Move
from worker.credits.outcomes import MEASURED, Ending
from worker.credits.page import DueRow, Order
from worker.credits.states import JobState

ROOT = Path(__file__).parents[2]
A_LOT = Lot(1, LotSource.TOPUP, 10, 10)


@pytest.mark.parametrize("name", HOT)
def test_every_line_stays_where_it_is(name: str) -> None:
    """So that a traceback of compiled code points at the line that people read."""
    source = (ROOT / name).read_text()
    before, after = source.split("\n"), rewritten(source).split("\n")
    moved = [line for line, (one, other) in enumerate(zip(before, after, strict=False), start=1) if one != other]
    for line in moved:
        assert before[line - 1] == "" or before[line - 1].startswith(("@", "from __future__")), f"{name}:{line}"
    ast.parse("\n".join(after))


@pytest.mark.parametrize("name", HOT)
def test_every_value_gets_its_own_init(name: str) -> None:
    """A value whose `__init__` dataclasses makes would be made interpreted."""
    for node in ast.parse(rewritten((ROOT / name).read_text())).body:
        if isinstance(node, ast.ClassDef) and any("init=False" in ast.unparse(one) for one in node.decorator_list):
            assert "__init__" in [one.name for one in node.body if isinstance(one, ast.FunctionDef)], node.name


def test_values_are_equal_copied_and_pickled_by_their_fields() -> None:
    """As the interpreted ones are."""
    order = Order("{}", "{}", None, {"task": "1"})
    for one in (A_LOT, Entry(1, Move.RESERVE, 3, "reserved")):
        assert one == copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == replace(one)  # noqa: S301
        assert hash(one) == hash(replace(one))
    assert order == copy.deepcopy(order)
    assert "Lot(lot_id=1, source=<LotSource.TOPUP: 'topup'>, granted=10, available=10," in repr(A_LOT)
    assert ["request", "inputs", "plan", "engine_state"] == [field.name for field in fields(Order)]
    assert Order.__match_args__ == ("request", "inputs", "plan", "engine_state")
    assert is_dataclass(DueRow)


def by_replace() -> Lot:
    return replace(A_LOT, available=11)


def by_name() -> Lot:
    return Lot(1, LotSource.GRANT, granted=10, available=11)


@pytest.mark.parametrize("make", [by_replace, by_name])
def test_a_value_is_checked_however_it_is_made(make: Callable[[], Lot]) -> None:
    """And the message is the same on both builds."""
    with pytest.raises(BrokenInvariant) as raised:
        make()
    assert str(raised.value) == "lot 1: granted 10 is not the sum of (11, 0, 0, 0, 0)"
    assert isinstance(raised.value, AssertionError)


def test_what_is_frozen_stays_so() -> None:
    """A charge of the book is one for all jobs."""
    with pytest.raises(FrozenInstanceError):
        MEASURED.percent = 3  # type: ignore[misc]


def test_no_value_takes_what_it_has_no_field_for() -> None:
    """A misspelt field is an error where it is written."""
    with pytest.raises(AttributeError):
        A_LOT.availabel = 3  # type: ignore[attr-defined]


def test_words_are_texts_and_members() -> None:
    """What is read from the database, written to it and compared by identity."""
    assert (JobState("queued"), "queued") == (JobState.QUEUED, f"{JobState.QUEUED}")
    assert pickle.loads(pickle.dumps(Ending.PARTIAL)) is Ending.PARTIAL  # noqa: S301


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build of one compiled module, as a wheel lays it out."""
    (tmp_path / "hot_for_a_test.py").write_text("WORD = 1\n")
    (tmp_path / f"hot_for_a_test{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    manifest = tmp_path / "worker" / "compiled.json"
    manifest.parent.mkdir()
    sha256 = hashlib.sha256((tmp_path / "hot_for_a_test.py").read_bytes()).hexdigest()
    manifest.write_text(json.dumps({"hot_for_a_test.py": sha256}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiled, "_MANIFEST", manifest)
    importlib.invalidate_caches()
    return tmp_path


def test_a_build_says_what_it_is(build: Path) -> None:
    """Compiled, with the modules that are."""
    assert (("hot_for_a_test",), "compiled") == (compiled.build_here().modules, str(compiled.build_here()))


def test_a_source_that_was_changed_after_it_was_compiled_stops_the_process(build: Path) -> None:
    """It would not be what runs."""
    (build / "hot_for_a_test.py").write_text("WORD = 2\n")
    with pytest.raises(compiled.StaleBuild, match=r"hot_for_a_test\.py"):
        compiled.build_here()


def test_a_build_for_another_python_runs_interpreted(build: Path) -> None:
    """The import system passes over its modules, so the sources are what runs, changed or not."""
    (build / f"hot_for_a_test{EXTENSION_SUFFIXES[0]}").rename(build / "hot_for_a_test.cpython-20-none.so")
    (build / "hot_for_a_test.py").write_text("WORD = 2\n")
    importlib.invalidate_caches()
    assert str(compiled.build_here()) == "interpreted"


def test_without_a_manifest_all_is_interpreted(build: Path) -> None:
    """The tree, and a wheel that was built without a compiler."""
    (build / "worker" / "compiled.json").unlink()
    assert str(compiled.build_here()) == "interpreted"


def test_the_tree_holds_nothing_compiled() -> None:
    """What is edited is what runs."""
    found: list[Any] = [path for package in ("worker", "config", "tasks") for path in (ROOT / package).rglob("*.so")]
    assert ([], False) == (found, (ROOT / "worker" / "compiled.json").exists())
