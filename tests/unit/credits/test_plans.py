"""Plans and packs: read as a whole, or refused with every problem."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from worker.credits.documents import Problem
from worker.credits.plans import Pack, Plan, PlanBook, PlanBookError, parse_plan_book
from worker.credits.prices import Usage, parse_price_book, price

MODELS = {
    "generation": ["draft", "standard", "studio"],
    "vocal_conversion": ["standard", "studio"],
    "stem_split": [],
}
SHIPPED = Path(config.__file__).parent

SOLO = """
[plans.solo]
monthly_credits = 300
price_shown = "9 €"
kinds = ["generation", "stem_split"]
jobs_at_a_time = 2
"""


def problems_of(document: str) -> list[tuple[str, str, str]]:
    """Table, key and reason of each problem."""
    with pytest.raises(PlanBookError) as refused:
        parse_plan_book(document, models=MODELS)
    return [(problem.table, problem.key, problem.reason) for problem in refused.value.problems]


def a_book(*packs: int) -> PlanBook:
    """One plan, and packs of so many credits."""
    tables = "".join(f"[packs.p{number}]\ncredits = {size}\nprice_shown = 'x'\n" for number, size in enumerate(packs))
    return parse_plan_book(SOLO + tables)


def test_plans_and_packs_are_read_in_full() -> None:
    """Every word ends in its value; what is left out has its default."""
    document = f"""{SOLO}
        priority = 7
        warn_below = 20
        [plans.solo.models]
        generation = ["draft"]
        [plans.plain]
        monthly_credits = 1
        price_shown = "1 €"
        kinds = ["stem_split"]
        jobs_at_a_time = 1
        [packs.small]
        credits = 100
        price_shown = "4 €"
    """
    book = parse_plan_book(document, models=MODELS)
    solo = Plan("solo", 300, ("generation", "stem_split"), {"generation": ("draft",)}, 7, 2, "9 €", 20)
    assert {"solo": solo, "plain": Plan("plain", 1, ("stem_split",), {}, 0, 1, "1 €")} == book.plans
    assert {"small": Pack("small", 100, "4 €")} == book.packs
    assert (document, hashlib.sha256(document.encode()).hexdigest()) == (book.document, book.digest)
    assert book == parse_plan_book(book.document)


def test_the_plans_we_ship_are_right() -> None:
    """Three plans and three packs, and the prices that their comments name."""
    book = parse_plan_book((SHIPPED / "plans.toml").read_text(encoding="utf-8"), models=MODELS)
    assert list(book.plans) == ["starter", "creator", "label"]
    assert list(book.packs) == ["small", "medium", "large"]
    prices = parse_price_book((SHIPPED / "prices.toml").read_text(encoding="utf-8"))
    song = [Usage(seconds_out=Usage().seconds_out + 120)]
    assert price(prices, "generation", song, {"model": "standard"}, None).total == 28
    assert price(prices, "generation", song, {"model": "draft"}, None).total == 14


@pytest.mark.parametrize(
    ("kind", "model", "allowed"),
    [
        ("generation", "draft", True),
        ("generation", "studio", False),  # a model of a dearer plan
        ("generation", None, False),
        ("stem_split", None, True),
        ("stem_split", "any", True),  # no models named: all of them
        ("vocal_conversion", "standard", False),  # not a kind of this plan
    ],
)
def test_a_plan_allows_its_kinds_and_models_only(kind: str, model: str | None, allowed: bool) -> None:
    """A kind that is not named is not sold; a model list is complete."""
    book = parse_plan_book(SOLO + "models.generation = ['draft', 'standard']\n")
    assert allowed == book.plans["solo"].allows(kind, model)


@pytest.mark.parametrize(("needed", "name"), [(0, "p1"), (100, "p1"), (101, "p2"), (2000, "p0"), (2001, None)])
def test_the_smallest_pack_that_would_do(needed: int, name: str | None) -> None:
    """Whatever the order of the file; none where one pack is not enough."""
    pack = a_book(2000, 100, 500).smallest_pack(needed)
    assert name == (pack and pack.name)


def test_without_packs_none_would_do() -> None:
    """Packs may be left out."""
    assert a_book().smallest_pack(1) is None


@pytest.mark.parametrize(
    ("document", "table", "key", "reason"),
    [
        ("", "", "plans", "there must be at least one plan"),
        ("plans = 3\n[packs]", "", "plans", "must be a table"),
        (SOLO + "[plans.solo]\n", "", "", "not TOML: Cannot declare ('plans', 'solo') twice (at line 7, column 12)"),
        (SOLO + "[pack.small]\ncredits = 1\n", "", "pack", "no such key; did you mean packs?"),
        (SOLO + "[packs.Small]\n", "packs", "Small", "no name: small letters, digits and _, at most 32"),
        (SOLO + "[packs]\nsmall = 1\n", "packs", "small", "must be a table"),
        (
            SOLO + "[packs.small]\ncredits = 0\nprice_shown = 'x'\n",
            "packs.small",
            "credits",
            "must be between 1 and 10000000",
        ),
        (SOLO + "[packs.small]\nprice_shown = 'x'\n", "packs.small", "credits", "missing"),
        (
            SOLO + "[packs.small]\ncredits = 1\nprice_shown = ' '\n",
            "packs.small",
            "price_shown",
            "must be text of 1 to 80 characters on one line",
        ),
        (
            SOLO + "[packs.small]\ncredits = 1\nprice_shown = '1\\u0007'\n".replace("'", '"'),
            "packs.small",
            "price_shown",
            "must be text of 1 to 80 characters on one line",
        ),
        (SOLO.replace("= 300", "= 300.5"), "plans.solo", "monthly_credits", "must be a whole number"),
        (SOLO.replace("= 300", "= -1"), "plans.solo", "monthly_credits", "must be between 1 and 10000000"),
        (SOLO.replace("= 300", "= true"), "plans.solo", "monthly_credits", "must be a whole number"),
        (
            SOLO.replace("monthly_credits", "montly_credits"),
            "plans.solo",
            "montly_credits",
            "no such key; did you mean monthly_credits?",
        ),
        (SOLO.replace("= 2", "= 0"), "plans.solo", "jobs_at_a_time", "must be between 1 and 1000"),
        (SOLO + "priority = 101\n", "plans.solo", "priority", "must be between 0 and 100"),
        (
            SOLO.replace('["generation", "stem_split"]', "[]"),
            "plans.solo",
            "kinds",
            "must be a list of at least one word",
        ),
        (SOLO.replace('"stem_split"', '"generation"'), "plans.solo", "kinds", "names something twice"),
        (
            SOLO.replace('"stem_split"', '"stem_spilt"'),
            "plans.solo",
            "kinds",
            "no such kind: stem_spilt; did you mean stem_split?",
        ),
        (
            SOLO + "models.generation = ['drafd']\n",
            "plans.solo.models",
            "generation",
            "no such model: drafd; did you mean draft?",
        ),
        (SOLO + "models.generation = []\n", "plans.solo.models", "generation", "must be a list of at least one word"),
        (
            SOLO + "models.vocal_conversion = ['studio']\n",
            "plans.solo.models",
            "vocal_conversion",
            "not among the kinds of this plan; known: generation, stem_split",
        ),
    ],
)
def test_a_bad_file_is_refused_with_table_key_and_reason(document: str, table: str, key: str, reason: str) -> None:
    """The problem stands among those found, and says where it is."""
    assert (table, key, reason) in problems_of(document)


def test_all_problems_are_said_at_once() -> None:
    """In plans and in packs, in the order of reading."""
    document = SOLO.replace("300", "0") + "colour = 'red'\n[packs.small]\ncredits = 'many'\nprice_shown = 'x'\n"
    assert [problem[:2] for problem in problems_of(document)] == [
        ("plans.solo", "monthly_credits"),
        ("plans.solo", "colour"),
        ("packs.small", "credits"),
    ]


@given(st.text(max_size=200) | st.text("[]=.\"'\n# {},0123456789-plansckx_", max_size=200))
def test_any_text_is_a_plan_book_or_refused(document: str) -> None:
    """Reading never fails in another way."""
    problems: tuple[Problem, ...] = ()
    try:
        book = parse_plan_book(document)
    except PlanBookError as refused:
        problems = refused.problems
    assert problems or document == book.document
