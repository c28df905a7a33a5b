"""Past jobs under another price book: what they would have cost, and who could not have paid.

Jobs come account by account, each account's in the order in which they were asked for. What is kept grows with the
kinds, models and plans that there are, never with the jobs or the accounts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, assert_never
from uuid import UUID

from worker.credits.outcomes import Basis, Ending, charge_for
from worker.credits.plans import PlanBook
from worker.credits.price_book import PriceBook
from worker.credits.prices import PriceTooHigh, UnknownPrice, Usage, price
from worker.credits.purse import Purse, PurseLot
from worker.credits.values import value

T = TypeVar("T")

#: Kind, model, plan; empty where there is none.
_Key = tuple[str, str, str]

#: Accounts that are named; of all others only the number is told.
NAMED_MAX = 20

_SOLD = frozenset({Ending.SUCCEEDED, Ending.PARTIAL})


@value
class PastJob:
    """A job that started and ended. `usages` is what was measured, `most` what it could have used, if that is known."""

    account_id: str
    job_id: UUID
    kind: str
    plan: str | None
    request: Mapping[str, Any]
    ending: Ending
    quoted: int
    charged: int
    started_at: datetime
    usages: Sequence[Usage]
    most: Sequence[Usage] | None = None


@dataclass(slots=True)
class Sum:
    """Jobs, and the credits they did cost and would have cost. `sold`: those that brought something."""

    jobs: int = 0
    sold: int = 0
    before: int = 0
    after: int = 0

    def add(self, job: PastJob, after: int) -> None:
        self.jobs += 1
        self.sold += job.ending in _SOLD
        self.before += job.charged
        self.after += after


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a kind, a kind and its model, or a plan."""

    name: str
    jobs: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Month:
    """How many jobs of a kind one month's credits of a plan buy, at what such jobs cost on average."""

    plan: str
    kind: str
    credits: int
    jobs_before: int
    jobs_after: int


