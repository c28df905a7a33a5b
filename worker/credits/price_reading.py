"""From a document to a price book: the whole of it is right, or all that is wrong with it is said at once."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal

from worker.credits.documents import DocumentError, Problem, Section, nearest, parsed
from worker.credits.lots import CREDITS_MAX
from worker.credits.outcomes import RULES, Basis, Charge, Ending, Fault, allowed_bases
from worker.credits.override_reading import Fields, overrides_of
from worker.credits.price_book import KindPrice, OutputPrice, PriceBook, Rounding, SecondsPrice, Tier

#: The fields of the requests of each kind.
RequestFields = Mapping[str, Fields]

#: The table of endings; every other table of a book is a kind.
OUTCOMES = "outcomes"

_LEAST = Decimal("0.000001")
_KIND_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PERCENT = re.compile(r"([1-9][0-9]?|100)%")


class PriceBookError(DocumentError):
    """The book is refused as a whole. The books in force stay as they are."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no price may be above: a slip of the finger, not a policy."""

    credits_max: Decimal = Decimal(100_000)  # of a base, a tier, one step
    multiplier_max: Decimal = Decimal(100)
    seconds_max: Decimal = Decimal(86_400)  # of a step, the included seconds, a tier


DEFAULT_BOUNDS = Bounds()

#: For books that are in force already: whatever bounds they were accepted with.
WIDEST_BOUNDS = Bounds(Decimal(CREDITS_MAX), Decimal(CREDITS_MAX), Decimal(10**9))


@dataclass(frozen=True, slots=True)
class _Known:
    """What a book may name, as far as the caller says."""

    kinds: Collection[str] | None
    request_fields: RequestFields
    plans: Collection[str] | None


