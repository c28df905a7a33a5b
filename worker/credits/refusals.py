"""Why a job could not be paid, as the customer needs it: what is missing, where it is, and which pack would do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from worker.credits.allocation import Shortfall
from worker.credits.plans import Pack, PlanBook

#: Jobs named at most; `held` has the credits of all.
HOLDS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class HeldBy:
    """A job that holds credits: they come back, or are spent, when it ends."""

    job: UUID
    credits: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a price needed and what there was. `pack`: the smallest that would have done, if any one would."""

    needed: int
    available: int
    held: int
    held_by: tuple[HeldBy, ...]  # the largest holds first
    frozen: int  # top-ups of an account without an active subscription: there, but not spendable
    pack: Pack | None


def refusal_of(
    shortfall: Shortfall, holds: Iterable[HeldBy], plans: PlanBook, *, topups_frozen: bool, debt: int = 0
) -> Refusal:
    """The whole answer. Without a subscription no pack helps: what is bought then is born frozen.

    A pack pays the account's `debt` first, so one that would do covers both.
    """
    missing = shortfall.needed - shortfall.available + debt
    largest = sorted(holds, key=lambda hold: (-hold.credits, hold.job))[:HOLDS_SHOWN_MAX]
    return Refusal(
        needed=shortfall.needed,
        available=shortfall.available,
        held=shortfall.held,
        held_by=tuple(largest),
        frozen=shortfall.frozen,
        pack=None if topups_frozen else plans.smallest_pack(missing),
    )


def words_of(refusal: Refusal) -> str:
    """The answer on one line."""
    parts = [f"needed {refusal.needed:,}, available {refusal.available:,}"]
    if refusal.held:
        parts.append(f"{refusal.held:,} held by {_jobs(len(refusal.held_by))} under way")
    if refusal.frozen:
        parts.append(f"{refusal.frozen:,} frozen until the account has an active subscription")
    if refusal.pack:
        parts.append(f"the pack {refusal.pack.name} ({refusal.pack.credits:,} credits) would do")
    return "; ".join(parts)


def _jobs(count: int) -> str:
    if count >= HOLDS_SHOWN_MAX:
        return f"{count} or more jobs"
    return f"{count} job{'' if count == 1 else 's'}"
