"""JSON from outside, as PostgreSQL can hold it and hand it back the same."""

from __future__ import annotations

import math

#: Objects and lists within each other. PostgreSQL's parser and our encoder give up at some thousands.
DEPTH_MAX = 64


def problem_of_json(given: object, values_max: int, *, texts: bool = True) -> str | None:
    """What keeps it from being stored, or None. Whatever the depth and size, and also if it holds itself.

    Without `texts` those are not looked at: somebody looks at them part by part.
    """
    waiting, met = [(given, 1)], 1
    while waiting:
        value, depth = waiting.pop()
        parts = _parts_of(value)
        if parts is None:
            if (texts or not isinstance(value, str)) and (problem := _problem_of_leaf(value)) is not None:
                return problem
            continue
        if depth > DEPTH_MAX:
            return f"must be nested at most {DEPTH_MAX} deep"
        met += len(parts)
        if met > values_max:
            return f"must hold at most {values_max:,} values"
        if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
            return "must be JSON: names must be text"
        waiting.extend((part, depth + 1) for part in parts)
    return None


def _parts_of(value: object) -> list[object] | None:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple) else None


def _problem_of_leaf(value: object) -> str | None:
    match value:
        case None | bool() | int():
            return None
        case float():
            return None if math.isfinite(value) else "must be JSON: numbers must be finite"
        case str():
            return _problem_of_text(value)
    return f"must be JSON, which has no {type(value).__name__[:32]}"


def _problem_of_text(value: str) -> str | None:
    if "\0" in value:
        return "must not contain NUL characters"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be JSON: texts must be valid Unicode, without lone surrogates"
    return None
