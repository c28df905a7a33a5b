"""What of a person may stand where: every column has its class, and what stays after an erasure is told to people."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from sqlalchemy import LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from tests.personal import ERASED, KEPT, OURS, kept, ours
from worker.store.tables import metadata

RUNBOOK = Path(__file__).parents[2] / "docs/RUNBOOK.md"


def worded() -> set[str]:
    """Every column in which words could stand."""
    return {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(
            column.type.item_type if isinstance(column.type, ARRAY) else column.type, Text | JSONB | LargeBinary
        )
    }


def test_every_column_that_can_hold_words_has_a_class() -> None:
    """A new one must say whether an erasure empties it, and else why it stays or holds nobody's words."""
    classes = [ERASED, *KEPT.values(), *OURS.values()]
    assert worded() == frozenset().union(*classes)
    assert not [both for one, other in combinations(classes, 2) if (both := one & other)]


def test_the_journal_holds_no_words_of_anybody() -> None:
    """It is what is never erased: ids, our own words, and who of the staff or which key did it."""
    books = {"journal", "checkpoints", "carried_draws", "reservations", "journal_months"}
    held = {column for column in worded() if column.partition(".")[0] in books}
    assert {"journal.actor"} == held - ours()
    assert "journal.actor" in kept()


def test_people_are_told_what_stays_and_why() -> None:
    """The runbook names every column that an erasure leaves, beside its reason."""
    told = " ".join(RUNBOOK.read_text().split())
    for reason, columns in KEPT.items():
        assert reason in told
        assert not [column for column in columns if f"`{column}`" not in told and not column.endswith(".actor")]
