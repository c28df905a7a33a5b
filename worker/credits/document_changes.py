"""What changed between two documents that people write: value by value, in words, whatever the order of the file.

Comments and layout count for nothing here; two documents without a change mean the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

#: A table of an array that has this key is known by it; others are known by their place.
_NAMES_ITSELF = "when"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs. None: it is not there on that side."""

    table: str
    key: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        place = f"[{self.table}] {self.key}" if self.table else self.key
        match self.before, self.after:
            case None, after:
                return f"+ {place} = {after}"
            case before, None:
                return f"- {place} = {before}"
            case before, after:
                return f"~ {place}: {before} -> {after}"


@dataclass(frozen=True, slots=True)
class _Order:
    """In which order tables with names stand: the first that matches counts."""

    names: tuple[str, ...]

    def among(self, other: _Order) -> tuple[str, ...]:
        """Those that the other has too: what is new or gone moves nothing."""
        return tuple(name for name in self.names if name in other.names)


def changes_between(before: str, after: str) -> tuple[Change, ...]:
    """Every value that differs, in the order of the new document; what is gone comes last.

    Both must be TOML, as books in the history are; else `tomllib.TOMLDecodeError`.
    """
    old, new = _values_of(before), _values_of(after)
    met = (_change(place, old.get(place), value) for place, value in new.items())
    gone = (_change(place, value, None) for place, value in old.items() if place not in new)
    return tuple(change for change in (*met, *gone) if change is not None)


def _change(place: tuple[str, str], before: object, after: object) -> Change | None:
    if isinstance(before, _Order) and isinstance(after, _Order):
        orders = before.among(after), after.among(before)
        return None if orders[0] == orders[1] else Change(*place, *(" · ".join(names) for names in orders))
    if isinstance(before, _Order) or isinstance(after, _Order) or _same(before, after):
        return None
    return Change(*place, *(None if value is None else _shown(value) for value in (before, after)))


def _values_of(document: str) -> dict[tuple[str, str], object]:
    return dict(_leaves("", tomllib.loads(document, parse_float=Decimal)))


def _leaves(table: str, values: Mapping[str, object]) -> Iterator[tuple[tuple[str, str], object]]:
    """Every value with the table and the key under which it stands."""
    for key, value in values.items():
        inner = f"{table}.{key}" if table else key
        if isinstance(value, dict):
            yield from _leaves(inner, value)
        elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            named = dict(_named(value))
            for name, part in named.items():
                yield from _leaves(f"{inner} {name}", part)
            yield (inner, "order"), _Order(tuple(named))
        else:
            yield (table, key), value


def _named(tables: list[Mapping[str, object]]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, part in enumerate(tables, start=1):
        condition = part.get(_NAMES_ITSELF)
        if isinstance(condition, dict):
            fields = ", ".join(f"{field} = {_shown(value)}" for field, value in sorted(condition.items()))
            yield f"if {fields}", {key: value for key, value in part.items() if key != _NAMES_ITSELF}
        else:
            yield str(number), part


def _same(one: object, other: object) -> bool:
    """Equal, and of one kind: `true` is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(map(_shown, value))}]"
        case _:
            return str(value)
