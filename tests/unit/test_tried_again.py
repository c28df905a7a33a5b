"""Steps of one transaction that lost to another are tried again, with a bound."""

from __future__ import annotations

import pytest

from worker.store.database import TRANSIENT_TRIES, Transient, tried_again


@pytest.mark.parametrize(
    ("code", "losses", "tries", "raises"),
    [
        ("40P01", 0, 1, False),
        ("40P01", TRANSIENT_TRIES - 1, TRANSIENT_TRIES, False),
        ("40001", TRANSIENT_TRIES, TRANSIENT_TRIES, True),
        ("55P03", 1, 1, True),  # it has waited long enough
    ],
)
async def test_a_step_that_lost_is_tried_again_with_a_bound(code: str, losses: int, tries: int, raises: bool) -> None:
    """Deadlocks and serialization failures go away by themselves; a wait for a lock is not repeated."""
    tried = 0

    @tried_again
    async def step() -> str:
        nonlocal tried
        tried += 1
        if tried <= losses:
            raise Transient(code)
        return "done"

    if raises:
        with pytest.raises(Transient):
            await step()
    else:
        assert "done" == await step()
    assert tries == tried
