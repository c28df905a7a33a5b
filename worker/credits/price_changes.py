"""How much a new price book changes what customers pay: the largest change of each kind, found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from worker.credits.lots import CREDITS_MAX
from worker.credits.outcomes import Basis, Charge, Ending, charge_for
from worker.credits.price_book import KindPrice, PriceBook, Scalar, SecondsPrice
from worker.credits.prices import PriceTooHigh, Usage, price

#: Lengths that are always tried, in seconds; the bounds of both books come beside them.
_LENGTHS = tuple(Decimal(seconds) for seconds in (5, 15, 30, 60, 120, 180, 240, 300, 600))
_OUTPUTS = (1, 4)

#: More combinations of values that overrides name are not tried: then a change counts as unknown.
_REQUESTS_MAX = 500


@dataclass(frozen=True, slots=True)
class KindChange:
    """The request of one kind whose price changes most.

    `percent` is above 0 where it becomes dearer, below where it becomes cheaper; None where that is no number:
    it was free, or there are more requests than can be tried.
    """

    kind: str
    percent: int | None
    before: int
    after: int
    example: str

    def exceeds(self, percent_max: int) -> bool:
        """Whether it is more than so many percent, up or down. What is no number is more than any."""
        # By the amounts: 20.4 % is more than 20, also where people read 20.
        return self.percent is None or 100 * abs(self.after - self.before) > percent_max * self.before

    @property
    def _exact_percent(self) -> float:
        """To one place, so that nobody reads of 20 % that are more than 20 %."""
        return round(100 * (self.after - self.before) / self.before, 1)

    def __str__(self) -> str:
        if self.percent is None and not self.after:
            return f"{self.kind} has {self.example}"
        much = "costs something" if self.percent is None else f"costs {self._exact_percent:+g} %"
        return f"{self.kind} {much} ({self.example}: {self.before} -> {self.after} credits)"


@dataclass(frozen=True, slots=True)
class OutcomeChange:
    """An ending that charges another part of what was reserved, in points of a hundred."""

    ending: str
    before: str
    after: str
    points: int

    def __str__(self) -> str:
        return f"{self.ending} charges {self.after} instead of {self.before}"


def large_changes(before: PriceBook, after: PriceBook, percent_max: int) -> tuple[str, ...]:
    """What changes by more than so many percent, each as a sentence; nothing if nothing does."""
    return tuple(str(change) for change in changes_above(before, after, percent_max))


def changes_above(before: PriceBook, after: PriceBook, percent_max: int) -> tuple[KindChange | OutcomeChange, ...]:
    """The largest change of each kind, and each ending, that changes by more than so many percent."""
    kinds = [change for change in kind_changes(before, after, percent_max) if change.exceeds(percent_max)]
    endings = [change for change in outcome_changes(before, after) if change.points > percent_max]
    return (*kinds, *endings)


def kind_changes(before: PriceBook, after: PriceBook, percent_max: int = 0) -> tuple[KindChange, ...]:
    """The largest change of each kind that both books price and that changes at all.

    One that exceeds `percent_max` comes before any that does not, whatever rounding makes of the two.
    """
    both = [kind for kind in after.kinds if kind in before.kinds and before.kinds[kind] != after.kinds[kind]]
    found = (_largest(before, after, kind, percent_max) for kind in both)
    return tuple(change for change in found if change is not None)


def outcome_changes(before: PriceBook, after: PriceBook) -> tuple[OutcomeChange, ...]:
    """Every ending that charges something else."""
    pairs = (
        (ending, charge_for(before, ending, started=True), charge_for(after, ending, started=True)) for ending in Ending
    )
    return tuple(
        OutcomeChange(ending, old.words, new.words, abs(_points(new) - _points(old)))
        for ending, old, new in pairs
        if old != new
    )


def _points(charge: Charge) -> int:
    return {Basis.MEASURED: 100, Basis.NOTHING: 0, Basis.HOLD: charge.percent}[charge.basis]


def _largest(before: PriceBook, after: PriceBook, kind: str, percent_max: int) -> KindChange | None:
    rules = before.kinds[kind], after.kinds[kind]
    requests = list(itertools.islice(_requests(rules), _REQUESTS_MAX + 1))
    if len(requests) > _REQUESTS_MAX:
        return KindChange(kind, None, 0, 0, "more requests than can be tried")
    changes = [
        change
        for facts, (usage, words), outputs in itertools.product(requests, _usages(rules), _OUTPUTS)
        if (change := _change(before, after, kind, facts, [usage] * outputs, words)) is not None
    ]
    return max(changes, key=lambda change: (change.exceeds(percent_max), *_size(change)), default=None)


def _size(change: KindChange) -> tuple[bool, float, int]:
    """By the part it changes, unrounded; equal parts by credits."""
    difference = change.after - change.before
    return change.percent is None, abs(difference) / change.before if change.before else 0.0, difference


def _change(
    before: PriceBook, after: PriceBook, kind: str, facts: Mapping[str, Scalar], usages: Sequence[Usage], words: str
) -> KindChange | None:
    old, new = (_total(book, kind, facts, usages) for book in (before, after))
    if old == new:
        return None
    percent = None if old == 0 else round(100 * (new - old) / old)
    asked = [f"{len(usages)} × {words}", *(f"{name} = {value}" for name, value in facts.items())]
    return KindChange(kind, percent, old, new, ", ".join(asked))


def _total(book: PriceBook, kind: str, facts: Mapping[str, Scalar], usages: Sequence[Usage]) -> int:
    """What can't be sold counts as the most that anything may cost."""
    plan = facts.get("plan")
    try:
        return price(book, kind, usages, facts, plan if isinstance(plan, str) else None).total
    except PriceTooHigh:
        return CREDITS_MAX


