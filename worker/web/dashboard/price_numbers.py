"""The numbers of a price book as fields of a form, and the document with other numbers, its comments kept. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Float, Integer

from worker.store.errors import Refused

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class NumberField:
    """One number. `place` finds it in the document: keys and positions, joined by `/`."""

    place: str
    table: str
    key: str
    value: str


def numbers_of(document: str) -> tuple[NumberField, ...]:
    """Every number of a document, in its order; none where it is no TOML."""
    try:
        return tuple(_numbers(tomlkit.parse(document), (), ()))
    except TOMLKitError:
        return ()


def with_numbers(document: str, typed: Mapping[str, str]) -> str:
    """The document with these numbers at these places. Raises `Refused` for what is no number, or no place."""
    try:
        parsed = tomlkit.parse(document)
    except TOMLKitError as error:
        raise Refused("document", f"is no TOML: {error}") from None
    now = {field.place: field for field in _numbers(parsed, (), ())}
    for place, text in typed.items():
        if place not in now:
            raise Refused("document", f"has no number at {place[:80]}: it was changed meanwhile")
        if text.strip() != now[place].value:
            _put(parsed, place, text.strip(), now[place])
    return tomlkit.dumps(parsed)


def _put(parsed: Any, place: str, text: str, field: NumberField) -> None:
    if not _NUMBER.fullmatch(text):
        raise Refused(f"[{field.table}] {field.key}", "must be a number like 4 or 0.5, at most six places")
    container = parsed
    *path, key = place.split("/")
    for step in path:
        container = container[int(step)] if isinstance(container, AoT) else container[step]
    # A decimal is written as it was typed, never through a float.
    container[key] = tomlkit.parse(f"x = {text}")["x"]


def _numbers(value: Any, path: tuple[str, ...], name: tuple[str, ...]) -> Iterator[NumberField]:
    for key, item in value.items():
        if "/" in key:
            continue  # no place names it, and no book has such a key
        if isinstance(item, AoT):
            for place, table in enumerate(item):
                yield from _numbers(table, (*path, key, str(place)), (*name, f"{key} {_said(table, place)}"))
        elif isinstance(item, Mapping):
            if key != "when":
                yield from _numbers(item, (*path, key), (*name, key))
        elif isinstance(item, Integer | Float) and not isinstance(item, bool):
            yield NumberField("/".join((*path, key)), " ".join(name), key, _as_written(item))


def _said(table: Any, place: int) -> str:
    """What an entry of a list is known by: what it matches, else its number."""
    when = table.get("when")
    named = when if isinstance(when, Mapping) else {}
    return ", ".join(f"{key} {value}" for key, value in named.items()) or str(place + 1)


def _as_written(item: Integer | Float) -> str:
    """In tens, whatever TOML lets people write; what no decimal can hold, as it stands there."""
    try:
        return str(int(item) if isinstance(item, Integer) else Decimal(item.as_string().replace("_", "")))
    except (ArithmeticError, ValueError):
        return item.as_string()
