"""Which engine makes which tier of which kind: a TOML document, `FERMATA_ENGINES`, read once at start.

[engines.ace]                 # a name of yours
type = "ace_step_server"      # one of TYPES, or "module:Class" of your own
url = "https://ace.example"   # what its type takes: its `Options`

[tiers.generation]
studio = "ace"                # that engine; "embedded" the one we ship; "off" turns the tier down

[gates.generation]            # what its outputs must be to be sold: `tasks.gates`
silent_db = -50               # or "off"
"""

from __future__ import annotations

import difflib
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, cast

from pydantic import BeforeValidator

from tasks.engines.contract import Engine
from tasks.gates import Gates
from tasks.kind import RefusedRequest, Request
from tasks.tiers import Tiered
from tasks.validation import parse_as

#: The types of engine that we ship, and where each is. Loaded only where a document names them.
TYPES: Mapping[str, str] = {
    "cog": "tasks.engines.remote.cog:Cog",
    "ace_step_server": "tasks.engines.remote.ace_step:AceStepServer",
    "ace_step": "tasks.engines.torch.ace_step:AceStep",
    "demucs": "tasks.engines.torch.demucs:Demucs",
}
#: The engine that we ship for a tier, and no engine at all.
EMBEDDED, OFF = "embedded", "off"
#: Bytes that the document may have.
DOCUMENT_MAX = 256 * 1024


class EnginesError(Exception):
    """The document can't be used. The message says where, what is wrong, and what is known; never a secret."""


class Options(Request):
    """What one type of engine may be told in the document. Subclassed by each."""


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


#: A file or folder; a relative one lies beside the document.
PathOption = Annotated[Path, BeforeValidator(_path)]


class EngineType(Protocol):
    """A class of engines that a document can name."""

    Options: ClassVar[type[Options]]

    def __call__(self, name: str, options: Any) -> Engine:
        """The engine of this name. No I/O: that is `prepare`'s."""
        ...


def with_engines_of(document: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The kinds, their tiers made by the engines that the document names. Raises `EnginesError`."""
    content = _read(document)
    _known("", content, ("engines", "tiers", "gates"))
    engines = {
        name: _engine(document.parent, name, table) for name, table in _tables("engines", content.get("engines", {}))
    }
    tiered = {name: kind for name, kind in kinds.items() if isinstance(kind, Tiered)}
    for name, table in _tables("tiers", content.get("tiers", {})):
        _known("tiers", [name], tiered)
        tiered[name] = _with_tiers(tiered[name], table, engines)
    for name, table in _tables("gates", content.get("gates", {})):
        _known("gates", [name], tiered)
        tiered[name] = _with_gates(tiered[name], table)
    return {**kinds, **tiered}


def _read(document: Path) -> dict[str, Any]:
    try:
        with document.open("rb") as file:
            content = file.read(DOCUMENT_MAX + 1)
    except OSError as error:
        raise EnginesError(f"can't be read: {(error.strerror or 'unknown reason').lower()}") from None
    if len(content) > DOCUMENT_MAX:
        raise EnginesError(f"is larger than {DOCUMENT_MAX} bytes")
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnginesError(f"not TOML: {error}") from None
    except RecursionError:
        raise EnginesError("not TOML: nested too deeply") from None
    except ValueError:
        raise EnginesError("not TOML: a number of too many digits") from None


def _tables(where: str, found: object) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(found, Mapping) or not all(isinstance(table, Mapping) for table in found.values()):
        raise EnginesError(f"{where}: must hold tables, as [{where}.NAME]")
    return found.items()


def _engine(folder: Path, name: str, table: Mapping[str, Any]) -> Engine:
    where = f"engines.{name}"
    if name in (EMBEDDED, OFF):
        raise EnginesError(f"{where}: the name {name} has a meaning of its own; choose another")
    given = dict(table)
    sort = given.pop("type", None)
    if not isinstance(sort, str):
        raise EnginesError(f"{where}.type: is required (known: {', '.join(TYPES)}, or module:Class)")
    engine_type = _type(where, sort)
    try:
        options = parse_as(engine_type.Options, given)
    except RefusedRequest as error:
        raise EnginesError(f"{where}.{error.field}: {error.problem}") from None
    paths = {key: folder / value for key, value in options if isinstance(value, Path)}
    try:
        return engine_type(name, options.model_copy(update=paths))
    except ValueError as error:
        raise EnginesError(f"{where}: {error}") from None


def _type(where: str, sort: str) -> EngineType:
    if ":" not in sort:
        _known(f"{where}.type", [sort], TYPES, value=True)
        sort = TYPES[sort]
    module, _, name = sort.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise EnginesError(f"{where}.type: {sort} can't be loaded: {type(error).__name__}: {error}") from None
    missing = [
        part
        for part in ("Options", "kinds", "deterministic", "check", "prepare", "run", "close")
        if not hasattr(found, part)
    ]
    if missing:
        raise EnginesError(f"{where}.type: {sort} has no {missing[0]}, which every engine has")
    return cast("EngineType", found)


def _with_tiers(kind: Tiered, table: Mapping[str, Any], engines: Mapping[str, Engine]) -> Tiered:
    made_by = dict(kind.engines)
    _known(f"tiers.{kind.name}", table, kind.tiers)
    for tier, wanted in table.items():
        where = f"tiers.{kind.name}.{tier}"
        if wanted == OFF:
            made_by.pop(tier, None)
        elif wanted == EMBEDDED:
            if tier not in made_by:
                raise EnginesError(f"{where}: we ship no engine for it")
        else:
            _known(where, [wanted], engines, value=True)
            if kind.name not in engines[wanted].kinds:
                makes = ", ".join(sorted(engines[wanted].kinds))
                raise EnginesError(f"{where}: {wanted} can't make {kind.name} (it makes: {makes})")
            made_by[tier] = engines[wanted]
    return kind.with_engines(made_by)


def _with_gates(kind: Tiered, table: Mapping[str, Any]) -> Tiered:
    try:
        return kind.with_gates(parse_as(Gates, {**kind.gates.model_dump(), **table}))
    except RefusedRequest as error:
        raise EnginesError(f"gates.{kind.name}.{error.field}: {error.problem}") from None


def _known(where: str, names: Iterable[object], known: Iterable[str], *, value: bool = False) -> None:
    """Raises `EnginesError` for the first name that isn't known."""
    known = list(known)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name)[:64], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
        shown = ascii(str(name)[:32])[1:-1]
        place = f"{where}: " if value else f"{where}." if where else ""
        raise EnginesError(f"{place}{shown}{' is' if value else ': is'} not known ({hint})")
