"""Re-derives the promises from a live database: every rule, over everything, in one snapshot.

Takes no lock and writes nothing. Rules are named for what should hold; a violation says where it doesn't.

Months of the journal that are over have checkpoints, lot by lot. They stand for its entries: in an audit
`since_checkpoints` by their word, so that it reads only the entries since, a month's at most; a full one also holds
each of them against the entries that are still here, a month at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.account_ledger import MAKE_GOOD_LIFE
from worker.credits.lots import CREDITS_MAX
from worker.credits.outcomes import RULES as ENDINGS
from worker.credits.outcomes import Ending, Fault, charge_for
from worker.credits.plans import PlanBookError, parse_plan_book
from worker.credits.prices import WIDEST_BOUNDS, PriceBook, PriceBookError, parse_price_book
from worker.store import (
    audit_books,
    audit_credits,
    audit_guards,
    audit_jobs,
    audit_ledger,
    audit_lots,
    audit_places,
    audit_prices,
    audit_subscriptions,
)
from worker.store.database import patient
from worker.store.reads_receipts import QuotedUsage, no_usage
from worker.store.snapshots import snapshot

#: Every rule and what it holds us to. Names are stable: alarms and runbooks use them.
RULES: Mapping[str, str] = {
    # lots and their journal
    "bucket_below_zero": "no lot's bucket is below zero",
    "buckets_sum": "a lot's granted is the sum of its buckets",
    "buckets_are_guarded": "the database itself refuses both of these",
    "bucket_is_fold": "each bucket is the fold of the lot's journal entries",
    "lot_without_entries": "every lot came by an entry of the journal",
    "lot_is_granted_once": "and by no other",
    "entries_without_lot": "every entry moves credits of a lot of its own account",
    "held_is_draws": "what a lot holds is the sum of the draws of held reservations",
    "append_only_is_guarded": "the database refuses to change the journal and the debts",
    "guards_are_ours": "functions, triggers, constraints and keys of the database are what the migrations made",
    "checkpoint_is_fold": "each month's checkpoints are the fold of its entries",
    "months_are_in_line": "months are closed and detached one after the other, none is left out",
    "journal_order": "an account's entries are numbered in the order in which they happened",
    "reserved_after_expiry": "expired credits are not spent",
    "expired_before_expiry": "credits expire no sooner than was said",
    "times_are_in_order": "nothing ended before it began, and nothing is dated ahead",
    # reservations
    "reserve_is_draw": "each draw was reserved once, by exactly its amount",
    "settle_is_split": "each draw was committed and refunded once, charges in draw order, and not while it is held",
    "entries_without_draw": "credits are reserved, committed and refunded for reservations only",
    "draw_order": "what expires soonest pays first",
    "reservation_without_job": "every reservation is of a job of its own account",
    "reserved_is_quote": "a reservation holds the quote, over draws that sum to it",
    "hold_has_ended": "only running jobs and those that will be tried again hold credits",
    "settled_is_ended": "a reservation ends with its job and never reopens",
    # jobs and their price
    "succeeded_is_committed": "a job that succeeded has a committed reservation of what it was charged",
    "charge_is_outcome": "any other end charges exactly what the outcome table of the job's book says",
    "charged_above_quote": "nobody pays more than the quote",
    "end_is_outcome": "a job's last state is the one that the way it ended leads to",
    "end_is_told_once": "every end is one event that says what the job says",
    "outputs_are_artifacts": "a job shows what its settling attempt made, and nothing else is kept",
    "attempts_are_counted": "every attempt that ended is on record",
    "book_is_unchanged": "price and plan books are what was applied",
    "book_is_readable": "every price book can be read",
    "book_is_as_logged": "each book is the one that the log of changes tells of, and none in force was withdrawn",
    "book_is_there": "every job names a price book that is there",
    "quote_is_price": "an unfinished job is quoted, and finished work was, what its book says, and within its limit",
    "charge_is_price": "finished work is charged what its book says of what was used",
    # where unfinished jobs stand
    "running_holds": "a running job holds its credits",
    "running_is_live": "exactly the running jobs have a lease",
    "queued_is_due": "exactly the queued jobs are due",
    "waiting_is_parked": "exactly the waiting jobs are parked",
    "place_is_jobs": "what is due, live or parked says what its job says, and for no longer than it may",
    "place_without_job": "nothing is due, live or parked that is no job",
    "stale_lease": "a lapsed lease is taken back in time",
    "stale_hold": "every hold ends in time after its job's `ends_by`",
    # where credits come from
    "cycle_is_granted": "each cycle is granted exactly once, what its plan brings",
    "purchase_is_lot": "each purchase is credited exactly once",
    "lot_ends_with_its_source": "credits end with their cycle, with what they make good, or not at all",
    "make_good": "what came back too late by a failure of ours is made good, once, and nothing else is",
    "compensation": "a job is compensated by no more than it was charged",
    "cycle_is_in_line": "an account's cycles follow each other month by month, and it knows the last one",
    "subscription_is_agreed": "an account has the plan and the end that the last step of its subscription left it",
    "account_is_looked_at": "what time is going to change of an account is looked for in time",
    "frozen_is_not_spent": "top-ups of a lapsed account are not drawn on",
    "charged_back_is_taken": "nothing of a purchase that was charged back can be spent",
    "debt_is_explained": "what is owed was spent of what was charged back, and nothing else is revoked",
    "debt_below_zero": "nobody pays more than is owed",
    "own_account": "nothing names a job, lot or artifact of another account",
}

#: An answer names at most so many violations a check. One is enough to act on.
VIOLATIONS_MAX = 1000

#: The longest that one statement may take, in seconds. Ten million entries take well under a minute.
STATEMENT_SECONDS = 900

#: What one step of a statement may keep in memory, the rest goes to files: however large the database is, the server's
#: process stays at about 20 MB, and takes no longer. 64 MB a step, the double for hashes and two processes to help took
#: 46 MB for a million entries, more for more, and as much processor time: 4.2 s, so 4.1.
_BOUNDED = {"work_mem": "4MB", "hash_mem_multiplier": "1", "max_parallel_workers_per_gather": "0"}

_CHECKS: Sequence[TextClause] = (
    audit_ledger.GUARDS,
    audit_ledger.LOTS,
    audit_ledger.DRAW_ORDER,
    audit_ledger.JOURNAL_ORDER,
    audit_ledger.MONTHS,
    audit_ledger.SOURCES,
    audit_lots.ENDS,
    audit_lots.GIVEN,
    audit_subscriptions.CYCLES,
    audit_subscriptions.CYCLE_GRANTS,
    audit_subscriptions.SUBSCRIPTIONS,
    audit_subscriptions.LOOKS,
    audit_credits.DEBTS,
    audit_credits.CHARGEBACKS,
    audit_credits.FROZEN,
    audit_jobs.JOBS,
    audit_jobs.ENDS,
    audit_jobs.OUTPUTS,
    audit_jobs.ACCOUNTS,
    audit_prices.BOOKS,
    audit_places.PLACES,
    audit_places.TIMES,
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where a rule doesn't hold. `what` names the rows and their numbers."""

    rule: str
    what: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, and over how many lots and journal entries.

    Of the entries before `since` their checkpoints were taken; None: there are none that are not here.
    """

    ok: bool
    violations: tuple[Violation, ...]
    lots: int
    entries: int
    since: datetime | None = None


async def audit(
    engine: AsyncEngine,
    *,
    since_checkpoints: bool = False,
    lease_grace_seconds: float = 45,
    hold_grace_seconds: float = 45,
    quoted_usage: QuotedUsage = no_usage,
) -> Audit:
    """Check every rule over everything. Works on a connection of its own, beside whatever runs.

    `since_checkpoints`: reads no entry of a month that is closed, and prices no job again that ended before. The graces
    are how long after its end a lease, and after its job's `ends_by` a hold, may still be there. `quoted_usage`: what
    the kinds say that a job can use; without it no quote is made again. Raises `LedgerUnavailable`.
    """
    named = patient(engine, "fermata audit", STATEMENT_SECONDS, **_BOUNDED)
    async with named as own, snapshot(own) as connection:
        return await audit_on(
            connection,
            lease_grace_seconds,
            hold_grace_seconds,
            since_checkpoints=since_checkpoints,
            quoted_usage=quoted_usage,
        )


async def audit_on(
    connection: AsyncConnection,
    lease_grace_seconds: float = 45,
    hold_grace_seconds: float = 45,
    *,
    since_checkpoints: bool = False,
    quoted_usage: QuotedUsage = no_usage,
) -> Audit:
    """The same inside a transaction of the caller's, which should be a snapshot."""
    months = (await connection.execute(_MONTHS)).all()
    trusted = [month for month in months if month.is_detached or since_checkpoints]
    since = trusted[-1].ends_at if trusted else None
    closed_until = months[-1].ends_at if months else _EVER
    counted = (await connection.execute(_COUNTS, {"closed_until": closed_until})).one()
    found, outcomes, books = await _outcomes(connection)
    values = {
        **outcomes,
        **await _sold(connection),
        **_bounds(counted.now),
        "limit": VIOLATIONS_MAX,
        "since": since or _EVER,
        "closed_until": closed_until,
        "lease_ends_after": counted.now - timedelta(seconds=lease_grace_seconds),
        "job_ends_after": counted.now - timedelta(seconds=hold_grace_seconds),
    }

    async def check(statement: TextClause, **more: object) -> None:
        wanted = {name: {**values, **more}[name] for name in statement.compile().params}
        found.extend(Violation(row.rule, row.what) for row in await connection.execute(statement, wanted))

    for statement in _CHECKS:
        await check(statement)
    start, before = since or _EVER, trusted[-1].starts_at if trusted else _EVER
    for month in months[len(trusted) :]:
        window = {"since": start, "until": month.ends_at, "month": month.starts_at}
        await check(audit_ledger.MONTH, **window)
        await check(audit_ledger.DRAWS, **window, month_before=before, is_closed=True)
        start, before = month.ends_at, month.starts_at
    rest = {"since": start, "until": _NEVER, "month": _NEVER}
    await check(audit_ledger.DRAWS, **rest, month_before=before, is_closed=False)
    ended_since = since if since_checkpoints and since is not None else _EVER
    wrong = await audit_prices.wrong_prices(connection, books, ended_since, quoted_usage, VIOLATIONS_MAX)
    wrong += await audit_guards.changed_guards(connection)
    wrong += await audit_books.unlogged_books(connection)
    found += [Violation(rule, what) for rule, what in wrong]
    found.sort(key=lambda violation: (violation.rule, violation.what))
    return Audit(not found, tuple(found), counted.lots, counted.entries, since)


