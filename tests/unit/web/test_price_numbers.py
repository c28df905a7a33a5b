"""The numbers of a price book as a form: found in order, written back with every comment kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.credits.document_changes import changes_between
from worker.store.errors import Refused
from worker.web.dashboard.price_numbers import numbers_of, with_numbers

SHIPPED = (Path(__file__).parents[3] / "config" / "prices.toml").read_text()


def test_every_number_is_a_field_with_its_table() -> None:
    """An override is known by what it matches."""
    fields = {(field.table, field.key): field.value for field in numbers_of(SHIPPED)}
    assert "4" == fields["generation output", "base"]
    assert "0.5" == fields["generation overrides model draft", "multiplier"]


def test_what_is_not_touched_stays_as_it_is_to_the_last_comment() -> None:
    """Sending the form unchanged gives the very document."""
    assert SHIPPED == with_numbers(SHIPPED, {field.place: field.value for field in numbers_of(SHIPPED)})


def test_one_number_changes_one_line() -> None:
    """The document differs in exactly that value, written as it was typed."""
    place = next(field.place for field in numbers_of(SHIPPED) if field.value == "2.5")
    changed = with_numbers(SHIPPED, {place: "2.25"})
    assert [("2.5", "2.25")] == [(change.before, change.after) for change in changes_between(SHIPPED, changed)]
    differing = [line for old, line in zip(SHIPPED.splitlines(), changed.splitlines(), strict=True) if old != line]
    assert ["multiplier = 2.25"] == differing


@pytest.mark.parametrize("typed", ["", "-1", "1e9", "nan", "4 # 5", "0x10", "1,5", "4\nbase = 5"])
def test_what_is_no_number_is_refused(typed: str) -> None:
    """Nothing but a plain number gets into the document."""
    with pytest.raises(Refused, match="must be a number"):
        with_numbers(SHIPPED, {"generation/output/base": typed})


def test_a_place_that_is_gone_is_refused() -> None:
    """The form was made from another document: nothing is guessed."""
    with pytest.raises(Refused, match="changed meanwhile"):
        with_numbers(SHIPPED, {"generation/output/nothing": "1"})


def test_what_is_no_toml_has_no_fields() -> None:
    """The page shows the document alone, and its problems."""
    assert () == numbers_of("[broken")
