"""Reading the overrides of a price book, and finding those that never match."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal

from worker.credits.documents import Section, nearest
from worker.credits.price_book import Override, Scalar, among

#: The fields of a request, each with its values; None where any value may come.
Fields = Mapping[str, Collection[object] | None]

#: The field of an override that means the account's plan.
PLAN = "plan"

#: Fields of one override, and values of one field: what is shadowed is found by trying all combinations.
_FIELDS_MAX = 3
_VALUES_MAX = 16

_MULTIPLIER_MIN = Decimal("0.001")


def overrides_of(
    section: Section, fields: Fields | None, plans: Collection[str] | None, multiplier_max: Decimal
) -> tuple[Override, ...]:
    """The overrides of one kind, in the order of the file. `fields` and `plans` of None are not checked."""
    known = {**(fields or {}), PLAN: plans}
    overrides: list[Override] = []
    for place in section.tables("overrides"):
        when = _when(place.table("when"), known, others=fields is None)
        override = Override(when, _multiplier(place, multiplier_max))
        place.close()
        if _shadowed(override, overrides):
            place.refuse("when", "never matches: earlier overrides over the same fields match all of it")
        overrides.append(override)
    return tuple(overrides)


def _multiplier(section: Section, highest: Decimal) -> Decimal:
    free = section.flag("free")
    given = section.raw("multiplier")
    if free and given is not None:
        section.refuse("multiplier", "either a multiplier or free = true")
    if free:
        return Decimal(0)
    if given == 0:
        section.refuse("multiplier", "must be above 0; write free = true if that is meant")
        return Decimal(0)
    return section.decimal("multiplier", None, _MULTIPLIER_MIN, highest)


def _when(section: Section, known: Fields, *, others: bool) -> dict[str, tuple[Scalar, ...]]:
    """The condition. With `others`, fields beyond the known ones may be named."""
    names = section.names()
    if not names:
        section.refuse("", "names no field of the request and no plan")
    if len(names) > _FIELDS_MAX:
        section.refuse("", f"names more than {_FIELDS_MAX} fields")
    when = {name: _values(section, name) for name in names}
    for name, values in when.items():
        if name in known:
            _check_values(section, name, values, known[name])
        elif not others:
            section.refuse(name, f"never matches: no such field{nearest(name, known)}")
    return when


def _values(section: Section, name: str) -> tuple[Scalar, ...]:
    """The different values that a field is compared with."""
    value = section.raw(name)
    listed = value if isinstance(value, list) else [value]
    values = tuple(item for item in listed if isinstance(item, str | int))
    if not values or len(values) < len(listed):
        section.refuse(name, "must be text, a whole number, true or false, or a list of such")
    if len(values) > _VALUES_MAX:
        section.refuse(name, f"lists more than {_VALUES_MAX} values")
    values = values[:_VALUES_MAX]
    for index, item in enumerate(values):
        if among(item, values[:index]):
            section.refuse(name, f"names {item!r} twice")
    return values


def _check_values(section: Section, name: str, values: Sequence[Scalar], allowed: Collection[object] | None) -> None:
    if allowed is None:
        return
    for item in values:
        if not any(among(choice, (item,)) for choice in allowed):
            choices = [str(choice) for choice in allowed]
            section.refuse(name, f"never matches: no such value {item!r}{nearest(str(item), choices)}")


def _shadowed(override: Override, earlier: Sequence[Override]) -> bool:
    """Whether every combination of its values is matched by an earlier override of its group."""
    group = [other for other in earlier if other.group == override.group]
    if not group or len(override.when) > _FIELDS_MAX:
        return False
    combinations = itertools.product(*override.when.values())
    return all(
        any(other.matches(dict(zip(override.when, values, strict=True))) for other in group) for values in combinations
    )
