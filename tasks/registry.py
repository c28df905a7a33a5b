"""Which kinds there are. A fourth kind is its own module and one line here, or one entry in `extra_kinds`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

from tasks.engines.contract import Engine, EngineNotReady, Link, NotHere
from tasks.engines.offer import EnginesError, with_engines_of
from tasks.generation import Generation
from tasks.kind import Kind, Request
from tasks.stem_split import StemSplit
from tasks.tiers import Tiered
from tasks.vocal_conversion import VocalConversion

#: The kinds we ship.
SHIPPED: tuple[Kind, ...] = (Generation(), VocalConversion(), StemSplit())


class RegistryError(Exception):
    """A kind can't be registered. The message names the entry and what is wrong with it."""


def registry(extra: str = "", engines: Path | None = None) -> Mapping[str, Kind]:
    """Every kind by its name: those we ship, and those that `extra` names as "module:object,module:object".

    An object is a kind or a class of one that takes no arguments. `engines` is a document that says which engine
    makes which tier (see `tasks.engines.offer`). Raises `RegistryError`.
    """
    kinds = {kind.name: kind for kind in SHIPPED}
    for entry in filter(None, (part.strip() for part in extra.split(","))):
        kind = _loaded(entry)
        if kind.name in kinds:
            raise RegistryError(f"{entry}: there is a kind {kind.name!r} already")
        kinds[kind.name] = kind
    if engines is not None:
        try:
            kinds = with_engines_of(engines, kinds)
        except EnginesError as error:
            raise RegistryError(f"{engines}: {error}") from None
    return MappingProxyType(kinds)


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A tier whose engine can't run in this process."""

    kind: str
    tier: str
    problem: str  # one sentence


def prepared(
    kinds: Mapping[str, Kind], wanted: Collection[str], links: Collection[Link] = ()
) -> tuple[Mapping[str, Kind], tuple[NotStarted, ...]]:
    """The kinds with every engine of the `wanted` ones prepared, and the tiers where that failed.

    `links`: what providers can be given here. A job of such a tier that comes here all the same is left to another
    worker, as are those of a kind that no tier is left of. Raises `RegistryError` where nothing wanted is left.
    """
    started, problems, empty = dict(kinds), list[NotStarted](), dict[str, str]()
    verdicts: dict[int, str | None] = {}
    for name in wanted:
        kind: object = kinds[name]
        if not isinstance(kind, Tiered):
            continue
        engines: dict[str, Engine] = {}
        for tier, engine in kind.engines.items():
            problem = verdicts.setdefault(id(engine), _problem_at_start(engine, links))
            engines[tier] = engine if problem is None else NotHere(problem)
            if problem is not None:
                problems.append(NotStarted(name, tier, problem))
        if all(isinstance(engine, NotHere) for engine in engines.values()):
            empty[name] = "; ".join(dict.fromkeys(one.problem for one in problems if one.kind == name)) or "all are off"
        started[name] = cast("Kind", kind.with_engines(engines))
    if empty and empty.keys() >= set(wanted):
        raise RegistryError("; ".join(f"no tier of {name} can be started here: {why}" for name, why in empty.items()))
    return MappingProxyType(started), tuple(problems)


def lacking(kinds: Mapping[str, Kind], wanted: Collection[str]) -> frozenset[str]:
    """The tiers of the `wanted` kinds that no engine makes here, as "kind/tier"; "kind/" too for a kind's default."""
    found = set()
    for name in wanted:
        kind: object = kinds[name]
        if not isinstance(kind, Tiered):
            continue
        default = kinds[name].request_model.model_fields["model"].default
        missing = {tier for tier in kind.tiers if isinstance(kind.engines.get(tier, _NOWHERE), NotHere)}
        found |= {f"{name}/{tier}" for tier in missing} | ({f"{name}/"} if default in missing else set())
    return frozenset(found)


_NOWHERE = NotHere("no engine of the document makes it")

#: What is said where a link can't be given.
_NO_LINK = {
    Link.COMPLETION: "its provider is to say when work is done: set FERMATA_PUBLIC_URL and FERMATA_LINK_SECRET",
    Link.INPUT: "its provider is to fetch inputs: set FERMATA_PUBLIC_URL and FERMATA_LINK_SECRET, or use a bucket",
}


def _problem_at_start(engine: Engine, links: Collection[Link]) -> str | None:
    for link in sorted(getattr(engine, "links", frozenset()) - set(links)):
        return f"{getattr(engine, 'name', type(engine).__name__)}: {_NO_LINK[link]}"
    try:
        engine.prepare()
    except EngineNotReady as error:
        return str(error)
    return None


async def close_engines(kinds: Mapping[str, Kind]) -> None:
    """End what engines keep open: connections, processes."""
    found = {
        id(engine): engine for kind in kinds.values() if isinstance(kind, Tiered) for engine in kind.engines.values()
    }
    for engine in found.values():
        await engine.close()


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