def _requests(rules: tuple[KindPrice, KindPrice]) -> Iterator[dict[str, Scalar]]:
    """Every combination of the values that any override of either book names, and of values that none does."""
    named: dict[str, list[Scalar]] = {}
    for override in (*rules[0].overrides, *rules[1].overrides):
        for field, values in override.when.items():
            met = named.setdefault(field, [])
            met += [value for value in values if value not in met]
    choices = [[None, *values] for values in named.values()]
    for chosen in itertools.product(*choices):
        yield {field: value for field, value in zip(named, chosen, strict=True) if value is not None}


def _usages(rules: tuple[KindPrice, KindPrice]) -> list[tuple[Usage, str]]:
    """Each length read and written, with words for it; where both are priced, also read only and written only.

    Else a rate that goes from the one to the other would change nothing, and a song reads nothing.
    """
    none, lengths = Decimal(0), _lengths(rules)
    found = [(Usage(length, length), f"{length} s") for length in lengths]
    outputs = [kind.output for kind in rules]
    if any(_priced(one.seconds_in) for one in outputs) and any(_priced(one.seconds_out) for one in outputs):
        found += [(Usage(length, none), f"{length} s read") for length in lengths]
        found += [(Usage(none, length), f"{length} s written") for length in lengths]
    return found


def _priced(axis: SecondsPrice) -> bool:
    return bool(axis.rate or axis.tiers)


def _lengths(rules: tuple[KindPrice, KindPrice]) -> list[Decimal]:
    """Short and long ones, and both sides of every bound at which a price may jump."""
    lengths = set(_LENGTHS)
    for kind in rules:
        for axis in (kind.output.seconds_in, kind.output.seconds_out):
            for bound in _bounds(axis):
                lengths |= {bound, bound + 1}
    return sorted(length for length in lengths if length)


def _bounds(axis: SecondsPrice) -> Iterator[Decimal]:
    yield from (tier.up_to_seconds for tier in axis.tiers if tier.up_to_seconds is not None)
    if axis.rate:
        yield axis.included_seconds
        yield axis.included_seconds + axis.step_seconds
