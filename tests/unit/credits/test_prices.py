"""What a job costs: the sums, and what holds for every book that can be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import config
from worker.credits.price_book import (
    KindPrice,
    OutputPrice,
    Override,
    PriceBook,
    Rounding,
    SecondsPrice,
    Tier,
)
from worker.credits.prices import Line, PriceTooHigh, UnknownPrice, Usage, parse_price_book, price


def a_book(song: KindPrice) -> PriceBook:
    return PriceBook({"song": song}, {}, document="", digest="")


def read(*seconds: str) -> list[Usage]:
    """One output for each input of so many seconds."""
    return [Usage(seconds_in=Decimal(each)) for each in seconds]


def written(*seconds: str) -> list[Usage]:
    """One output of each length."""
    return [Usage(seconds_out=Decimal(each)) for each in seconds]


def total(table: str, usages: Sequence[Usage], plan: str | None = None, **request: object) -> int:
    """The price of a song by the body of its table."""
    return price(parse_price_book(f"[song]\n{table}"), "song", usages, request, plan).total


# The book we ship


SHIPPED = parse_price_book((Path(config.__file__).parent / "prices.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("kind", "usages", "request_fields", "expected"),
    [
        ("generation", written("22"), {"model": "standard"}, 9),  # the most it may be
        ("generation", written("19.2"), {"model": "standard"}, 8),  # it ended on an earlier bar
        ("generation", written("60"), {"model": "standard"}, 16),
        ("generation", written("60.000001"), {"model": "standard"}, 17),  # a started step
        ("generation", written("60", "60"), {"model": "standard"}, 32),
        ("generation", written("60", "60"), {"model": "studio"}, 80),
        ("generation", written("22"), {"model": "draft"}, 5),  # 4.5, rounded up
        ("generation", written("22", "22"), {"model": "draft"}, 9),  # rounded up once, not each
        ("vocal_conversion", read("60"), {"model": "standard"}, 5),
        ("vocal_conversion", read("60.5"), {"model": "standard"}, 10),
        ("vocal_conversion", read("60.5"), {"model": "studio"}, 20),
        ("stem_split", read("119", "119", "119", "119"), {}, 20),
        ("stem_split", read("121", "121"), {}, 20),
    ],
)
def test_what_we_sell_costs(
    kind: str, usages: list[Usage], request_fields: Mapping[str, object], expected: int
) -> None:
    """The prices that `config/prices.toml` describes in words."""
    assert expected == price(SHIPPED, kind, usages, request_fields, None).total


# How services price, each in our words


TWO_MINUTES = """
output.base = 10
output.seconds_out = { rate = 5, step_seconds = 60, included_seconds = 120 }
"""

BY_LENGTH = """
output.seconds_out.tiers = [
    { up_to_seconds = 30, price = 10 },
    { up_to_seconds = 120, price = 20 },
    { price = 30 },
]
"""

FULL_MINUTES = """
minimum = 1
output.seconds_in = { rate = 1, step_seconds = 60, rounding = "down" }
overrides = [{ when = { algorithm = "best" }, multiplier = 4 }]
"""


@pytest.mark.parametrize(
    ("table", "usages", "request_fields", "expected"),
    [
        # flat for a job, flat for each output
        ("base = 10", written("30", "30"), {}, 10),
        ("output.base = 5", written("30", "300"), {}, 10),
        # 10 a song up to 2 minutes, 5 for each started minute above
        (TWO_MINUTES, written("120"), {}, 10),
        (TWO_MINUTES, written("120.1"), {}, 15),
        (TWO_MINUTES, written("181", "9"), {}, 30),
        # by length
        (BY_LENGTH, written("30"), {}, 10),
        (BY_LENGTH, written("30.1"), {}, 20),
        (BY_LENGTH, written("500", "0"), {}, 40),
        # a small price a second, exactly; and two credits for each started second
        ("output.seconds_in = { rate = 0.0007, rounding = 'none' }", read("1500.5"), {}, 2),
        ("output.seconds_in = { rate = 2 }", read("10.2"), {}, 22),
        # minutes × stems, by their share: 90 s of two stems are 3 credits
        ("output.seconds_in = { rate = 1, step_seconds = 60, rounding = 'none' }", read("90", "90"), {}, 3),
        # full minutes only, × 4, at least 1
        (FULL_MINUTES, read("179"), {"algorithm": "best"}, 8),
        (FULL_MINUTES, read("59"), {"algorithm": "best"}, 1),
        # the first 30 seconds for nothing
        ("output.seconds_in = { rate = 1, included_seconds = 30 }", read("29.9"), {}, 0),
        # two stems 10, four stems 25
        ("base = 10\noverrides = [{ when.mode = 'four', multiplier = 2.5 }]", read("60"), {"mode": "four"}, 25),
        # nothing, said out loud
        ("free = true", written("500"), {}, 0),
    ],
)
def test_the_ways_in_which_services_price(
    table: str, usages: list[Usage], request_fields: dict[str, object], expected: int
) -> None:
    """The language can say each of them."""
    assert expected == total(table, usages, None, **request_fields)


# Overrides


OVERRIDES = """
base = 100
minimum = 20
overrides = [
    { when = { model = "draft" }, multiplier = 0.5 },
    { when = { plan = "pro" }, multiplier = 0.9 },
    { when = { model = ["draft", "studio"] }, multiplier = 3 },
    { when = { plan = "pro", model = "studio" }, multiplier = 0.5 },
    { when = { plan = "staff" }, free = true },
    { when = { variants = 1 }, multiplier = 0.1 },
]
"""


@pytest.mark.parametrize(
    ("request_fields", "plan", "expected"),
    [
        ({}, None, 100),
        ({"model": "standard"}, None, 100),
        ({"model": "draft"}, None, 50),  # the first of its group counts
        ({"model": "studio"}, None, 300),
        ({"model": "standard"}, "pro", 90),
        ({"model": "draft"}, "pro", 45),  # groups multiply
        ({"model": "studio"}, "pro", 135),  # 3 × 0.9 × 0.5
        ({"model": "studio"}, "staff", 0),  # free is free, whatever the minimum
        ({"plan": "staff"}, None, 100),  # nobody names his own plan
        ({"variants": 1}, None, 20),  # the minimum
        ({"variants": True}, None, 100),  # true is not 1
        ({"variants": "1"}, None, 100),
    ],
)
def test_overrides_multiply_by_group_and_the_first_match_counts(
    request_fields: dict[str, object], plan: str | None, expected: int
) -> None:
    """One override for each group of fields, in the order of the file."""
    book = parse_price_book(f"[song]\n{OVERRIDES}")
    assert expected == price(book, "song", [], request_fields, plan).total


def test_a_job_without_outputs_costs_its_base() -> None:
    """Such a job fails and is not charged; the sum is defined all the same."""
    assert total("base = 3\noutput.base = 5", []) == 3
    assert total("output.base = 5", []) == 0


def test_thirds_of_a_credit_add_up() -> None:
    """Three outputs of two thirds each are two credits: rounded decimals would make it three."""
    assert total("output.seconds_out = { rate = 1, step_seconds = 3, rounding = 'none' }", written("2", "2", "2")) == 2


def test_a_maximum_caps_what_no_number_could_hold() -> None:
    """Below a maximum even nonsense is an amount; without one it is refused with both numbers."""
    table = "output.seconds_out = { rate = 100000, step_seconds = 0.001 }"
    assert total(f"maximum = 7\n{table}", written("1000000000")) == 7
    with pytest.raises(PriceTooHigh, match="a song of 100000000000000000 credits; the most is 1000000000000"):
        total(table, written("1000000000"))


def test_a_kind_without_a_table_has_no_price() -> None:
    """Not nothing: no price at all."""
    with pytest.raises(UnknownPrice, match="no price for karaoke"):
        price(SHIPPED, "karaoke", [], {}, None)


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-Infinity", "-0.000001", "1000000001"])
def test_usage_is_a_length(seconds: str) -> None:
    """What is no length has no price."""
    with pytest.raises(ValueError, match="usage of"):
        Usage(seconds_out=Decimal(seconds))
    with pytest.raises(ValueError, match="usage of"):
        Usage(seconds_in=Decimal(seconds))


# Lines


def test_the_lines_tell_how_a_price_came_about() -> None:
    """Every rule that changed the amount, in order, down to the rounding."""
    priced = price(SHIPPED, "generation", written("22", "19.2"), {"model": "draft"}, "starter")
    assert [
        Line("output 1", Decimal(1), Decimal(4), Decimal(4)),
        Line("output 1 seconds_out", Decimal(5), Decimal(1), Decimal(5)),
        Line("output 2", Decimal(1), Decimal(4), Decimal(4)),
        Line("output 2 seconds_out", Decimal(4), Decimal(1), Decimal(4)),
        Line("if model = draft", Decimal(17), Decimal("0.5"), Decimal("-8.5")),
        Line("rounded up", Decimal("8.5"), Decimal(1), Decimal("0.5")),
    ] == list(priced.lines)


def test_the_bounds_and_the_tiers_have_their_lines() -> None:
    """What a bound added or took off, and which tier it was."""
    table = "[song]\nmaximum = 15\noutput.seconds_out.tiers = [{ up_to_seconds = 30, price = 10 }, { price = 20 }]"
    capped = price(parse_price_book(table), "song", written("3", "31"), {}, None)
    assert [
        Line("output 1 seconds_out up to 30", Decimal(1), Decimal(10), Decimal(10)),
        Line("output 2 seconds_out any", Decimal(1), Decimal(20), Decimal(20)),
        Line("maximum", Decimal(30), Decimal(15), Decimal(-15)),
    ] == list(capped.lines)
    raised = price(parse_price_book("[song]\nbase = 0.25\nminimum = 2"), "song", [], {}, None)
    assert [
        Line("job", Decimal(1), Decimal("0.25"), Decimal("0.25")),
        Line("minimum", Decimal("0.25"), Decimal(2), Decimal("1.75")),
    ] == list(raised.lines)


# What holds for every book


amounts = st.decimals(0, 1000, places=3)
lengths = st.decimals(0, 1000, places=6)
usages = st.builds(Usage, lengths, lengths)
fields = st.dictionaries(st.sampled_from(["model", "variants", "hifi"]), st.sampled_from(["a", "b", 1, 2, True]))
plans = st.sampled_from([None, "starter", "pro"])


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[Tier, ...]:
    """None, or tiers that never fall, the last one open."""
    prices = sorted(draw(st.lists(amounts, max_size=4)))
    ends = sorted(
        draw(st.sets(lengths.filter(bool), min_size=max(0, len(prices) - 1), max_size=max(0, len(prices) - 1)))
    )
    return tuple(Tier(end, each) for end, each in zip([*ends, None], prices, strict=False))


seconds_prices = st.builds(
    SecondsPrice,
    rate=amounts,
    step_seconds=st.decimals("0.1", 300, places=3),
    included_seconds=lengths,
    rounding=st.sampled_from(Rounding),
    tiers=tier_lists(),
)
conditions = st.dictionaries(
    st.sampled_from(["model", "variants", "hifi", "plan"]),
    st.lists(st.sampled_from(["a", "pro", 1, True]), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=3,
)


@st.composite
def kind_prices(draw: st.DrawFn) -> KindPrice:
    """Any price that the language can say."""
    minimum = draw(st.integers(0, 1000))
    return KindPrice(
        base=draw(amounts),
        output=draw(st.builds(OutputPrice, amounts, seconds_prices, seconds_prices)),
        overrides=tuple(draw(st.lists(st.builds(Override, conditions, st.decimals(0, 10, places=3)), max_size=4))),
        minimum=minimum,
        maximum=draw(st.none() | st.integers(max(1, minimum), 10**6)),
    )


@given(song=kind_prices(), used=st.lists(st.tuples(usages, usages), max_size=5), request=fields, plan=plans)
def test_less_use_is_never_dearer(
    song: KindPrice, used: list[tuple[Usage, Usage]], request: dict[str, object], plan: str | None
) -> None:
    """So a commit is never above its hold: for every usage up to the most the request can use."""
    book = a_book(song)
    most = [Usage(max(a.seconds_in, b.seconds_in), max(a.seconds_out, b.seconds_out)) for a, b in used]
    least = [a for a, _ in used]
    assert price(book, "song", least, request, plan).total <= price(book, "song", most, request, plan).total


@given(song=kind_prices(), used=st.lists(usages, max_size=5), kept=st.sets(st.integers(0, 4)), plan=plans)
def test_fewer_outputs_are_never_dearer(song: KindPrice, used: list[Usage], kept: set[int], plan: str | None) -> None:
    """A partial success costs at most the whole, whichever outputs were finished."""
    finished = [usage for index, usage in enumerate(used) if index in kept]
    assert price(a_book(song), "song", finished, {}, plan).total <= price(a_book(song), "song", used, {}, plan).total


@given(song=kind_prices(), used=st.lists(usages, max_size=4), request=fields, plan=plans, data=st.data())
def test_the_order_of_fields_and_outputs_changes_nothing(
    song: KindPrice, used: list[Usage], request: dict[str, object], plan: str | None, data: st.DataObject
) -> None:
    """Neither in the request nor in a condition nor in what was made."""
    expected = price(a_book(song), "song", used, request, plan).total
    shuffled = dict(data.draw(st.permutations(list(request.items()))))
    overrides = tuple(
        Override(dict(reversed(list(override.when.items()))), override.multiplier) for override in song.overrides
    )
    other = a_book(dataclasses.replace(song, overrides=overrides))
    assert expected == price(other, "song", data.draw(st.permutations(used)), shuffled, plan).total


@given(song=kind_prices(), used=st.lists(usages, max_size=5), request=fields, plan=plans)
def test_a_price_is_rounded_up_once(
    song: KindPrice, used: list[Usage], request: dict[str, object], plan: str | None
) -> None:
    """The total is the whole number at or above the exact sum, less than one credit away."""
    priced = price(a_book(song), "song", used, request, plan)
    exact = sum((Fraction(part.amount) for part in priced.parts), Fraction(0))
    assert exact <= priced.total < exact + 1
    assert isinstance(priced.total, int)
    assert priced.total >= 0


@given(song=kind_prices(), used=st.lists(usages, max_size=5), request=fields, plan=plans)
def test_the_lines_sum_to_the_total(
    song: KindPrice, used: list[Usage], request: dict[str, object], plan: str | None
) -> None:
    """What a customer adds up by hand is what was charged."""
    priced = price(a_book(song), "song", used, request, plan)
    assert priced.total == sum(line.amount for line in priced.lines)


@given(song=kind_prices(), used=st.lists(usages, min_size=1, max_size=3), request=fields)
def test_the_bounds_hold_unless_it_is_free(song: KindPrice, used: list[Usage], request: dict[str, object]) -> None:
    """At least the minimum and at most the maximum, after the overrides."""
    assume(all(override.multiplier for override in song.overrides))
    priced = price(a_book(song), "song", used, request, None).total
    assert song.minimum <= priced
    assert song.maximum is None or priced <= song.maximum


@given(song=kind_prices(), used=st.lists(usages, max_size=4), request=fields, plan=plans)
def test_the_price_agrees_with_a_second_way_of_counting(
    song: KindPrice, used: list[Usage], request: dict[str, object], plan: str | None
) -> None:
    """A plain sum written apart from the code comes to the same."""
    exact = Fraction(song.base)
    for usage in used:
        exact += Fraction(song.output.base)
        exact += seconds_sum(song.output.seconds_in, Fraction(usage.seconds_in))
        exact += seconds_sum(song.output.seconds_out, Fraction(usage.seconds_out))
    free = False
    groups = set()
    for override in song.overrides:
        matching = all(
            any(type(fact) is type(value) and fact == value for value in values)
            for name, values in override.when.items()
            for fact in [plan if name == "plan" else request.get(name)]
        )
        if matching and frozenset(override.when) not in groups:
            groups.add(frozenset(override.when))
            exact *= Fraction(override.multiplier)
            free |= override.multiplier == 0
    exact = exact if free else max(exact, Fraction(song.minimum))
    exact = exact if song.maximum is None else min(exact, Fraction(song.maximum))
    assert -(-exact.numerator // exact.denominator) == price(a_book(song), "song", used, request, plan).total


def seconds_sum(rules: SecondsPrice, seconds: Fraction) -> Fraction:
    tiers = [tier.price for tier in rules.tiers if tier.up_to_seconds is None or seconds <= tier.up_to_seconds]
    beyond = seconds - Fraction(rules.included_seconds)
    steps = beyond / Fraction(rules.step_seconds) if beyond > 0 else Fraction(0)
    if rules.rounding is not Rounding.NONE and steps.denominator > 1:
        steps = Fraction(steps.numerator // steps.denominator + (rules.rounding is Rounding.UP))
    return Fraction(min(tiers, default=Decimal(0))) + steps * Fraction(rules.rate)
