"""What tests share that tell any story to the real store and to a model: how many, and what the auditor says."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

from tests.integration.books import Store
from worker.store.audit import Violation, audit_on
from worker.store.snapshots import snapshot

#: Ten years: no job ends by itself in these stories.
LONG = 10 * 365 * 86_400.0

#: How many in `make test`, and in `make proof`: always the same. Set STORIES for more, which are always others.
SHORT, WHOLE = 5, 40


def as_stories(steps: int, steps_of_many: int, *, whole: bool) -> settings:
    """Of so many steps each; of more where many are asked for."""
    examples = int(os.environ.get("STORIES", WHOLE if whole else SHORT))
    many = examples > 100
    return settings(
        max_examples=examples,
        stateful_step_count=steps_of_many if many else steps,
        deadline=None,
        # A story that fails is told as it is: to shorten it would take minutes.
        phases=[Phase.generate, Phase.shrink] if many else [Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=not many,
    )


async def violations(store: Store) -> tuple[Violation, ...]:
    """What the auditor finds. No scheduler and no worker lives here: leases lapse, and nobody takes them back."""
    async with snapshot(store.engine) as connection:
        return (await audit_on(connection, LONG, LONG)).violations
