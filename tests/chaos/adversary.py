"""The plan of a run, drawn from its seed: first each named step once, then each fault once, then at random."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.faults import FAULTS, LONG_FAULTS
from worker.failpoints import MOMENTS, OPERATIONS, PATH

#: Operations that every run must come by: who claims, settles, reaps, cancels and begins cycles.
MONEY = ("claim", "settle", "reap", "cancel", "turn")
#: What this load does not bring about within a minute: nobody ends a job by force here, credits wake who waits in the
#: batch that brings them, and no balance falls below what somebody wants to be told of. Each is died at in
#: `tests/acceptance/test_crash_points.py`.
ELSEWHERE = frozenset({"force_end", "wake", "notify"})
#: Transactions that a load passes, beside those of `OPERATIONS`.
BY_LOAD = ("page", "submit", "take_turns", "mark_hints", "unhint", "ripen", "renew", "report_progress", "remember") + (
    *("claim_deliveries", "end_delivery", "worker_here", "process_here", "note_duty", "use_keys"),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """How much of it."""

    name: str
    random_seconds: float
    long_faults: bool
    #: Seconds between two random faults, on average.
    gap_seconds: float = 0.7
    #: Until all must have drained once everything is healed.
    drain_seconds: float = 180.0


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("smoke", random_seconds=20, long_faults=False),
        Profile("full", random_seconds=150, long_faults=True),
        Profile("soak", random_seconds=3000, long_faults=True),
    )
}


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that the adversary does, and how long it waits afterwards."""

    number: int
    kind: str  # crash at a step, a fault alone, a fault among others
    what: str
    gap_seconds: float = 0.0


def steps_of(profile: Profile) -> Collection[str]:
    """The named steps that a process is killed at: those of a job's path and its money; in a long run all that load
    and time can bring about. At what people do by hand, each has a test of its own."""
    operations = OPERATIONS - ELSEWHERE if profile.long_faults else MONEY
    moments = [f"{step}.{moment}" for step in operations for moment in MOMENTS]
    seldom = [f"{step}.{moment}" for step in BY_LOAD for moment in MOMENTS] if profile.long_faults else []
    return sorted({*PATH, *moments, *seldom})


def plan(seed: int, profile: Profile, steps: Collection[str], until: int | None = None) -> list[Act]:
    """The whole of a run. The same seed, profile and steps give the same plan; `until` ends it early.

    The faults are the same whatever the steps: the control, which has none of ours, meets them as we do.
    """
    acts: list[tuple[str, str, float]] = [
        ("crash", step, 0.0) for step in _shuffled(random.Random(f"steps {seed}"), sorted(steps))
    ]
    dice = random.Random(f"plan {seed}")
    alone = [*FAULTS, *(LONG_FAULTS if profile.long_faults else ())]
    acts += [("alone", fault, 0.0) for fault in _shuffled(dice, alone)]
    names, weights = list(FAULTS), [weight for _, weight in FAULTS.values()]
    seconds = 0.0
    while seconds < profile.random_seconds:
        gap = 2 * profile.gap_seconds * dice.random()
        acts.append(("among", dice.choices(names, weights)[0], gap))
        seconds += gap
    numbered = [Act(number, *act) for number, act in enumerate(acts, start=1)]
    return numbered[:until]


def _shuffled(dice: random.Random, names: Sequence[str]) -> list[str]:
    return dice.sample(names, len(names))
