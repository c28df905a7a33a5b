"""What a job costs. Quote, hold and commit are the same sum, over the most it can use or over what it used.

Amounts are exact until the one rounding up at the end. They are counted in fractions, as a decimal can't hold
the third of a credit: three outputs of two thirds each would come to more than two credits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import assert_never

from worker.credits.lots import CREDITS_MAX
from worker.credits.price_book import KindPrice, OutputPrice, Override, PriceBook, Rounding, SecondsPrice, Tier
from worker.credits.price_reading import WIDEST_BOUNDS, Bounds, PriceBookError, parse_price_book
from worker.credits.values import value

__all__ = [
    "WIDEST_BOUNDS",
    "Bounds",
    "Line",
    "PriceBook",
    "PriceBookError",
    "PriceTooHigh",
    "Priced",
    "UnknownPrice",
    "Usage",
    "parse_price_book",
    "price",
]

#: A number without rounding: whole where it can be, for whole numbers are ten times as fast.
Exact = int | Fraction

#: The most seconds of one output: thirty years, to keep nonsense out of the arithmetic.
SECONDS_MAX = 10**9

#: What a line shows of it.
_MILLIONTH = 10**6


class UnknownPrice(LookupError):
    """The book has no price for this kind of job."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no price for {kind}")
        self.kind = kind


class PriceTooHigh(ValueError):
    """The job would cost more than any amount may be. It can't be sold."""

    def __init__(self, kind: str, total: int) -> None:
        super().__init__(f"a {kind} of {total} credits; the most is {CREDITS_MAX}")
        self.kind = kind
        self.total = total


