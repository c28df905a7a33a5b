"""Reading the documents that people write (price books, plans): strictly, and to the end.

A document is used as a whole or refused as a whole. Every problem is found in one reading and names table, key
and reason; a misspelt name comes back with the nearest known one. Decimals stay decimals, never floats.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

T = TypeVar("T")

#: Characters a document may have: a hundred times what we ship, and parsed within a blink.
DOCUMENT_CHARS_MAX = 500_000

#: Digits after the point that a number may have; sums and products of such stay exact.
PLACES_MAX = 6


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document. `table` and `key` are empty where the whole document is meant."""

    table: str
    key: str
    reason: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.table and f"[{self.table}]", self.key) if part)
        return _printable(f"{place}: {self.reason}" if place else self.reason)


def _printable(line: str) -> str:
    """Names come from the document: none may carry a terminal's control characters."""
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in line)


class DocumentError(ValueError):
    """The document is refused as a whole. `problems` has all of them, in the order of reading."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Exponent:
    """A number like 1e3: one slip of a finger from 1e6, so it is refused where it stands."""

    text: str


def parsed(document: str, problems: list[Problem]) -> Section:
    """The document's root table; what is no TOML is a problem and reads as empty."""
    values: Mapping[str, object] = {}
    if len(document) > DOCUMENT_CHARS_MAX:
        problems.append(Problem("", "", f"longer than {DOCUMENT_CHARS_MAX} characters"))
    else:
        try:
            document.encode()  # half a surrogate pair is no text
            values = tomllib.loads(document, parse_float=_number)
        except RecursionError:
            problems.append(Problem("", "", "not TOML: nested too deeply"))
        except ValueError as error:
            problems.append(Problem("", "", f"not TOML: {error}"))
    return Section("", values, problems)


def _number(text: str) -> Decimal | _Exponent:
    return _Exponent(text) if "e" in text.lower() else Decimal(text)


def nearest(name: str, known: Collection[str]) -> str:
    """`; did you mean …?`, or which names there are, or nothing."""
    if matches := difflib.get_close_matches(name.lower(), sorted(known), n=1):
        return f"; did you mean {matches[0]}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


class Section:
    """One table while it is read. Each reader returns a value that fits, even where it had to note a problem.

    `close` comes last: it notes every key that nobody asked for.
    """

    def __init__(self, name: str, values: Mapping[str, object], problems: list[Problem]) -> None:
        self.name = name
        self._values = values
        self._problems = problems
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._values

    @property
    def problems(self) -> int:
        """How many the whole document has so far."""
        return len(self._problems)

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def refuse(self, key: str, reason: str) -> None:
        self._problems.append(Problem(self.name, key, reason))

    def close(self) -> None:
        for key in self._values:
            if key not in self._asked:
                self.refuse(key, f"no such key{nearest(key, self._asked)}")

    def raw(self, key: str) -> object:
        """The value as TOML has it; None if it is missing."""
        self._asked.add(key)
        return self._values.get(key)

    def decimal(self, key: str, default: Decimal | None, low: Decimal, high: Decimal) -> Decimal:
        """A number between `low` and `high`, both included, of at most six places. No default: required."""
        value = self.raw(key)
        if value is None:
            return self._missing(key, default, low)
        number = Decimal(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(number, _Exponent):
            self.refuse(key, f"write {number.text[:20]} out, without an exponent")
        elif not isinstance(number, Decimal) or not number.is_finite():
            self.refuse(key, "must be a number")
        elif not low <= number <= high:
            self.refuse(key, f"must be between {low} and {high}")
        elif number != round(number, PLACES_MAX):
            self.refuse(key, f"has more than {PLACES_MAX} digits after the point")
        else:
            return number
        return low if default is None else default

    def whole(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number between `low` and `high`, both included. No default: required."""
        value = self.raw(key)
        if value is None:
            return self._missing(key, default, low)
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(key, "must be a whole number")
        elif not low <= value <= high:
            self.refuse(key, f"must be between {low} and {high}")
        else:
            return value
        return low if default is None else default

    def flag(self, key: str) -> bool:
        """`true` or `false`; false if it is missing."""
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value is True

    def text(self, key: str, default: str | None, chars_max: int = 80) -> str:
        """Printable text on one line. No default: required."""
        value = self.raw(key)
        if value is None:
            return self._missing(key, default, "")
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > chars_max:
            self.refuse(key, f"must be text of 1 to {chars_max} characters on one line")
            return default or ""
        return value

    def word(self, key: str, default: str, allowed: Collection[str]) -> str:
        """One of the `allowed` words."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            self.refuse(key, f"must be one of {', '.join(allowed)}")
            return default
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A list of different words, at least one; required."""
        value = self.raw(key)
        if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
            self.refuse(key, "must be a list of at least one word" if key in self else "missing")
            return ()
        if len(set(value)) < len(value):
            self.refuse(key, "names something twice")
        return tuple(dict.fromkeys(value))

    def table(self, key: str) -> Section:
        """The table under `key`; an empty one if it is missing."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "must be a table")
        return Section(self._inner(key), value if isinstance(value, dict) else {}, self._problems)

    def tables(self, key: str) -> tuple[Section, ...]:
        """The tables of an array of tables, counted from 1; none if it is missing."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(inner, dict) for inner in value):
            self.refuse(key, f"must be tables: [[{self._inner(key)}]]")
            return ()
        return tuple(
            Section(f"{self._inner(key)} {number}", inner, self._problems)
            for number, inner in enumerate(value, start=1)
        )

    def _inner(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _missing(self, key: str, default: T | None, otherwise: T) -> T:
        if default is None:
            self.refuse(key, "missing")
            return otherwise
        return default
