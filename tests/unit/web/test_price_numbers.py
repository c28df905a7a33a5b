"""The numbers of a price book as a form: found in order, written back with every comment kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.credits.document_changes import changes_between
from worker.store.errors import Refused
from worker.web.dashboard.price_numbers import fields_with, numbers_of, with_numbers

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


@pytest.mark.parametrize(
    "typed", ["", "-1", "1e9", "nan", "4 # 5", "0x10", "1,5", "4\nbase = 5", "\uff14", "04", "007.5"]
)
def test_what_is_no_number_is_refused(typed: str) -> None:
    """Nothing but a plain number gets into the document."""
    with pytest.raises(Refused, match="must be a number"):
        with_numbers(SHIPPED, {"generation/output/base": typed})


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("0x5", "5"),
        ("0o17", "15"),
        ("0b11", "3"),
        ("+5", "5"),
        ("1_0.5", "10.5"),
        ("1e3", "1E+3"),
        ("1e9999999999999999999999", "1e9999999999999999999999"),
    ],
)
def test_every_way_to_write_a_number_has_a_field(written: str, shown: str) -> None:
    """Whatever TOML takes, also what no book may say: the page that shows the draft must open. Left alone, it stays."""
    document = SHIPPED.replace("\nbase = 4\n", f"\nbase = {written}\n", 1)
    fields = {field.place: field.value for field in numbers_of(document)}
    assert shown == fields["generation/output/base"]
    assert document == with_numbers(document, fields)


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("[[generation.overrides]]\nwhen = 3\nmultiplier = 2\n", "generation/overrides/2/multiplier"),
        ("[extra]\n3 = 1\n", "extra/3"),
        ("[extra.3]\nbase = 1\n", "extra/3/base"),
    ],
)
def test_a_wrong_draft_has_fields_too(more: str, place: str) -> None:
    """Its numbers are found again, whatever their keys are; that the draft is refused is said elsewhere."""
    document = f"{SHIPPED}\n{more}"
    assert place in {field.place for field in numbers_of(document)}
    assert "= 7.5\n" in with_numbers(document, {place: "7.5"})


def test_a_key_that_no_place_can_name_has_no_field() -> None:
    """A place is keys joined by slashes."""
    assert numbers_of(SHIPPED) == numbers_of(f'{SHIPPED}\n["a/b"]\nbase = 1\n"c/d" = 2\n')


def test_a_place_that_is_gone_is_refused() -> None:
    """The form was made from another document: nothing is guessed."""
    with pytest.raises(Refused, match="changed meanwhile"):
        with_numbers(SHIPPED, {"generation/output/nothing": "1"})


def test_an_emptied_field_without_a_place_is_let_go() -> None:
    """So that whoever deleted a table in the document need not put it back."""
    assert SHIPPED == with_numbers(SHIPPED, {"generation/output/nothing": ""})


def test_a_number_that_both_have_changed_is_refused() -> None:
    """In the form from 3 to 5, in the document from 3 to 4: neither is guessed. Where both say 4 there is no doubt."""
    place = "generation/output/base"
    with pytest.raises(Refused, match="base: is 4 in the document and 5 in the form: make them the same"):
        with_numbers(SHIPPED, {place: "5"}, {place: "3"})
    assert SHIPPED == with_numbers(SHIPPED, {place: "4"}, {place: "3"})


def test_what_was_typed_and_not_written_stays_in_its_field() -> None:
    """Also where the document has no such place, or is no TOML, any more."""
    place, lost = "generation/output/base", "generation/output/gone"
    shown = {field.place: field for field in fields_with(numbers_of(SHIPPED), {place: "4,5", lost: "7"})}
    assert ("4,5", "7") == (shown[place].value, shown[lost].value)
    assert ("generation output", "gone") == (shown[lost].table, shown[lost].key)
    assert {field.place for field in numbers_of(SHIPPED)} | {lost} == shown.keys()
    assert ["7"] == [field.value for field in fields_with(numbers_of("[broken"), {lost: "7"})]


def test_what_is_no_toml_has_no_fields() -> None:
    """The page shows the document alone, and its problems."""
    assert () == numbers_of("[broken")
