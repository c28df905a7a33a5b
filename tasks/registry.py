"""Which kinds there are. A fourth kind is its own module and one line here, or one entry in `extra_kinds`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from tasks.generation import Generation
from tasks.kind import Kind, Request
from tasks.stem_split import StemSplit
from tasks.vocal_conversion import VocalConversion

#: The kinds we ship.
SHIPPED: tuple[Kind, ...] = (Generation(), VocalConversion(), StemSplit())


class RegistryError(Exception):
    """A kind can't be registered. The message names the entry and what is wrong with it."""


def registry(extra: str = "") -> Mapping[str, Kind]:
    """Every kind by its name: those we ship, and those that `extra` names as "module:object,module:object".

    An object is a kind or a class of one that takes no arguments. Raises `RegistryError`.
    """
    kinds = {kind.name: kind for kind in SHIPPED}
    for entry in filter(None, (part.strip() for part in extra.split(","))):
        kind = _loaded(entry)
        if kind.name in kinds:
            raise RegistryError(f"{entry}: there is a kind {kind.name!r} already")
        kinds[kind.name] = kind
    return MappingProxyType(kinds)


def _loaded(entry: str) -> Kind:
    module_name, separator, object_name = entry.partition(":")
    if not separator or not module_name or not object_name:
        raise RegistryError(f"{entry}: must be written module:object")
    try:
        found = getattr(importlib.import_module(module_name), object_name)
        kind = found() if isinstance(found, type) else found
    except Exception as error:
        raise RegistryError(f"{entry}: can't be loaded: {type(error).__name__}: {error}") from error
    if problem := _problem_with(kind):
        raise RegistryError(f"{entry}: {problem}")
    return cast("Kind", kind)


def _problem_with(kind: object) -> str | None:
    """What keeps an object from being a kind, or None."""
    name, model = getattr(kind, "name", None), getattr(kind, "request_model", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        return "its name must be lower-case letters, digits and _, at most 32"
    if not (isinstance(model, type) and issubclass(model, Request)):
        return "its request_model must be a tasks.kind.Request"
    if not isinstance(getattr(kind, "inputs", None), Mapping):
        return "its inputs must be a mapping of names to InputLimits"
    missing = [method for method in ("usage", "run") if not callable(getattr(kind, method, None))]
    return f"it has no {missing[0]}()" if missing else None
