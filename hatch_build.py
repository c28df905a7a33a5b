"""Compile the hot path into the wheel, with mypyc: `HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip install .`

Off unless it is asked for: without a C compiler everything runs interpreted, from the same sources. Compiled modules
only ever lie in a wheel, beside the sources they were made of and with their checksums (`worker/compiled.json`), never
in the tree that people edit. See docs/decisions/0021-compiled-hot-path.md.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
import sysconfig
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What a claim and a settle run through, and nothing that seldom runs: a compiled module has to earn its place.
HOT = (
    "worker/credits/account_ledger.py",
    "worker/credits/allocation.py",
    "worker/credits/lots.py",
    "worker/credits/notices.py",
    "worker/credits/operations.py",
    "worker/credits/outcomes.py",
    "worker/credits/page.py",
    "worker/credits/states.py",
    "worker/store/apply.py",
    "worker/store/deciding.py",
    "worker/store/gather.py",
    "worker/store/group_commit.py",
)
PACKAGES = ("config", "fermata_client", "tasks", "worker")
MANIFEST = "worker/compiled.json"

#: Types of other people's packages are not looked at: the build needs none of them installed.
_MYPY = """
[mypy]
follow_imports = silent
ignore_missing_imports = true

[mypy-asyncpg.*,msgspec.*,pydantic.*,pydantic_settings.*,sqlalchemy.*,structlog.*]
follow_imports = skip
"""


class CustomBuildHook(BuildHookInterface[Any]):
    """Asked by hatchling for each wheel, once it is enabled."""

    def dependencies(self) -> list[str]:
        """What compiling takes, at the versions that were tried."""
        pins = (Path(self.root) / "constraints.txt").read_text().splitlines()
        return [pin for pin in pins if re.match(r"(mypy|setuptools)==", pin)]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules. Raises where they can't be made: nobody gets less than was asked for."""
        if version == "editable":  # runs from the tree
            return
        if missing := what_is_missing():
            raise RuntimeError(f"compiling takes {missing}")
        folder = tempfile.mkdtemp(prefix="fermata-compiled-")
        self._folder = folder
        build_data["force_include"].update(compiled(Path(self.root), Path(folder)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Nothing stays but the wheel."""
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)


def what_is_missing() -> str | None:
    """What a machine needs and this one has not, in words."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"a C compiler ({compiler}): apt-get install gcc libc6-dev"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers (Python.h): apt-get install python3-dev"
    return None


def compiled(root: Path, folder: Path) -> dict[str, str]:
    """Compile what is hot in the tree at `root`, in `folder`. Returns each file made, with its place in a wheel."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mypy.ini").write_text(_MYPY)
    checksums = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in HOT}
    for name in HOT:
        (folder / name).write_text(rewritten((root / name).read_text()))
    with chdir(folder):
        extensions = mypycify(
            ["--config-file=mypy.ini", *HOT], opt_level="2", debug_level="0", target_dir="c", group_name="fermata"
        )
        command = build_ext(Distribution({"name": "fermata-worker", "ext_modules": extensions}))
        command.ensure_finalized()
        command.build_lib, command.build_temp = "made", "c"
        command.run()
    made = folder / "made"
    (made / MANIFEST).write_text(json.dumps(checksums, indent=2))
    return {str(path): str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}


def rewritten(source: str) -> str:
    """The module with an `__init__` in each dataclass, so that mypyc compiles that, too; each line stays where it is.

    What `dataclasses` makes is made at run time, interpreted; of what a batch makes, that is most of the work. What it
    makes else (equality, hash, `replace`) stays its own. Frozen dataclasses stay whole: they guard themselves in it.
    Copies and pickles are made by it as well: a compiled class makes no instance without one.
    """
    lines = source.split("\n")
    for node in ast.parse(source).body:
        match node:
            case ast.ImportFrom(module="__future__", lineno=line):
                lines[line - 1] += "; import builtins; from dataclasses import dataclass"
            case ast.ClassDef(decorator_list=[decorator]) if (options := _options_of(decorator)) is not None:
                if "frozen=True" not in options:
                    options = ["init=False", *options]
                    assert node.end_lineno is not None
                    for place, method in enumerate(_methods_of(node), start=node.end_lineno):
                        _fill(lines, place, f"    {method}")
                lines[decorator.lineno - 1] = f"@dataclass({', '.join(options)})"
    return "\n".join(lines)


def _fill(lines: list[str], place: int, text: str) -> None:
    """Write into a line that is empty, counted from 0. Two are behind each class but the last."""
    if place == len(lines):
        lines.append("")
    assert lines[place] == "", f"line {place + 1} is not empty: {lines[place]}"
    lines[place] = text


def _options_of(decorator: ast.expr) -> list[str] | None:
    """The options of a dataclass, slots left out: compiled classes have them anyway. None: it is no dataclass."""
    match decorator:
        case ast.Name("value"):  # worker/credits/values.py
            return ["unsafe_hash=True"]
        case ast.Name("dataclass"):
            return []
        case ast.Call(ast.Name("dataclass")):
            return [ast.unparse(option) for option in decorator.keywords if option.arg != "slots"]
    return None


def _methods_of(node: ast.ClassDef) -> tuple[str, str]:
    parameters, steps, places = ["self"], [], []
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    names = {ast.unparse(one.target) for one in fields}
    for one in fields:
        name, kind = ast.unparse(one.target), ast.unparse(one.annotation)
        if kind.startswith("ClassVar"):
            continue
        if kind in names:  # a field called `bytes` of the type of that name
            kind = f"builtins.{kind}"
        places.append(f"self.{name}")
        match one.value:
            case None:
                parameters.append(f"{name}: {kind}")
                steps.append(f"self.{name} = {name}")
            case ast.Call(ast.Name("field"), keywords=[ast.keyword("default_factory", made)]):
                parameters.append(f"{name}: {kind} | None = None")
                steps.append(f"self.{name} = {ast.unparse(made)}() if {name} is None else {name}")
            case default:
                parameters.append(f"{name}: {kind} = {ast.unparse(default)}")
                steps.append(f"self.{name} = {name}")
    if any(isinstance(one, ast.FunctionDef) and one.name == "__post_init__" for one in node.body):
        steps.append("self.__post_init__()")
    values = "".join(f"{place}, " for place in places)
    return (
        f"def __init__({', '.join(parameters)}) -> None: {'; '.join(steps) or 'pass'}",
        f"def __reduce__(self) -> tuple[object, ...]: return {node.name}, ({values})",
    )


if __name__ == "__main__":  # whether this machine can: the reason why not, and 1
    if reason := what_is_missing():
        sys.exit(f"no compiled build here: it takes {reason}")