async def _outcomes(
    connection: AsyncConnection,
) -> tuple[list[Violation], dict[str, list[Any]], dict[int, PriceBook]]:
    """The books that can't be read; what each of the others charges for each ending, as columns; and these books."""
    unreadable: list[Violation] = []
    books: dict[int, PriceBook] = {}
    rows: list[tuple[int, str, str, str, int]] = []
    for book in await connection.execute(_BOOKS):
        try:
            parsed = parse_price_book(book.document, bounds=WIDEST_BOUNDS)
        except PriceBookError as error:
            unreadable.append(Violation("book_is_readable", f"price book {book.book_id}: {error}"))
            continue
        books[book.book_id] = parsed
        for ending, rule in ENDINGS.items():
            charge = charge_for(parsed, ending, started=True)
            rows.append((book.book_id, ending, rule.state, charge.basis, charge.percent))
    names = ("books", "endings", "states", "bases", "percents")
    return unreadable, {name: [row[place] for row in rows] for place, name in enumerate(names)}, books


async def _sold(connection: AsyncConnection) -> dict[str, list[Any]]:
    """What each plan brings a cycle, by every plan book there ever was."""
    rows: set[tuple[str, int]] = set()
    for book in await connection.execute(_PLAN_BOOKS):
        with suppress(PlanBookError):  # nobody was granted anything by that
            plans = parse_plan_book(book.document, credits_max=CREDITS_MAX).plans
            rows |= {(plan.name, plan.monthly_credits) for plan in plans.values()}
    return {"plans": [name for name, _ in rows], "plan_credits": [credit for _, credit in rows]}


