"""The numbers of a price book as fields of a form, and the document with other numbers, its comments kept. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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


def fields_with(fields: tuple[NumberField, ...], typed: Mapping[str, str]) -> tuple[NumberField, ...]:
    """The fields with what was typed into them and is not in the document; what has no place there comes last."""
    places = {field.place for field in fields}
    lost = [(*place.rpartition("/"), text) for place, text in typed.items() if place not in places]
    return (
        *(replace(field, value=typed.get(field.place, field.value)) for field in fields),
        *(NumberField(f"{path}{slash}{key}", path.replace("/", " "), key, text) for path, slash, key, text in lost),
    )


def with_numbers(document: str, typed: Mapping[str, str], were: Mapping[str, str] | None = None) -> str:
    """The document with these numbers at these places.

    `were`: the numbers over which they were typed. Raises `Refused` for what is no number, or no place, and for a
    number that the document has changed too: which of both is meant is not guessed.
    """
    try:
        parsed = tomlkit.parse(document)
    except TOMLKitError as error:
        raise Refused("document", f"is no TOML: {error}") from None
    now = {field.place: field for field in _numbers(parsed, (), ())}
    for place, text in typed.items():
        if place not in now:
            if not text.strip():
                continue
            gone = "it was changed meanwhile; empty the field to go on without it"
            raise Refused("document", f"has no number at {place[:80]}: {gone}")
        if text.strip() != now[place].value:
            if (were or {}).get(place, now[place].value) != now[place].value:
                both = f"is {now[place].value} in the document and {text.strip()[:20]} in the form: make them the same"
                raise Refused(f"[{now[place].table}] {now[place].key}", both)
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
