"""Everything that two workers, a reaper, a customer and time can do to two jobs and two credits: the promises hold.

What decides is the product's code; see `metering` for what may happen between its transactions.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.credits.metering import MUTANTS, WORLDS, World, explored, mutated
from worker.compiled import build_here


@pytest.mark.proof
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_in_every_state_the_promises_hold_and_the_end_can_be_reached(world: World, whole: bool) -> None:
    """Nobody is charged twice, no bucket is below zero, old tokens change nothing, a live lease is respected.

    In short, two jobs may fail once less: half the states or fewer.
    """
    if not whole and len(world.quotes) > 1:
        world = replace(world, failures_max=world.failures_max - 1)
    found = explored(world)
    assert found.wrong is None, "\n".join([found.wrong or "", *found.steps])
    assert found.states > 200


@pytest.mark.parametrize("guard", MUTANTS)
def test_without_a_guard_there_is_a_way_to_something_wrong(guard: str) -> None:
    """The model sees what each guard is there for: `python -m tests.unit.credits.metering` prints the way."""
    if isinstance(MUTANTS[guard][1], type) and build_here().modules:
        pytest.skip("a compiled class has no interpreted heir; the interpreted build is tried with this mutant")
    found = mutated(guard)
    assert found.wrong is not None
    assert 2 <= len(found.steps) <= 6