def _bounds(now: datetime) -> dict[str, Any]:
    """What may be how old, or how far ahead."""
    pruned_before = now - _KEPT_AT_LEAST
    milliseconds = int(pruned_before.timestamp() * 1000)
    return {
        "ahead": now + _AHEAD_MOST,
        "latest_wait": now + _WAIT_LONGEST,
        "latest_lease": now + _LEASE_LONGEST,
        "make_good_life": MAKE_GOOD_LIFE,
        "our_faults": [
            str(ending) for ending, rule in ENDINGS.items() if rule.fault is Fault.OURS and ending is not Ending.PARTIAL
        ],
        "pruned_before": pruned_before,
        # The ids of jobs begin with the milliseconds at which they were made.
        "pruned_id": UUID(int=milliseconds << 80),
    }


#: No job is pruned within 30 days of its end (`fermata_prune_jobs`); a day for clocks that differ.
_KEPT_AT_LEAST = timedelta(days=29)

#: A server's clock may be set right; nobody's is a day wrong.
_AHEAD_MOST = timedelta(days=1)

#: The longest back-off and the longest lease that the settings take, and an hour.
_WAIT_LONGEST = timedelta(days=1, hours=1)
_LEASE_LONGEST = timedelta(seconds=600) + timedelta(hours=1)

#: Before the first entry, and after the last one.
_EVER, _NEVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

#: Those that have their checkpoints. Detached ones come first: whether all are in line is a rule of its own.
_MONTHS = text("""
    SELECT starts_at, ends_at, detached_at IS NOT NULL AS is_detached
    FROM journal_months
    WHERE closed_at IS NOT NULL
    ORDER BY detached_at IS NULL, starts_at
""")

_COUNTS = text("""
    SELECT fermata_now() AS now, (SELECT count(*) FROM lots) AS lots,
           CAST((SELECT count(*) FROM journal WHERE at >= :closed_until)
                + (SELECT COALESCE(sum(entries), 0) FROM checkpoints WHERE month < :closed_until) AS bigint) AS entries
""")

_PLAN_BOOKS = text("SELECT document FROM plan_books")

_BOOKS = text("""
    SELECT book_id, document
    FROM price_books
    ORDER BY book_id
""")
