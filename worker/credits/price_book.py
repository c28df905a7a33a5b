"""Price books: what product people write, as values.

A book has one table per kind of job and one for outcomes; `config/prices.toml` explains the language to those who
edit it. Every part of a price is at least 0 and never falls as usage grows, so a job that uses no more than its
request allows can't cost more than its quote. `price_reading` builds books from documents, `prices` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from worker.credits.outcomes import Charge, Ending

#: What a field of a request may be compared with.
Scalar = str | int | bool


class Rounding(StrEnum):
    """What becomes of a step that was only started."""

    UP = "up"  # it counts
    DOWN = "down"  # it doesn't
    NONE = "none"  # it counts by its share, exactly


@dataclass(frozen=True, slots=True)
class Tier:
    """One price for every output up to a length, that length included; None is any length."""

    up_to_seconds: Decimal | None
    price: Decimal


@dataclass(frozen=True, slots=True)
class SecondsPrice:
    """What the seconds of one output cost: its tier, plus `rate` for each step beyond the included seconds."""

    rate: Decimal = Decimal(0)
    step_seconds: Decimal = Decimal(1)
    included_seconds: Decimal = Decimal(0)
    rounding: Rounding = Rounding.UP
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputPrice:
    """What each output costs."""

    base: Decimal = Decimal(0)
    seconds_in: SecondsPrice = SecondsPrice()
    seconds_out: SecondsPrice = SecondsPrice()


@dataclass(frozen=True, slots=True)
class Override:
    """A multiplier for requests whose fields have one of the values named. `plan` is the account's plan.

    Overrides over the same fields are a group: the first that matches counts, and groups multiply.
    """

    when: Mapping[str, tuple[Scalar, ...]]
    multiplier: Decimal  # 0: free

    @property
    def group(self) -> frozenset[str]:
        return frozenset(self.when)

    def matches(self, facts: Mapping[str, object]) -> bool:
        for name, values in self.when.items():  # noqa: SIM110  a generator takes twice as long, and prices run in millions
            if name not in facts or not among(facts[name], values):
                return False
        return True


@dataclass(frozen=True, slots=True)
class KindPrice:
    """What a job of one kind costs: base + outputs, × overrides, between minimum and maximum, rounded up once."""

    base: Decimal = Decimal(0)
    output: OutputPrice = OutputPrice()
    overrides: tuple[Override, ...] = ()
    minimum: int = 0
    maximum: int | None = None
    free: bool = False


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A whole book. `document` is the text it was read from, comments included; two books are equal with it."""

    kinds: Mapping[str, KindPrice] = field(compare=False)
    outcomes: Mapping[Ending, Charge] = field(compare=False)
    document: str
    digest: str  # SHA-256 of the document in UTF-8, hex

    def to_toml(self) -> str:
        """The document as it was given: reading it again gives an equal book."""
        return self.document


def among(value: object, values: tuple[Scalar, ...]) -> bool:
    """Whether the value is one of them; `true` is not 1."""
    flag = isinstance(value, bool)
    for other in values:  # noqa: SIM110  as above
        if value == other and isinstance(other, bool) == flag:
            return True
    return False
