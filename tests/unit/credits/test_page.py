"""What a page writes: lists that are there when they are asked for, and nothing that nobody filled."""

from __future__ import annotations

from uuid import UUID

import pytest

from worker.credits.lots import Move
from worker.credits.page import Writes
from worker.credits.states import JobState

JOB = UUID(int=1)


def test_a_list_is_kept_once_it_was_asked_for() -> None:
    """The second who asks gets what the first put into it."""
    writes = Writes()
    writes.due_gone.append(JOB)
    writes.unhinted += [(JOB, None)]
    assert ([JOB], [(JOB, None)]) == (writes.due_gone, writes.unhinted)
    assert {"due_gone": [JOB], "unhinted": [(JOB, None)]} == writes.written
    assert ["due_gone", "unhinted"] == list(vars(writes))


def test_looking_at_a_list_writes_nothing() -> None:
    """Two pages that write the same are equal, whoever looked at what."""
    looked = Writes()
    assert ([], []) == (looked.parked, looked.jobs)
    assert {} == looked.written
    assert Writes() == looked
    looked.more_room = True
    assert Writes() != looked


def test_a_misspelt_list_is_an_error() -> None:
    """It would be written nowhere."""
    with pytest.raises(AttributeError, match="unhintd"):
        Writes().unhintd.append((JOB, None))


@pytest.mark.parametrize("words", [JobState, Move])
def test_words_of_the_hot_path_stand_in_their_class(words: type[JobState] | type[Move]) -> None:
    """So that reading one is no call, and still it is the member itself."""
    assert all(vars(words)[member.name] is member is words[member.name] for member in words)
