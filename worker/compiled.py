"""Whether the hot path runs compiled (`hatch_build.py`), and whether it is what the sources beside it say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

#: Written by a build that compiles: each compiled module's source, and its sha256.
_MANIFEST = Path(__file__).with_name("compiled.json")


class StaleBuild(RuntimeError):
    """A source was changed after it was compiled: what would run is not what stands there. Install it again."""


@dataclass(frozen=True, slots=True)
class Build:
    """What runs here."""

    #: Modules that run compiled; none where the build had no compiler, or was for another Python.
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "compiled" if self.modules else "interpreted"


def build_here() -> Build:
    """The build that runs. Raises `StaleBuild`."""
    if not _MANIFEST.exists():
        return Build()
    root = _MANIFEST.parent.parent
    names = []
    for path, sha256 in json.loads(_MANIFEST.read_text()).items():
        name = path.removesuffix(".py").replace("/", ".")
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES)):
            if hashlib.sha256((root / path).read_bytes()).hexdigest() != sha256:
                raise StaleBuild(f"{path} is not the source that was compiled: install fermata-worker again")
            names.append(name)
    return Build(tuple(names))