@value
class Usage:
    """What one output uses: seconds of audio read for it, and seconds of audio written; 0 … 10^9, else ValueError."""

    seconds_in: Decimal = Decimal(0)
    seconds_out: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        for seconds in (self.seconds_in, self.seconds_out):
            if not seconds.is_finite() or not 0 <= seconds <= SECONDS_MAX:
                raise ValueError(f"usage of {seconds} seconds: must be between 0 and {SECONDS_MAX}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a quote or receipt. Decimals are rounded to six places for reading; the amounts sum to the total.

    For charges `amount` is quantity × rate. For an override, the minimum, the maximum and the rounding, `quantity`
    is what there was before, `rate` the multiplier or the bound, and `amount` what the line adds or takes off.
    """

    rule: str
    quantity: Decimal
    rate: Decimal
    amount: Decimal


@value
class Part:
    """A line before it is rounded for reading."""

    rule: str
    quantity: Exact
    rate: Decimal
    amount: Exact


@value
class Priced:
    """A price in whole credits, and how it came about."""

    total: int
    parts: tuple[Part, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """The page a customer reads. Made on demand: a settle or a rehearsal only wants the total."""
        return _lines(self.parts, self.total)


def price(
    book: PriceBook, kind: str, usages: Sequence[Usage], request: Mapping[str, object], plan: str | None
) -> Priced:
    """The price of a job that makes one output for each usage.

    `request` is the validated request with its defaults filled in. Guarantees: never falls when a usage grows or an
    output is added; the same whatever the order of the request's fields; 0 … 10^12. A job without outputs costs
    its base alone (× overrides, within its bounds), though such a job fails and is not charged.
    Raises `UnknownPrice` for a kind that the book doesn't name, `PriceTooHigh` above 10^12 credits.
    """
    rules = book.kinds.get(kind)
    if rules is None:
        raise UnknownPrice(kind)
    parts = [*_charges(rules, usages)]
    exact: Exact = sum(part.amount for part in parts)
    for part in _adjustments(rules, exact, request, plan):
        parts.append(part)
        exact += part.amount
    total = math.ceil(exact)
    if total > CREDITS_MAX:
        raise PriceTooHigh(kind, total)
    return Priced(total, tuple(parts))


# The sum over outputs


def _charges(rules: KindPrice, usages: Sequence[Usage]) -> Iterator[Part]:
    if rules.base:
        yield _flat("job", rules.base)
    for number, usage in enumerate(usages, start=1):
        yield from _output_charges(rules.output, usage, f"output {number}")


def _output_charges(rules: OutputPrice, usage: Usage, name: str) -> Iterator[Part]:
    if rules.base:
        yield _flat(name, rules.base)
    yield from _seconds_charges(rules.seconds_in, usage.seconds_in, f"{name} seconds_in")
    yield from _seconds_charges(rules.seconds_out, usage.seconds_out, f"{name} seconds_out")


def _seconds_charges(rules: SecondsPrice, seconds: Decimal, name: str) -> Iterator[Part]:
    if rules.tiers:
        tier = _tier(rules.tiers, seconds)
        yield _flat(f"{name} {'any' if tier.up_to_seconds is None else f'up to {tier.up_to_seconds}'}", tier.price)
    if rules.rate:
        steps = _steps(rules, seconds)
        yield Part(name, steps, rules.rate, steps * _exact(rules.rate))


def _flat(rule: str, amount: Decimal) -> Part:
    return Part(rule, 1, amount, _exact(amount))


def _tier(tiers: Sequence[Tier], seconds: Decimal) -> Tier:
    """The first tier that is long enough; a book's last one is for any length."""
    return next(tier for tier in tiers if tier.up_to_seconds is None or seconds <= tier.up_to_seconds)


def _steps(rules: SecondsPrice, seconds: Decimal) -> Exact:
    """How many steps lie beyond the included seconds."""
    # In whole numbers over one denominator: a fraction object for each would take most of a price's time.
    ends, ends_over = seconds.as_integer_ratio()
    starts, starts_over = rules.included_seconds.as_integer_ratio()
    step, step_over = rules.step_seconds.as_integer_ratio()
    beyond = max(0, ends * starts_over - starts * ends_over) * step_over
    step_length = ends_over * starts_over * step
    match rules.rounding:
        case Rounding.UP:
            return -(-beyond // step_length)
        case Rounding.DOWN:
            return beyond // step_length
        case Rounding.NONE:
            return Fraction(beyond, step_length)
        case _:
            assert_never(rules.rounding)


def _exact(number: Decimal) -> Exact:
    whole = int(number)
    return whole if number == whole else Fraction(number)


# Overrides, minimum, maximum


def _adjustments(rules: KindPrice, exact: Exact, request: Mapping[str, object], plan: str | None) -> Iterator[Part]:
    free = rules.free
    for override in _matching(rules.overrides, {**request, "plan": plan}):
        after = exact * _exact(override.multiplier)
        free = free or not override.multiplier
        yield Part(f"if {_condition(override)}", exact, override.multiplier, after - exact)
        exact = after
    # What is free is free: a minimum would sell it after all.
    if exact < rules.minimum and not free:
        yield Part("minimum", exact, Decimal(rules.minimum), rules.minimum - exact)
    if rules.maximum is not None and exact > rules.maximum:
        yield Part("maximum", exact, Decimal(rules.maximum), rules.maximum - exact)


def _matching(overrides: Sequence[Override], facts: Mapping[str, object]) -> Iterator[Override]:
    """The first override of each group of fields that matches, in the order of the book."""
    settled: set[frozenset[str]] = set()
    for override in overrides:
        if override.group not in settled and override.matches(facts):
            settled.add(override.group)
            yield override


def _condition(override: Override) -> str:
    """`model = studio, plan = band or label`."""
    return ", ".join(f"{name} = {' or '.join(map(str, values))}" for name, values in override.when.items())


# For reading


def _lines(parts: Sequence[Part], total: int) -> tuple[Line, ...]:
    lines = [Line(part.rule, _shown(part.quantity), part.rate, _shown(part.amount)) for part in parts]
    before = sum(round(part.amount * _MILLIONTH) for part in parts)
    if before != total * _MILLIONTH:
        lines.append(Line("rounded up", _millionths(before), Decimal(1), _millionths(total * _MILLIONTH - before)))
    return tuple(lines)


def _shown(amount: Exact) -> Decimal:
    return _millionths(round(amount * _MILLIONTH))


def _millionths(count: int) -> Decimal:
    """So many millionths, with no more places than they need."""
    places = next((places for places in range(6) if count % 10 ** (6 - places) == 0), 6)
    digits = tuple(int(digit) for digit in str(abs(count // 10 ** (6 - places))))
    return Decimal((count < 0, digits, -places))