@dataclass(frozen=True, slots=True)
class Mover:
    """An account that pays more or less."""

    account: str
    jobs: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class RanOut:
    """An account that could not have paid jobs which it did pay, the first of them started then."""

    account: str
    jobs: int
    first_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rehearsal found. `unpriced`: jobs for which the book, or their own request, gives no price."""

    jobs: int
    accounts: int
    before: int
    after: int
    unpriced: int
    kinds: tuple[Row, ...]
    models: tuple[Row, ...]
    plans: tuple[Row, ...]
    months: tuple[Month, ...]
    accounts_dearer: int
    accounts_cheaper: int
    movers: tuple[Mover, ...]
    accounts_run_out: int
    run_out: tuple[RanOut, ...]


def endings_by_hold(book: PriceBook) -> frozenset[Ending]:
    """The endings that charge a part of what was reserved: their jobs need to know the most they could use."""
    return frozenset(ending for ending, charge in book.outcomes.items() if charge.basis is Basis.HOLD)


def charge_under(book: PriceBook, job: PastJob) -> int | None:
    """What the job would have been charged; None where that can't be told.

    The same price function that quotes and settles. What was measured is never above what could be used, so the
    quote under this book needs no look, except where an ending charges a part of it.
    """
    charge = charge_for(book, job.ending, started=True)
    usages: Sequence[Usage] | None
    match charge.basis:
        case Basis.NOTHING:
            return 0
        case Basis.MEASURED:
            usages = job.usages
        case Basis.HOLD:
            usages = job.most
        case _:
            assert_never(charge.basis)
    if usages is None:
        return None
    try:
        total = price(book, job.kind, usages, job.request, job.plan).total
    except (UnknownPrice, PriceTooHigh):
        return None
    return charge.amount(held=total, measured=total)


@dataclass(slots=True)
class _Account:
    """The account whose jobs come now: what it had, as it was and as it would have been."""

    account_id: str
    sum: Sum
    was: Purse
    would: Purse


@dataclass(slots=True)
class Rehearsal:
    """Takes past jobs one by one and says at the end what the book would have changed."""

    book: PriceBook
    _sums: dict[_Key, Sum] = field(default_factory=dict)
    _unpriced: int = 0
    _accounts: int = 0
    _dearer: int = 0
    _cheaper: int = 0
    _run_out: int = 0
    _movers: list[tuple[int, int, Mover]] = field(default_factory=list)
    _losers: list[tuple[int, int, RanOut]] = field(default_factory=list)
    _now: _Account | None = None

    def take_all(self, jobs: Iterable[PastJob], lots: Mapping[str, Iterable[PurseLot]]) -> None:
        """Some more jobs."""
        for job in jobs:
            self.take(job, lots)

    def take(self, job: PastJob, lots: Mapping[str, Iterable[PurseLot]]) -> None:
        """One more job. `lots` by account: what the accounts could spend in the time that is replayed."""
        account = self._now
        if account is None or account.account_id != job.account_id:
            self._close()
            had = tuple(lots.get(job.account_id, ()))
            account = self._now = _Account(job.account_id, Sum(), Purse(had), Purse(had))
        after = charge_under(self.book, job)
        if after is None:
            self._unpriced += 1
            after = job.charged
        key = (job.kind, str(job.request.get("model") or ""), job.plan or "")
        if key not in self._sums:
            self._sums[key] = Sum()
        self._sums[key].add(job, after)
        account.sum.add(job, after)
        account.was.pay(job.charged, job.started_at)
        account.would.pay(after, job.started_at)

    def outcome(self, sold: PlanBook) -> Outcome:
        """What was found. `sold`: the plans whose months are counted."""
        self._close()
        kinds = self._by(lambda key: key[0])
        total = self._by(lambda key: "")[""] if self._sums else Sum()
        return Outcome(
            jobs=total.jobs,
            accounts=self._accounts,
            before=total.before,
            after=total.after,
            unpriced=self._unpriced,
            kinds=_rows(kinds),
            models=_rows(self._by(lambda key: f"{key[0]} {key[1]}" if key[1] else "")),
            plans=_rows(self._by(lambda key: key[2] or "none")),
            months=tuple(self._months(sold, kinds)),
            accounts_dearer=self._dearer,
            accounts_cheaper=self._cheaper,
            movers=tuple(mover for _, _, mover in sorted(self._movers, reverse=True)),
            accounts_run_out=self._run_out,
            run_out=tuple(loser for _, _, loser in sorted(self._losers, reverse=True)),
        )

    def _close(self) -> None:
        """Keep what is to be told of the account that is through."""
        account, self._now = self._now, None
        if account is None:
            return
        self._accounts += 1
        change = account.sum.after - account.sum.before
        self._dearer += change > 0
        self._cheaper += change < 0
        if change:
            mover = Mover(account.account_id, account.sum.jobs, account.sum.before, account.sum.after)
            _keep(self._movers, abs(change), self._accounts, mover)
        short = account.would.unpaid - account.was.unpaid
        if short > 0 and account.would.short_at is not None:
            self._run_out += 1
            _keep(self._losers, short, self._accounts, RanOut(account.account_id, short, account.would.short_at))

    def _by(self, name_of: Callable[[_Key], T]) -> dict[T, Sum]:
        """The sums put together under other names."""
        found: dict[T, Sum] = {}
        for key, part in self._sums.items():
            whole = found.setdefault(name_of(key), Sum())
            whole.jobs += part.jobs
            whole.sold += part.sold
            whole.before += part.before
            whole.after += part.after
        return found

    def _months(self, sold: PlanBook, kinds: Mapping[str, Sum]) -> Iterable[Month]:
        """By what the plan's own jobs cost on average, or all jobs of that kind where it had none."""
        own = self._by(lambda key: (key[2], key[0]))
        for plan in sold.plans.values():
            for kind in plan.kinds:
                of_plan = own.get((plan.name, kind))
                spent = of_plan if of_plan is not None and of_plan.sold else kinds.get(kind, Sum())
                if spent.sold and spent.before and spent.after:
                    credits_ = plan.monthly_credits
                    bought = (credits_ * spent.sold // cost for cost in (spent.before, spent.after))
                    yield Month(plan.name, kind, credits_, *bought)


def _keep(heap: list[Any], size: int, number: int, what: Mover | RanOut) -> None:
    """Among the largest; the number tells apart what is equally large."""
    heapq.heappush(heap, (size, -number, what))
    if len(heap) > NAMED_MAX:
        heapq.heappop(heap)


def _rows(sums: Mapping[str, Sum]) -> tuple[Row, ...]:
    """The largest first; what has no name is left out."""
    rows = (Row(name, part.jobs, part.before, part.after) for name, part in sums.items() if name)
    return tuple(sorted(rows, key=lambda row: (-row.before, row.name)))
