"""Claims and the tests that hold them: a place is `folder/file.py::test_name`, under `tests`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


def missing(places: Iterable[str]) -> list[str]:
    """The places where no test of that name stands."""
    return sorted({place for place in places if place.partition("::")[2] not in _tests_of(place.partition("::")[0])})


@cache
def _tests_of(file: str) -> frozenset[str]:
    path = TESTS / file
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, functions) and node.name.startswith("test_")
    )
