"""Reading a price book: complete, strict, and every problem at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from worker.credits.documents import Problem
from worker.credits.outcomes import MEASURED, NOTHING, Basis, Charge, Ending
from worker.credits.price_book import (
    KindPrice,
    OutputPrice,
    Override,
    PriceBook,
    Rounding,
    SecondsPrice,
    Tier,
)
from worker.credits.prices import Bounds, PriceBookError, parse_price_book

MODELS = {"model": ["draft", "standard", "studio"]}
FIELDS: Mapping[str, Mapping[str, list[str] | None]] = {
    "generation": {**MODELS, "variants": None},
    "vocal_conversion": {"model": ["standard", "studio"]},
    "stem_split": {"model": ["standard", "studio"]},
}
PLANS = ["starter", "creator", "label"]


def problems_of(document: str, **checks: object) -> list[tuple[str, str, str]]:
    """Table, key and reason of each problem."""
    with pytest.raises(PriceBookError) as refused:
        parse_price_book(document, **checks)  # type: ignore[arg-type]  # each test gives what it is about
    return [(problem.table, problem.key, problem.reason) for problem in refused.value.problems]


def test_the_whole_language_is_read() -> None:
    """Every word of the language ends in its value, and numbers are decimals."""
    book = parse_price_book(
        """
        [song]
        base = 2
        minimum = 3
        maximum = 500
        [song.output]
        base = 0.5
        [song.output.seconds_in]
        rate = 0.0007
        rounding = "none"
        [song.output.seconds_out]
        rate = 5
        step_seconds = 60
        included_seconds = 120
        rounding = "down"
        tiers = [{ up_to_seconds = 30, price = 10 }, { price = 20.25 }]
        [[song.overrides]]
        when = { model = ["draft", "standard"], variants = 2, plan = "creator" }
        multiplier = 0.5
        [[song.overrides]]
        when = { hifi = true }
        free = true
        [jingle]
        free = true
        [outcomes]
        succeeded = "measured"
        partial = "nothing"
        cancelled_running = "25%"
        """
    )
    song = KindPrice(
        base=Decimal(2),
        output=OutputPrice(
            base=Decimal("0.5"),
            seconds_in=SecondsPrice(rate=Decimal("0.0007"), rounding=Rounding.NONE),
            seconds_out=SecondsPrice(
                rate=Decimal(5),
                step_seconds=Decimal(60),
                included_seconds=Decimal(120),
                rounding=Rounding.DOWN,
                tiers=(Tier(Decimal(30), Decimal(10)), Tier(None, Decimal("20.25"))),
            ),
        ),
        overrides=(
            Override({"model": ("draft", "standard"), "variants": (2,), "plan": ("creator",)}, Decimal("0.5")),
            Override({"hifi": (True,)}, Decimal(0)),
        ),
        minimum=3,
        maximum=500,
    )
    assert {"song": song, "jingle": KindPrice(free=True)} == book.kinds
    assert book.outcomes == {
        Ending.SUCCEEDED: MEASURED,
        Ending.PARTIAL: NOTHING,
        Ending.CANCELLED_RUNNING: Charge(Basis.HOLD, 25),
    }


def test_a_book_gives_back_the_very_document_it_was_read_from() -> None:
    """Comments and order included, with its checksum; read again it is an equal book."""
    document = "# ours\n[song]\nbase = 1 # a credit\n"
    book = parse_price_book(document)
    assert document == book.to_toml()
    assert hashlib.sha256(document.encode()).hexdigest() == book.digest
    assert book == parse_price_book(book.to_toml())
    assert book != parse_price_book("[song]\nbase = 1\n")


def shipped() -> PriceBook:
    return parse_price_book(
        (Path(config.__file__).parent / "prices.toml").read_text(encoding="utf-8"),
        kinds=list(FIELDS),
        request_fields=FIELDS,
        plans=PLANS,
    )


def test_the_book_we_ship_is_right() -> None:
    """It prices the three kinds and charges for no failure at all."""
    book = shipped()
    assert set(FIELDS) == set(book.kinds)
    assert {ending for ending, charge in book.outcomes.items() if charge != NOTHING} == {
        Ending.SUCCEEDED,
        Ending.PARTIAL,
    }


SONG = "[song]\nbase = 1\n"


@pytest.mark.parametrize(
    ("document", "table", "key", "reason"),
    [
        # nothing there
        ("", "", "", "has no kind of job"),
        ("# cut off here", "", "", "has no kind of job"),
        ("[outcomes]\n", "", "", "has no kind of job"),
        # not TOML at all
        ("[song]\nbase = 1\nbase = 2\n", "", "", "not TOML: Cannot overwrite a value (at line 3, column 9)"),
        ("[song]\nbase = \n", "", "", "not TOML: Invalid value (at line 2, column 8)"),
        ("x = " + "[" * 5000, "", "", "not TOML: nested too deeply"),
        ("#" * 500_001, "", "", "longer than 500000 characters"),
        # numbers
        ("[song]\nbase = -1\n", "song", "base", "must be between 0 and 100000"),
        ("[song]\nbase = 1000000000\n", "song", "base", "must be between 0 and 100000"),
        ("[song]\nbase = nan\n", "song", "base", "must be a number"),
        ("[song]\nbase = inf\n", "song", "base", "must be a number"),
        ("[song]\nbase = -inf\n", "song", "base", "must be a number"),
        ("[song]\nbase = 1e3\n", "song", "base", "write 1e3 out, without an exponent"),
        ('[song]\nbase = "1e3"\n', "song", "base", "must be a number"),
        ("[song]\nbase = true\n", "song", "base", "must be a number"),
        ("[song]\nbase = 2026-01-01\n", "song", "base", "must be a number"),
        ("[song]\nbase = 0.1234567\n", "song", "base", "has more than 6 digits after the point"),
        (SONG + "minimum = 1.5\n", "song", "minimum", "must be a whole number"),
        (SONG + "minimum = 1000000000001\n", "song", "minimum", "must be between 0 and 1000000000000"),
        (SONG + "maximum = 0\n", "song", "maximum", "must be between 1 and 1000000000000"),
        (SONG + "minimum = 9\nmaximum = 8\n", "song", "minimum", "9 is above the maximum 8"),
        # names
        (SONG + "minimun = 2\n", "song", "minimun", "no such key; did you mean minimum?"),
        (SONG + "[song.ouput]\nbase = 1\n", "song", "ouput", "no such key; did you mean output?"),
        (
            SONG + "[song.output.seconds_out]\nrat = 1\n",
            "song.output.seconds_out",
            "rat",
            "no such key; did you mean rate?",
        ),
        ("base = 1\n", "", "base", "must be a table: [base]"),
        (SONG + "output = 3\n", "song", "output", "must be a table"),
        ("[Song]\nbase = 1\n", "", "Song", "no name for a kind: small letters, digits and _, at most 32"),
        # nothing for nothing
        ("[song]\nbase = 0\n", "song", "base", "every price is 0; write free = true if that is meant"),
        ("[song]\n", "song", "base", "every price is 0; write free = true if that is meant"),
        ("[song]\nfree = true\nbase = 1\n", "song", "free", "the kind is free, but has a price too"),
        ("[song]\nfree = 1\nbase = 1\n", "song", "free", "must be true or false"),
        (
            "[song]\nfree = true\n[[song.overrides]]\nwhen.model = 'a'\nmultiplier = 2\n",
            "song",
            "overrides",
            "never change anything: the kind is free",
        ),
        (
            "[song.output.seconds_in]\nrate = 1\nstep_seconds = 60\nrounding = 'down'\n",
            "song",
            "output.seconds_in.rounding",
            "makes short outputs free: add a base or a minimum",
        ),
        # seconds
        (
            SONG + "[song.output.seconds_out]\nstep_seconds = 5\n",
            "song.output.seconds_out",
            "step_seconds",
            "says nothing without a rate",
        ),
        (
            SONG + "[song.output.seconds_out]\nrate = 1\nstep_seconds = 0\n",
            "song.output.seconds_out",
            "step_seconds",
            "must be between 0.000001 and 86400",
        ),
        (
            SONG + "[song.output.seconds_out]\nrate = 1\nrounding = 'half'\n",
            "song.output.seconds_out",
            "rounding",
            "must be one of up, down, none",
        ),
        # overrides
        (
            SONG + "[[song.overrides]]\nmultiplier = 2\n",
            "song.overrides 1.when",
            "",
            "names no field of the request and no plan",
        ),
        (SONG + "[[song.overrides]]\nwhen.model = 'a'\n", "song.overrides 1", "multiplier", "missing"),
        (
            SONG + "[[song.overrides]]\nwhen.model = 'a'\nmultiplier = 0\n",
            "song.overrides 1",
            "multiplier",
            "must be above 0; write free = true if that is meant",
        ),
        (
            SONG + "[[song.overrides]]\nwhen.model = 'a'\nmultiplier = 250\n",
            "song.overrides 1",
            "multiplier",
            "must be between 0.001 and 100",
        ),
        (
            SONG + "[[song.overrides]]\nwhen.model = 'a'\nmultiplier = 2\nfree = true\n",
            "song.overrides 1",
            "multiplier",
            "either a multiplier or free = true",
        ),
        (
            SONG + "[[song.overrides]]\nwhen.model = 0.5\nmultiplier = 2\n",
            "song.overrides 1.when",
            "model",
            "must be text, a whole number, true or false, or a list of such",
        ),
        (
            SONG + "[[song.overrides]]\nwhen.model = ['a', 'b', 'a']\nmultiplier = 2\n",
            "song.overrides 1.when",
            "model",
            "names 'a' twice",
        ),
        (
            SONG + "[[song.overrides]]\nwhen = { a = 1, b = 1, c = 1, d = 1 }\nmultiplier = 2\n",
            "song.overrides 1.when",
            "",
            "names more than 3 fields",
        ),
        (SONG + "[song.overrides]\nmultiplier = 2\n", "song", "overrides", "must be tables: [[song.overrides]]"),
        # outcomes
        (
            SONG + "[outcomes]\ncanceled = 'nothing'\n",
            "outcomes",
            "canceled",
            "no such ending; did you mean cancelled?",
        ),
        (
            SONG + "[outcomes]\ncancelled = '0%'\n",
            "outcomes",
            "cancelled",
            'must be "measured", "nothing" or a percentage of the hold like "25%"',
        ),
        (
            SONG + "[outcomes]\ncancelled = 25\n",
            "outcomes",
            "cancelled",
            'must be "measured", "nothing" or a percentage of the hold like "25%"',
        ),
        (
            SONG + "[outcomes]\ncancelled_running = 'measured'\n",
            "outcomes",
            "cancelled_running",
            'must be "nothing" or a percentage of the hold: nothing finished was handed over',
        ),
        (
            SONG + "[outcomes]\nsucceeded = 'nothing'\n",
            "outcomes",
            "succeeded",
            "may only be measured: what was finished has its measured price",
        ),
        (  # only a job that broke off on our side is queued with credits held
            SONG + "[outcomes]\ncancelled = '25%'\n",
            "outcomes",
            "cancelled",
            'must be "nothing": what never started costs nothing, and what is queued again broke off on our side',
        ),
        (
            SONG + "[outcomes]\npartial = '50%'\n",
            "outcomes",
            "partial",
            "may only be measured or nothing: what was finished has its measured price",
        ),
        (
            SONG + "[outcomes]\npast_ends_by = '50%'\n",
            "outcomes",
            "past_ends_by",
            'must be "nothing": the customer got nothing and is not to blame, or nothing was held',
        ),
    ],
)
def test_a_bad_book_is_refused_with_table_key_and_reason(document: str, table: str, key: str, reason: str) -> None:
    """One mistake, one problem, and where it is."""
    assert [(table, key, reason)] == problems_of(document)


@pytest.mark.parametrize(
    "ending", ["engine_failure", "engine_crashed", "lost_worker", "time_limit", "quality_gate", "input_damaged"]
)
@pytest.mark.parametrize("value", ["measured", "1%", "100%"])
def test_no_book_charges_for_our_own_failure(ending: str, value: str) -> None:
    """Neither in part nor in full."""
    assert [("outcomes", ending, 'must be "nothing": nobody is charged for our own failure')] == problems_of(
        f'{SONG}[outcomes]\n{ending} = "{value}"\n'
    )


@pytest.mark.parametrize(
    ("tiers", "key", "reason"),
    [
        (
            "{ up_to_seconds = 30, price = 10 }, { up_to_seconds = 20, price = 11 }, { price = 12 }",
            "up_to_seconds",
            "must be above 30, where the tier before ends",
        ),
        (
            "{ up_to_seconds = 30, price = 10 }, { up_to_seconds = 30, price = 11 }, { price = 12 }",
            "up_to_seconds",
            "must be above 30, where the tier before ends",
        ),
        (
            "{ up_to_seconds = 30, price = 10 }, { price = 9 }",
            "price",
            "must not be below 10, the price of the shorter tier before",
        ),
        (
            "{ price = 10 }, { up_to_seconds = 60, price = 11 }, { price = 12 }",
            "up_to_seconds",
            "never reached: the tier before is for any length",
        ),
        (
            "{ up_to_seconds = 1, price = 10 }, { up_to_seconds = 60, price = 11 }",
            "up_to_seconds",
            "leave it out in the last tier, or longer outputs have no price",
        ),
        ("{ up_to_seconds = 1, price = 10 }, {}", "price", "missing"),
        (
            "{ up_to_seconds = 1, price = 10 }, { price = 11, upto = 2 }",
            "upto",
            "no such key; known: price, up_to_seconds",
        ),
    ],
)
def test_tiers_never_fall_and_cover_every_length(tiers: str, key: str, reason: str) -> None:
    """The problem is at the second tier."""
    document = f"{SONG}[song.output.seconds_out]\ntiers = [{tiers}]\n"
    assert ("song.output.seconds_out.tiers 2", key, reason) in problems_of(document)


def overridden(*conditions: str) -> str:
    return SONG + "".join(f"[[song.overrides]]\nwhen = {{ {when} }}\nmultiplier = 2\n" for when in conditions)


@pytest.mark.parametrize(
    "conditions",
    [
        ["model = 'a'", "model = 'a'"],
        ["model = ['a', 'b']", "model = 'b'"],
        ["model = 'a'", "model = 'b'", "model = ['b', 'a']"],  # shadowed by two together
        ["model = 'a', plan = ['x', 'y']", "plan = 'y', model = 'a'"],
    ],
)
def test_an_override_behind_others_that_match_all_of_it_is_refused(conditions: list[str]) -> None:
    """The last one would never count."""
    reason = "never matches: earlier overrides over the same fields match all of it"
    assert [(f"song.overrides {len(conditions)}", "when", reason)] == problems_of(overridden(*conditions))


@pytest.mark.parametrize(
    "conditions",
    [
        ["model = 'a'", "model = ['a', 'b']"],  # still matches b
        ["model = 'a'", "model = 'a', plan = 'x'"],  # another group
        ["model = 'a'", "plan = 'a'"],
        ["hifi = true", "hifi = 1"],  # not the same
        ["hifi = 1", "hifi = '1'"],
    ],
)
def test_overrides_that_can_match_are_taken(conditions: list[str]) -> None:
    """As long as one combination of values is left to it."""
    assert len(conditions) == len(parse_price_book(overridden(*conditions)).kinds["song"].overrides)


@pytest.mark.parametrize(
    ("when", "table", "key", "reason"),
    [
        (
            "modell = 'draft'",
            "generation.overrides 1.when",
            "modell",
            "never matches: no such field; did you mean model?",
        ),
        (
            "model = 'drafd'",
            "generation.overrides 1.when",
            "model",
            "never matches: no such value 'drafd'; did you mean draft?",
        ),
        (
            "model = 'x'",
            "generation.overrides 1.when",
            "model",
            "never matches: no such value 'x'; known: draft, standard, studio",
        ),
        (
            "plan = 'creater'",
            "generation.overrides 1.when",
            "plan",
            "never matches: no such value 'creater'; did you mean creator?",
        ),
    ],
)
def test_overrides_for_what_nobody_can_ask_are_refused(when: str, table: str, key: str, reason: str) -> None:
    """With the kinds' fields and the plans at hand, a misspelt name can't lie there unnoticed."""
    document = f"[generation]\nbase = 1\n[[generation.overrides]]\nwhen = {{ {when} }}\nmultiplier = 2\n"
    assert [(table, key, reason)] == problems_of(document, request_fields=FIELDS, plans=PLANS)


def test_each_kind_has_its_table_and_no_other() -> None:
    """With the kinds at hand, a kind left out or misspelt is refused."""
    document = "[generation]\nbase = 1\n[stem_spilt]\nbase = 1\n[outcome]\nsucceeded = 'measured'\n"
    assert problems_of(document, kinds=["generation", "stem_split"]) == [
        ("", "stem_split", "missing: this kind would have no price"),
        ("", "stem_spilt", "no such kind; did you mean stem_split?"),
        ("", "outcome", "no such kind; did you mean outcomes?"),
    ]


def test_all_problems_are_said_at_once() -> None:
    """In the order of reading; nobody mends a file one refusal at a time."""
    document = """
        [song]
        base = -1
        minimum = 2.5
        [song.output]
        base = nan
        [jingle]
        bass = 3
        [outcomes]
        engine_failure = "10%"
    """
    assert [problem[:2] for problem in problems_of(document)] == [
        ("song", "base"),
        ("song.output", "base"),
        ("song", "minimum"),
        ("jingle", "bass"),
        ("outcomes", "engine_failure"),
    ]


def test_a_problem_reads_as_one_line_without_control_characters() -> None:
    """Names come from the file: a terminal must not obey them."""
    with pytest.raises(PriceBookError) as refused:
        parse_price_book('[song]\nbase = 1\n"\\u001b[2J" = 1\n')
    assert (
        str(refused.value) == r"[song] \u001b[2J: no such key; known: base, free, maximum, minimum, output, overrides"
    )


def test_the_bounds_are_the_callers() -> None:
    """What is absurd differs from shop to shop."""
    bounds = Bounds(credits_max=Decimal(5))
    assert problems_of("[song]\nbase = 6\n", bounds=bounds) == [("song", "base", "must be between 0 and 5")]


def test_half_a_sign_is_refused() -> None:
    """Text that no file can hold has no checksum either."""
    assert "not TOML" in problems_of("# \ud800")[0][2]


@given(st.text(max_size=200) | st.text("[]=.\"'\n# {},0123456789-+einfatrusog", max_size=200))
def test_any_text_is_a_book_or_refused(document: str) -> None:
    """Reading never fails in another way."""
    problems: tuple[Problem, ...] = ()
    try:
        book = parse_price_book(document)
    except PriceBookError as refused:
        problems = refused.problems
    assert problems or document == book.document
