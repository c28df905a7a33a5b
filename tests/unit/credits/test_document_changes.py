"""What changed between two documents, as people read it."""

from __future__ import annotations

import pytest

from worker.credits.document_changes import changes_between


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("base = 1", "base = 2", ["~ base: 1 -> 2"]),
        ("[a]\nbase = 1", "[a]\nbase = 1.5", ["~ [a] base: 1 -> 1.5"]),
        ("[a]\nbase = 1", "[a]\nfree = true", ["+ [a] free = true", "- [a] base = 1"]),
        ("[a]\nfree = true", "[a]\nfree = 1", ["~ [a] free: true -> 1"]),
        ("[a.b]\nx = 'one'", "[a.b]\nx = ['one', 'two']", ['~ [a.b] x: "one" -> ["one", "two"]']),
        ("[a]\nx = 1\ny = 2 # why", "[a]\ny = 2\nx = 1", []),
        ("x = 1", "x = 1.0", []),
        ("[[t]]\nup = 1\n[[t]]\nup = 2", "[[t]]\nup = 1\n[[t]]\nup = 3", ["~ [t 2] up: 2 -> 3"]),
    ],
)
def test_a_change_is_one_line(before: str, after: str, lines: list[str]) -> None:
    """With its table, its key, and both values; order, comments and layout are no change."""
    assert lines == [str(change) for change in changes_between(before, after)]


ONE = '[[o]]\nwhen = { model = "one" }\nx = 1\n'
TWO = '[[o]]\nwhen = { model = ["one", "two"] }\nx = 2\n'
NEW = '[[o]]\nwhen = { plan = "p" }\nx = 3\n'


def test_a_table_with_a_condition_is_known_by_it() -> None:
    """A new one in front moves nothing, but another order among those that stay is a change."""
    assert ['+ [o if plan = "p"] x = 3'] == [str(change) for change in changes_between(ONE + TWO, NEW + ONE + TWO)]
    (swapped,) = changes_between(ONE + TWO, NEW.replace("x = 3", "") + TWO + ONE)
    assert ("o", "order") == (swapped.table, swapped.key)
