"""How much a new book changes what customers pay."""

from __future__ import annotations

import pytest

from worker.credits.price_changes import kind_changes, large_changes
from worker.credits.prices import PriceBook, parse_price_book

SONG = """
[song.output]
base = 10
[song.output.seconds_out]
rate = 1
step_seconds = 10
[[song.overrides]]
when = { model = "studio" }
multiplier = 2
"""


def book(document: str) -> PriceBook:
    return parse_price_book(document)


@pytest.mark.parametrize(
    ("old", "new", "percent"),
    [
        ("rate = 1", "rate = 1  # the same", None),
        ("multiplier = 2", "multiplier = 3", 50),
        ("multiplier = 2", "multiplier = 1", -50),
        # Only songs above 1000 s cost more, and they cost a third more at once.
        (
            "[[song.overrides]]",
            "[[song.output.seconds_out.tiers]]\nup_to_seconds = 1000\nprice = 0\n"
            "[[song.output.seconds_out.tiers]]\nprice = 40\n[[song.overrides]]",
            36,
        ),
        # Nobody named this model before: those who ask for it get it for half.
        ("multiplier = 2", 'multiplier = 2\n[[song.overrides]]\nwhen = { model = "draft" }\nmultiplier = 0.5', -50),
    ],
)
def test_the_largest_change_is_found(old: str, new: str, percent: int | None) -> None:
    """Whichever request it hits: any model, any side of a bound, longer or shorter."""
    found = kind_changes(book(SONG), book(SONG.replace(old, new)))
    assert percent == (found[0].percent if found else None)


def test_a_sentence_says_which_request_changes_how() -> None:
    """With an example that anybody can quote."""
    (line,) = large_changes(book(SONG), book(SONG.replace("multiplier = 2", "multiplier = 3")), 20)
    assert line.startswith("song costs +50 % (")
    assert "model = studio" in line
    assert () == large_changes(book(SONG), book(SONG.replace("multiplier = 2", "multiplier = 3")), 50)


def test_a_little_more_than_allowed_is_more_than_allowed() -> None:
    """20.4 % is not rounded down to 20 %, and the sentence doesn't say 20 either."""
    (line,) = large_changes(book("[song]\nbase = 1000\n"), book("[song]\nbase = 1204\n"), 20)
    assert line.startswith("song costs +20.4 % (")
    assert () == large_changes(book("[song]\nbase = 1000\n"), book("[song]\nbase = 1200\n"), 20)


@pytest.mark.parametrize(("draft", "studio"), [(59, 600), (39, 400), (39, 600), (59, 400)])
def test_a_large_change_is_not_hidden_by_one_that_is_just_small_enough(draft: int, studio: int) -> None:
    """49 -> 59 is 20.4 % up and 49 -> 39 as much down, beside 500 -> 600 or 400: 20 %, but more credits."""
    models = '[song]\nbase = 10\n[[song.overrides]]\nwhen = {{ model = "draft" }}\nmultiplier = {}\n'
    models += '[[song.overrides]]\nwhen = {{ model = "studio" }}\nmultiplier = {}\n'
    (line,) = large_changes(book(models.format(4.9, 50)), book(models.format(draft / 10, studio / 10)), 20)
    assert f"model = draft: 49 -> {draft} credits" in line
    # Of two that are too large, the larger one is told.
    (line,) = large_changes(book(models.format(4.9, 50)), book(models.format(draft / 10, studio / 10)), 10)
    assert f"model = draft: 49 -> {draft} credits" in line


def test_a_rate_that_goes_from_one_axis_to_the_other_is_a_change() -> None:
    """For a song, which reads nothing: it was cheap by a slip, and now its length counts."""
    slip = book(SONG.replace("seconds_out", "seconds_in"))
    (line,) = large_changes(slip, book(SONG), 20)
    assert "s written, model = studio: 80 -> " in line


def test_what_was_free_and_is_not_any_more_is_a_large_change() -> None:
    """However large the percentage that may change."""
    free = "[song]\nfree = true\n"
    (line,) = large_changes(book(free), book(SONG), 10_000)
    assert line.startswith("song costs something (")
    assert [-100] == [change.percent for change in kind_changes(book(SONG), book(free))]


def test_more_requests_than_can_be_tried_are_a_large_change() -> None:
    """What can't be looked at is not waved through."""
    overrides = "".join(
        f'\n[[song.overrides]]\nwhen = {{ field_{n} = ["a", "b", "c"] }}\nmultiplier = 1.{n}\n' for n in range(6)
    )
    (line,) = large_changes(book(SONG), book(SONG + overrides), 10_000)
    assert line == "song has more requests than can be tried"


def test_an_ending_that_charges_more_is_a_change() -> None:
    """In points of what was reserved."""
    dear = SONG + '\n[outcomes]\ncancelled_running = "30%"\n'
    assert ("cancelled_running charges 30% instead of nothing",) == large_changes(book(SONG), book(dear), 20)
    assert () == large_changes(book(SONG), book(dear), 30)


def test_a_kind_that_only_one_book_knows_changes_nothing() -> None:
    """A new kind was never bought; a gone one is refused elsewhere."""
    other = SONG.replace("song", "dance")
    assert () == kind_changes(book(SONG), book(SONG + other)) == kind_changes(book(SONG + other), book(SONG))


def test_a_price_that_can_not_be_sold_is_a_large_change() -> None:
    """It is no error: the draft may be meant so."""
    dear = "[song.output.seconds_out]\nrate = 100_000\nstep_seconds = 0.000001\n"
    (line,) = large_changes(book(SONG), book(dear), 1_000)
    assert "1000000000000 credits" in line