def parse_price_book(
    document: str,
    *,
    kinds: Collection[str] | None = None,
    request_fields: RequestFields | None = None,
    plans: Collection[str] | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> PriceBook:
    """The book that a TOML document describes.

    With `kinds` each of them must have its table and no other may; `request_fields` and `plans` let the names in
    overrides be checked too. Raises `PriceBookError` with every problem.
    """
    problems: list[Problem] = []
    root = parsed(document, problems)
    if not problems:
        known = _Known(kinds, request_fields or {}, plans)
        prices = _kinds(root, known, bounds)
        outcomes = _outcomes(root.table(OUTCOMES))
    if problems:
        raise PriceBookError(tuple(problems))
    return PriceBook(prices, outcomes, document, hashlib.sha256(document.encode()).hexdigest())


def _kinds(root: Section, known: _Known, bounds: Bounds) -> dict[str, KindPrice]:
    names = [name for name in root.names() if name != OUTCOMES]
    if not names and not known.kinds:
        root.refuse("", "has no kind of job")
    for name in sorted(set(known.kinds or ()) - set(names)):
        root.refuse(name, "missing: this kind would have no price")
    return {name: _kind(root.table(name), known, bounds) for name in names if _is_kind(root, name, known)}


def _is_kind(root: Section, name: str, known: _Known) -> bool:
    if known.kinds is not None and name not in known.kinds:
        root.refuse(name, f"no such kind{nearest(name, {*known.kinds, OUTCOMES})}")
        return False
    if not _KIND_NAME.fullmatch(name):
        root.refuse(name, "no name for a kind: small letters, digits and _, at most 32")
        return False
    if not isinstance(root.raw(name), dict):
        root.refuse(name, f"must be a table: [{name}]")
        return False
    return True


# One kind


def _kind(section: Section, known: _Known, bounds: Bounds) -> KindPrice:
    before = section.problems
    price = KindPrice(
        base=_credits(section, "base", Decimal(0), bounds),
        output=_output(section.table("output"), bounds),
        overrides=overrides_of(section, known.request_fields.get(section.name), known.plans, bounds.multiplier_max),
        minimum=section.whole("minimum", 0, 0, CREDITS_MAX),
        maximum=section.whole("maximum", 0, 1, CREDITS_MAX) if "maximum" in section else None,
        free=section.flag("free"),
    )
    section.close()
    if section.problems == before:  # what was misread can't be compared
        _check_amounts(section, price)
    return price


def _credits(section: Section, key: str, default: Decimal | None, bounds: Bounds) -> Decimal:
    return section.decimal(key, default, Decimal(0), bounds.credits_max)


def _output(section: Section, bounds: Bounds) -> OutputPrice:
    price = OutputPrice(
        base=_credits(section, "base", Decimal(0), bounds),
        seconds_in=_seconds(section.table("seconds_in"), bounds),
        seconds_out=_seconds(section.table("seconds_out"), bounds),
    )
    section.close()
    return price


def _seconds(section: Section, bounds: Bounds) -> SecondsPrice:
    price = SecondsPrice(
        tiers=_tiers(section, bounds),
        rate=section.decimal("rate", Decimal(0), _LEAST, bounds.credits_max),
        step_seconds=section.decimal("step_seconds", Decimal(1), _LEAST, bounds.seconds_max),
        included_seconds=section.decimal("included_seconds", Decimal(0), Decimal(0), bounds.seconds_max),
        rounding=Rounding(section.word("rounding", Rounding.UP, tuple(Rounding))),
    )
    section.close()
    for key in ("step_seconds", "included_seconds", "rounding"):
        if "rate" not in section and key in section:
            section.refuse(key, "says nothing without a rate")
    return price


def _tiers(section: Section, bounds: Bounds) -> tuple[Tier, ...]:
    """Longer is never cheaper, and every length has a tier."""
    before = section.problems
    sections = section.tables("tiers")
    tiers = [_tier(tier, bounds) for tier in sections]
    if section.problems > before:
        return ()
    for (earlier, tier), place in zip(itertools.pairwise(tiers), sections[1:], strict=True):
        if earlier.up_to_seconds is None:
            place.refuse("up_to_seconds", "never reached: the tier before is for any length")
        elif tier.up_to_seconds is not None and tier.up_to_seconds <= earlier.up_to_seconds:
            place.refuse("up_to_seconds", f"must be above {earlier.up_to_seconds}, where the tier before ends")
        if tier.price < earlier.price:
            place.refuse("price", f"must not be below {earlier.price}, the price of the shorter tier before")
    if tiers and tiers[-1].up_to_seconds is not None:
        sections[-1].refuse("up_to_seconds", "leave it out in the last tier, or longer outputs have no price")
    return tuple(tiers)


def _tier(section: Section, bounds: Bounds) -> Tier:
    limited = "up_to_seconds" in section
    tier = Tier(
        section.decimal("up_to_seconds", Decimal(0), _LEAST, bounds.seconds_max) if limited else None,
        _credits(section, "price", None, bounds),
    )
    section.close()
    return tier


def _check_amounts(section: Section, price: KindPrice) -> None:
    """Free only where it says so; bounds that leave room; no length that slips through at nothing."""
    if price.maximum is not None and price.minimum > price.maximum:
        section.refuse("minimum", f"{price.minimum} is above the maximum {price.maximum}")
    costs = _costs(price)
    if price.free and costs:
        section.refuse("free", "the kind is free, but has a price too")
    if price.free and price.overrides:
        section.refuse("overrides", "never change anything: the kind is free")
    if not price.free and not costs:
        section.refuse("base", "every price is 0; write free = true if that is meant")
    if price.base or price.output.base or price.minimum:
        return
    for key, seconds in (("seconds_in", price.output.seconds_in), ("seconds_out", price.output.seconds_out)):
        if seconds.rounding is Rounding.DOWN and seconds.rate:
            section.refuse(f"output.{key}.rounding", "makes short outputs free: add a base or a minimum")


def _costs(price: KindPrice) -> bool:
    """Whether any amount in it is above 0."""
    seconds = (price.output.seconds_in, price.output.seconds_out)
    amounts = [price.base, price.output.base, price.minimum, *(axis.rate for axis in seconds)]
    return any(amounts) or any(tier.price for axis in seconds for tier in axis.tiers)


# Outcomes


def _outcomes(section: Section) -> dict[Ending, Charge]:
    endings = {ending.value: ending for ending in Ending}
    charges = {}
    for name in section.names():
        value = section.raw(name)
        if name not in endings:
            section.refuse(name, f"no such ending{nearest(name, endings)}")
        elif charge := _charge(section, endings[name], value):
            charges[endings[name]] = charge
    return charges


def _charge(section: Section, ending: Ending, value: object) -> Charge | None:
    charge = _written_charge(value)
    if charge is None:
        section.refuse(ending, 'must be "measured", "nothing" or a percentage of the hold like "25%"')
    elif charge.basis not in allowed_bases(ending):
        section.refuse(ending, _refusal(ending))
        return None
    return charge


def _written_charge(value: object) -> Charge | None:
    match value:
        case "measured" | "nothing":
            return Charge(Basis(value))
        case str() if percent := _PERCENT.fullmatch(value):
            return Charge(Basis.HOLD, int(percent[1]))
        case _:
            return None


def _refusal(ending: Ending) -> str:
    """Why this ending can't be charged so."""
    allowed = allowed_bases(ending)
    if Basis.MEASURED in allowed:
        return f"may only be {' or '.join(sorted(allowed))}: what was finished has its measured price"
    if Basis.HOLD in allowed:
        return 'must be "nothing" or a percentage of the hold: nothing finished was handed over'
    if ending is Ending.CANCELLED:
        return 'must be "nothing": what never started costs nothing, and what is queued again broke off on our side'
    if RULES[ending].fault is Fault.OURS:
        return 'must be "nothing": nobody is charged for our own failure'
    return 'must be "nothing": the customer got nothing and is not to blame, or nothing was held'
