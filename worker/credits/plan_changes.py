"""How much a new plan book changes what is sold: the changes that may be a slip of the finger, each as a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from worker.credits.plans import PlanBook

#: What is new has nothing to be compared with but the largest of its sort: some zeros too many show up there.
_NEW_FACTOR_MAX = 10


def large_plan_changes(before: PlanBook, after: PlanBook, percent_max: int) -> tuple[str, ...]:
    """Plans and packs that bring by more than so many percent more or fewer credits; nothing if nothing does.

    A new one counts where it brings more than ten times what the largest did. One that is no longer sold does not:
    whoever has it keeps it.
    """
    old, new = (_monthly(book) for book in (before, after))
    plans = _large("plan", "credits a month", old, new, percent_max)
    old, new = (_once(book) for book in (before, after))
    return (*plans, *_large("pack", "credits", old, new, percent_max))


def _monthly(book: PlanBook) -> dict[str, int]:
    return {plan.name: plan.monthly_credits for plan in book.plans.values()}


def _once(book: PlanBook) -> dict[str, int]:
    return {pack.name: pack.credits for pack in book.packs.values()}


def _large(what: str, unit: str, old: Mapping[str, int], new: Mapping[str, int], percent_max: int) -> Iterator[str]:
    largest = max(old.values(), default=0)
    for name, credits_ in new.items():
        before = old.get(name)
        if before is None:
            if largest and credits_ > _NEW_FACTOR_MAX * largest:
                yield f"the new {what} {name} brings {credits_:,} {unit}, the largest so far {largest:,}"
        elif 100 * abs(credits_ - before) > percent_max * before:
            # To one place, so that nobody reads of 20 % that are more than 20 %.
            percent = f"{round(100 * (credits_ - before) / before, 1):+,g} %"
            yield f"{what} {name} brings {credits_:,} {unit} instead of {before:,} ({percent})"
