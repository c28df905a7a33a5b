"""docs/THREATS.md: each of its claims is held by tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cases import missing

PAGE = (Path(__file__).parents[2] / "docs" / "THREATS.md").read_text()
#: Who was asked about.
ATTACKERS = ("Redis", "a pipeline's key", "a customer's token", "a malicious audio file", "the role of product people")
PLACE = re.compile(r"`((?:unit|integration|acceptance|browser|chaos)/[\w/]+\.py::\w+)`")


def test_every_claim_names_tests_that_are_there() -> None:
    """A row without one, or one that was renamed, is a promise that nobody keeps."""
    rows = [line for line in PAGE.splitlines() if line.startswith(("| can ", "| can't "))]
    assert len(rows) > 40
    assert [] == [row for row in rows if not PLACE.search(row.rsplit("|", 2)[1])]
    assert [] == missing(PLACE.findall(PAGE))


def test_every_place_that_is_named_can_be_read_as_one() -> None:
    """A slip in a path would make a claim look held."""
    assert len(re.findall(r"`[^`]*::[^`]*`", PAGE)) == len(PLACE.findall(PAGE))


def test_every_attacker_has_a_part() -> None:
    """Each with what can be done, and what can't."""
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert set(ATTACKERS) <= {part.splitlines()[0].partition(" ")[2] for part in parts}
    assert [] == [part.splitlines()[0] for part in parts if "| can't |" not in part]
