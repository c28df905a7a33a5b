"""The border where a customer's words become a request: one clear refusal, naming the field and its limit.

Everything a customer sends passes here before it is priced. A refusal never shows more than a short piece of
what was sent, and never a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tasks.kind import AudioInfo, InputLimits, Kind, RefusedRequest, Request

#: Characters of a refused value that a message may show.
SHOWN_MAX = 32

Parsed = TypeVar("Parsed", bound=Request)


def parse(kind: Kind, params: object) -> Request:
    """The request that `params` (what JSON gave) asks of `kind`.

    Guarantee: every field is known, of exactly its type and within its bounds, and the engine of its tier can do
    it. Raises `RefusedRequest` for the first problem, naming the field and the limit.
    """
    request = parse_as(kind.request_model, params)
    # Not asked as a protocol: that is looked through anew each time, some 25 us before Python 3.12.
    check: Callable[[Request], None] | None = getattr(kind, "check", None)
    if check is not None:
        check(request)
    return request


def parse_as(model: type[Parsed], params: object) -> Parsed:
    """As `parse`, for a request model of its own."""
    if not isinstance(params, Mapping):
        raise RefusedRequest("params", f"must be an object of fields and values, not {_type_of(params)}")
    _refuse_unknown(model, params)
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RefusedRequest(_field_of(first), _problem_of(model, first)) from None


def check_inputs(kind: Kind, inputs: Mapping[str, AudioInfo]) -> None:
    """Refuse inputs that `kind` doesn't take: unknown or missing names, too long, too many channels.

    Raises `RefusedRequest`; its field is `inputs.NAME`.
    """
    for name in inputs:
        if name not in kind.inputs:
            known = ", ".join(kind.inputs) or "none"
            raise RefusedRequest(f"inputs.{_shown(name)}", f"is not an input of {kind.name} (known: {known})")
    for name, limits in kind.inputs.items():
        if name in inputs:
            _check_input(f"inputs.{name}", inputs[name], limits)
        elif limits.required:
            raise RefusedRequest(f"inputs.{name}", "is required")


def _check_input(field: str, info: AudioInfo, limits: InputLimits) -> None:
    _within(field, "seconds", info.seconds, limits.seconds_min, limits.seconds_max)
    _within(field, "channels", info.channels, 1, limits.channels_max)
    _within(field, "samples a second", info.sample_rate, limits.sample_rate_min, limits.sample_rate_max)


def _within(field: str, unit: str, value: Decimal | int, low: Decimal | int, high: Decimal | int) -> None:
    if not low <= value <= high:
        has, least, most = (format(Decimal(number).normalize(), "f") for number in (value, low, high))
        raise RefusedRequest(field, f"has {has} {unit}; between {least} and {most} are taken")


def seconds_of(value: float) -> Decimal:
    """A `Seconds` field as the exact decimal that the customer wrote."""
    return Decimal(str(value))


# What a refusal says


@cache
def _fields(model: type[Request]) -> tuple[str, ...]:
    return tuple(model.model_fields)


def _refuse_unknown(model: type[Request], params: Mapping[Any, Any]) -> None:
    known = _fields(model)
    for name in params:
        if name in known:
            continue
        near = difflib.get_close_matches(name[:64], known, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise RefusedRequest(_shown(name), f"is not a known field ({hint})")


def _field_of(detail: ErrorDetails) -> str:
    name = ""
    for part in detail["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name or "params"


def _problem_of(model: type[Request], detail: ErrorDetails) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in _BOUNDS:
        return f"{_bounds(model, detail)} (given {_shown(given)})"
    if kind in _SENTENCES:
        return _SENTENCES[kind](context, given)
    return f"{detail['msg'][:200]}"


def _bounds(model: type[Request], detail: ErrorDetails) -> str:
    metadata = model.model_fields[str(detail["loc"][0])].metadata
    low = next((item.ge for item in metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        return f"must be between {low} and {high}"
    return f"must be at least {low}" if high is None else f"must be at most {high}"


_BOUNDS = frozenset({"greater_than_equal", "less_than_equal"})

_SENTENCES: Mapping[str, Callable[[Mapping[str, Any], Any], str]] = {
    "missing": lambda _, given: "is required",
    "int_type": lambda _, given: f"must be a whole number, not {_type_of(given)}",
    "int_from_float": lambda _, given: "must be a whole number, not a decimal one",
    "float_type": lambda _, given: (
        "must be a finite number" if type(given) is int else f"must be a number, not {_type_of(given)}"
    ),
    "finite_number": lambda _, given: "must be a finite number",
    "string_type": lambda _, given: f"must be text, not {_type_of(given)}",
    "string_unicode": lambda _, given: "must be valid Unicode, without lone surrogates",
    "string_too_long": lambda limit, given: (
        f"must be at most {limit['max_length']} characters long (given {len(given)})"
    ),
    "string_too_short": lambda limit, given: "must not be empty",
    "tuple_type": lambda _, given: f"must be a list, not {_type_of(given)}",
    "too_short": lambda limit, given: f"must have at least {limit['min_length']} entry",
    "too_long": lambda limit, given: (
        f"must be at most {limit['max_length']} characters long (given {len(given)})"
        if isinstance(given, str)
        else f"must have at most {limit['max_length']} entries"
    ),
    "string_pattern_mismatch": lambda limit, given: f"must look like {limit['pattern']} (given {_shown(given)})",
    "literal_error": lambda limit, given: f"must be {limit['expected']} (given {_shown(given)})",
    "value_error": lambda limit, given: str(limit["error"]),
}


def _type_of(value: object) -> str:
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a decimal number", list: "a list"}
    if value is None:
        return "null"
    return "an object" if isinstance(value, Mapping) else names.get(type(value), "something else")


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**SHOWN_MAX:
        return "a number of too many digits"
    if not isinstance(value, str | int | float):
        return _type_of(value)
    text = value[: SHOWN_MAX + 1] if isinstance(value, str) else repr(value)
    text = ascii(text)[1:-1] if isinstance(value, str) else text
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"
