"""Gather: everything a batch of operations may look at, read under the accounts' locks.

Each read is a statement of its own, so it sees what was committed before the locks were had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.account_ledger import AccountLedger, Reservation
from worker.credits.allocation import Draw
from worker.credits.lots import Lot, LotSource
from worker.credits.operations import Claim, Settle, wake_parked
from worker.credits.page import Job, Lease, Order, Page
from worker.credits.states import JobState, ReservationState
from worker.store.driver import Driver, Statement, driver_of, rows_of
from worker.store.plan_books import PlanBooks
from worker.store.prices import PriceBooks
from worker.store.standing import judge_frozen, lapsed_long_ago, read_standings


class PageOperation(Protocol):
    """A pure decision on its account's page. `job_id` is None for operations on lots alone."""

    @property
    def account_id(self) -> str: ...

    @property
    def job_id(self) -> UUID | None: ...

    @property
    def step(self) -> str:
        """Names its failpoints: see `worker.failpoints.OPERATIONS`."""
        ...

    def decide(self, page: Page) -> Any: ...


class Spending(Protocol):
    """An operation that may know beforehand that it spends a whole hold, and so asks for no lots."""

    def spends_all(self, lease: Lease | None) -> bool: ...


#: An account's plan, active_until, cycle_ends_at, running_max, paused, warn_below, own_running_max, own_warn_below.
Facts = tuple[str | None, datetime | None, datetime | None, int | None, bool, int, int | None, int | None]


async def lock_accounts(connection: AsyncConnection, account_ids: Sequence[str], *, wait: bool) -> dict[str, Facts]:
    """The account rows that could be locked, by id. With `wait` only unknown ones are missing.

    The transaction must have been begun to plan for look-ups by key alone.
    """
    statement = _LOCK_ACCOUNTS_WAITING if wait else _LOCK_ACCOUNTS
    rows = await rows_of(driver_of(connection), statement, {"accounts": account_ids})
    return {row[0]: row[1:] for row in rows}


async def known_accounts(connection: AsyncConnection, account_ids: Sequence[str]) -> set[str]:
    """Which of these exist."""
    rows = await rows_of(driver_of(connection), _KNOWN_ACCOUNTS, {"accounts": account_ids})
    return {account_id for (account_id,) in rows}


async def gather_pages(
    connection: AsyncConnection,
    accounts: Mapping[str, Facts],
    operations: Sequence[PageOperation],
    price_books: PriceBooks,
    plan_books: PlanBooks,
    *,
    wait: bool,
    subscribed: bool = False,
    all_lots: bool = True,
) -> dict[str, Page]:
    """A page for each locked account, with the jobs that the operations name.

    Its subscription is read where a cycle has ended, or with `subscribed`. Without `all_lots` its lots stay unread
    where no operation is going to ask for them: one that does nevertheless meets `LotsUnread`. Rows of `due` and `live`
    that somebody holds without the account (a dispatch, a renewal) are passed over, so that a frozen one delays nobody
    else; with `wait` they are waited for.
    """
    claims = [o for o in operations if isinstance(o, Claim)]
    others = [o for o in operations if o.job_id is not None and not isinstance(o, Claim)]
    driver = driver_of(connection)
    if wait and operations:
        await rows_of(driver, _WAIT_FOR_DUE, _keys([*claims, *others]))
        await rows_of(driver, _WAIT_FOR_LIVE, _keys([*claims, *others]))
    leases = await _read_leases(driver, others) if others else {}
    ((now, paused),) = await rows_of(driver, _CLOCK_AND_PAUSES)
    paused_names = frozenset(zip(paused[::2], paused[1::2], strict=True))
    known = {o.claimed.job.book_id for o in others if isinstance(o, Settle) and o.claimed is not None}
    others = [o for o in others if not _is_known(o, leases)]
    jobs, reservations = await _read_jobs(driver, claims, others)
    life = plan_books.frozen_life
    # An ended cycle is seen from the row that was locked: a batch without one reads nothing of subscriptions.
    ended = [a for a, facts in accounts.items() if subscribed or ((ends := facts[2]) is not None and ends <= now)]
    lapsed = {a: facts[1] for a, facts in accounts.items() if facts[1] and lapsed_long_ago(facts[1], now, life)}
    unread = set() if all_lots else _spending_all(operations, leases).difference(ended, lapsed)
    lots = await _read_lots(driver, [account_id for account_id in accounts if account_id not in unread])
    limited = [account_id for account_id, facts in accounts.items() if facts[3] is not None]
    running = await _read_running(driver, limited) if limited and claims else {}
    standings = await read_standings(connection, ended, plan_books) if ended else {}
    read = {job.book_id for of_one in jobs.values() for job in of_one.values()}
    books = await price_books.load(connection, read | known)
    pages = {}
    # By place: names take a quarter more, and there are as many pages as operations.
    for account_id, facts in accounts.items():
        plan, active_until, cycle_ends_at, running_max, paused, warn_below, own_running_max, own_warn_below = facts
        ledger = AccountLedger(
            account_id,
            now,
            None if account_id in unread else lots.get(account_id, ()),
            reservations.get(account_id, ()),
            topups_frozen=plan is None or (active_until is not None and active_until <= now),
            cycle_ends_at=cycle_ends_at,
        )
        pages[account_id] = Page(
            account_id,
            now,
            ledger,
            jobs.get(account_id, {}),
            leases.get(account_id, {}),
            books,
            paused,
            paused_names,
            running_max,
            running.get(account_id, 0),
            active_until,
            warn_below,
            own_running_max,
            own_warn_below,
            life,
        )
    if lapsed:
        await judge_frozen(connection, lapsed, pages)
    for account_id, standing in standings.items():
        pages[account_id].subscription, pages[account_id].terms = standing.subscription, standing.terms
    await _read_eldest_parked(driver, pages)
    return pages


async def wake_waiting(connection: AsyncConnection, pages: Sequence[Page]) -> None:
    """Wake those that fit of the jobs that wait for credits, on pages that have got some.

    Read in portions: most often the eldest doesn't fit, however many stand behind it.
    """
    driver, portion = driver_of(connection), _FIRST_PARKED
    behind = {page.account_id: _ELDEST for page in pages}
    while behind:
        waiting: dict[str, list[Job]] = {account_id: [] for account_id in behind}
        values = {"accounts": list(behind), "after": list(behind.values()), "portion": portion}
        for row in await rows_of(driver, _READ_PARKED, values):
            waiting[row[0]].append(_job_of(row[1:-1], row[-1]))
        behind = {
            page.account_id: waiting[page.account_id][-1].job_id
            for page in pages
            if page.account_id in waiting
            and wake_parked(page, waiting[page.account_id], more=len(waiting[page.account_id]) == portion)
        }
        portion = _NEXT_PARKED


async def _read_eldest_parked(driver: Driver, pages: Mapping[str, Page]) -> None:
    """For pages with a queued job that would rather wait than be refused."""
    waiting = [
        account_id
        for account_id, page in pages.items()
        if page.jobs
        and any(job.on_insufficient == "wait" and job.state is JobState.QUEUED for job in page.jobs.values())
    ]
    if waiting:
        for account_id, job_id in await rows_of(driver, _READ_ELDEST_PARKED, {"accounts": waiting}):
            pages[account_id].eldest_parked = job_id


def _keys(operations: Sequence[PageOperation]) -> dict[str, Any]:
    return {
        "accounts": [operation.account_id for operation in operations],
        "jobs": [operation.job_id for operation in operations],
    }


def _is_known(operation: PageOperation, leases: Mapping[str, Mapping[UUID, Lease]]) -> bool:
    """Whether the operation brings its job along, under a token that stands in the row we have locked."""
    return isinstance(operation, Settle) and operation.knows(_lease_of(operation, leases))


def _lease_of(operation: PageOperation, leases: Mapping[str, Mapping[UUID, Lease]]) -> Lease | None:
    of_account = leases.get(operation.account_id)
    return None if of_account is None or operation.job_id is None else of_account.get(operation.job_id)


def _spending_all(operations: Sequence[PageOperation], leases: Mapping[str, Mapping[UUID, Lease]]) -> set[str]:
    """The accounts of which nothing is asked but to spend holds that are known, each whole."""
    spending: set[str] = set()
    others: set[str] = set()
    for operation in operations:
        (spending if _spends_all(operation, leases) else others).add(operation.account_id)
    return spending - others


def _spends_all(operation: PageOperation, leases: Mapping[str, Mapping[UUID, Lease]]) -> bool:
    spends_all = getattr(operation, "spends_all", None)  # few kinds of operations have it: see `Spending`
    if spends_all is None:
        return False
    try:
        return bool(spends_all(_lease_of(operation, leases)))
    except Exception:
        return False  # it raises the same as it decides, where that concerns nobody else


async def _read_leases(driver: Driver, operations: Sequence[PageOperation]) -> dict[str, dict[UUID, Lease]]:
    leases: dict[str, dict[UUID, Lease]] = {}
    for account_id, job_id, *lease in await rows_of(driver, _LOCK_LIVE, _keys(operations)):
        leases.setdefault(account_id, {})[job_id] = Lease(job_id, *lease)
    return leases


async def _read_jobs(
    driver: Driver, claims: Sequence[PageOperation], others: Sequence[PageOperation]
) -> tuple[dict[str, dict[UUID, Job]], dict[str, list[Reservation]]]:
    jobs: dict[str, dict[UUID, Job]] = {}
    reservations: dict[str, list[Reservation]] = {}
    if claims:
        for row in await rows_of(driver, _READ_JOBS_TO_CLAIM, _keys(claims)):
            job = _job_of(row[1:15], row[24], Order(*row[20:24]))
            jobs.setdefault(row[0], {})[job.job_id] = job
            if row[15] is not None:
                reservations.setdefault(row[0], []).append(_hold_of(job, *row[15:20]))
    if others:
        for row in await rows_of(driver, _READ_JOBS, _keys(others)):
            job = _job_of(row[1:15], row[20])
            jobs.setdefault(row[0], {})[job.job_id] = job
            if row[15] is not None:
                reservations.setdefault(row[0], []).append(_hold_of(job, *row[15:20]))
    return jobs, reservations


async def _read_lots(driver: Driver, account_ids: list[str]) -> dict[str, list[Lot]]:
    lots: dict[str, list[Lot]] = {}
    for row in await rows_of(driver, _READ_LOTS, {"accounts": account_ids}) if account_ids else ():
        lots.setdefault(row[0], []).append(Lot(row[1], _LOT_SOURCES[row[2]], *row[3:]))
    return lots


async def _read_running(driver: Driver, account_ids: list[str]) -> dict[str, int]:
    return dict(await rows_of(driver, _COUNT_RUNNING, {"accounts": account_ids}))


def _job_of(row: Sequence[Any], traceparent: str | None, order: Order | None = None) -> Job:
    """A row holds the job's fields in their order. By place, not by name: this is most of what a batch reads."""
    job_id, kind, queue, state, *rest = row
    job = Job(job_id, kind, queue, _JOB_STATES[state], *rest)
    job.order, job.traceparent = order, traceparent  # type: ignore[misc]  # nobody has seen it yet
    return job


def _hold_of(
    job: Job, amount: int, state: str, charged: int, lots_drawn: Sequence[int], amounts_drawn: Sequence[int]
) -> Reservation:
    draws = tuple(map(Draw, lots_drawn, amounts_drawn))
    return Reservation(job.job_id, amount, draws, _RESERVATION_STATES[state], charged)


#: Waiting jobs of an account that are read at first, and then at a time. Before the eldest: no id is all zeros.
_FIRST_PARKED, _NEXT_PARKED, _ELDEST = 16, 500, UUID(int=0)

#: Calling an enum with a value takes ten times as long.
_JOB_STATES = {str(state): state for state in JobState}
_RESERVATION_STATES = {str(state): state for state in ReservationState}
_LOT_SOURCES = {str(source): source for source in LotSource}

_CLOCK_AND_PAUSES = Statement("""
    SELECT fermata_now(), ARRAY(
        SELECT part
        FROM controls
        CROSS JOIN LATERAL unnest(ARRAY[scope, name]) WITH ORDINALITY AS told (part, position)
        WHERE paused
        ORDER BY scope, name, position
    )
""")

_LOCK_ACCOUNTS = Statement("""
    SELECT account_id, plan, active_until, cycle_ends_at, running_max, paused, warn_below, own_running_max,
           own_warn_below
    FROM accounts
    WHERE account_id = ANY(CAST(:accounts AS text[]))
    ORDER BY account_id
    FOR NO KEY UPDATE SKIP LOCKED
""")

_LOCK_ACCOUNTS_WAITING = Statement("""
    SELECT account_id, plan, active_until, cycle_ends_at, running_max, paused, warn_below, own_running_max,
           own_warn_below
    FROM accounts
    WHERE account_id = ANY(CAST(:accounts AS text[]))
    ORDER BY account_id
    FOR NO KEY UPDATE
""")

_KNOWN_ACCOUNTS = Statement("""
    SELECT account_id
    FROM accounts
    WHERE account_id = ANY(CAST(:accounts AS text[]))
""")

# OFFSET 0 keeps the planner from turning these look-ups, one a key, into a join of whole tables.

_LOCK_LIVE = Statement("""
    SELECT l.account_id, l.job_id, l.token, l.lease_until, l.cancel_asked_at, l.cancel_reason
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id
    ) AS wanted
    JOIN live AS l ON l.account_id = ANY(ARRAY[wanted.account_id]) AND l.job_id = ANY(ARRAY[wanted.job_id])
    ORDER BY wanted.account_id, wanted.job_id
    FOR UPDATE OF l SKIP LOCKED
""")

_WAIT_FOR_DUE = Statement("""
    SELECT d.job_id
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS wanted (account_id, job_id)
    JOIN due AS d ON d.account_id = ANY(ARRAY[wanted.account_id]) AND d.job_id = ANY(ARRAY[wanted.job_id])
    ORDER BY wanted.account_id, wanted.job_id
    FOR UPDATE OF d
""")

_WAIT_FOR_LIVE = Statement("""
    SELECT l.job_id
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS wanted (account_id, job_id)
    JOIN live AS l ON l.account_id = ANY(ARRAY[wanted.account_id]) AND l.job_id = ANY(ARRAY[wanted.job_id])
    ORDER BY wanted.account_id, wanted.job_id
    FOR UPDATE OF l
""")

_READ_JOBS_TO_CLAIM = Statement("""
    SELECT wanted.account_id, wanted.job_id, j.kind, j.queue, j.state, j.priority, j.quoted, j.book_id,
           j.on_insufficient, j.ends_by, j.attempt, j.failures, j.failures_max, j.started_at, d.not_before,
           r.amount, r.state, r.charged, r.draw_lots, r.draw_amounts,
           CAST(j.request AS text), CAST(j.inputs AS text), j.plan, a.engine_state, j.traceparent
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT kind, queue, state, priority, quoted, book_id, on_insufficient, ends_by, attempt, failures,
               failures_max, started_at, request, inputs, plan, traceparent
        FROM jobs
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
        OFFSET 0
    ) AS j
    LEFT JOIN LATERAL (
        SELECT not_before
        FROM due
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
        OFFSET 0
        FOR UPDATE SKIP LOCKED
    ) AS d ON true
    LEFT JOIN LATERAL (
        SELECT amount, state, charged, draw_lots, draw_amounts
        FROM reservations
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
          AND j.attempt > 0
        OFFSET 0
    ) AS r ON true
    LEFT JOIN LATERAL (
        SELECT engine_state
        FROM attempts
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
          AND attempt = j.attempt
          AND j.attempt > 0
        OFFSET 0
    ) AS a ON true
""")

_READ_JOBS = Statement("""
    SELECT wanted.account_id, wanted.job_id, j.kind, j.queue, j.state, j.priority, j.quoted, j.book_id,
           j.on_insufficient, j.ends_by, j.attempt, j.failures, j.failures_max, j.started_at,
           d.not_before, r.amount, r.state, r.charged, r.draw_lots, r.draw_amounts, j.traceparent
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS wanted (account_id, job_id)
    CROSS JOIN LATERAL (
        SELECT kind, queue, state, priority, quoted, book_id, on_insufficient, ends_by, attempt, failures,
               failures_max, started_at, traceparent
        FROM jobs
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
        OFFSET 0
    ) AS j
    LEFT JOIN LATERAL (
        SELECT not_before
        FROM due
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
        OFFSET 0
        FOR UPDATE SKIP LOCKED
    ) AS d ON true
    LEFT JOIN LATERAL (
        SELECT amount, state, charged, draw_lots, draw_amounts
        FROM reservations
        WHERE account_id = wanted.account_id
          AND job_id = wanted.job_id
        OFFSET 0
    ) AS r ON true
""")

#: By the jobs' own age, which their ids carry: one that was woken and parked again keeps its place.
_READ_PARKED = Statement("""
    SELECT p.account_id, p.job_id, j.kind, j.queue, j.state, j.priority, j.quoted, j.book_id, j.on_insufficient,
           j.ends_by, j.attempt, j.failures, j.failures_max, j.started_at, j.traceparent
    FROM unnest(CAST(:accounts AS text[]), CAST(:after AS uuid[])) AS wanted (account_id, after)
    CROSS JOIN LATERAL (
        SELECT account_id, job_id
        FROM parked
        WHERE account_id = wanted.account_id
          AND job_id > wanted.after
        ORDER BY job_id
        LIMIT :portion
    ) AS p
    CROSS JOIN LATERAL (
        SELECT kind, queue, state, priority, quoted, book_id, on_insufficient, ends_by, attempt, failures,
               failures_max, started_at, traceparent
        FROM jobs
        WHERE account_id = p.account_id
          AND job_id = p.job_id
        OFFSET 0
    ) AS j
    ORDER BY p.account_id, p.job_id
""")

_READ_ELDEST_PARKED = Statement("""
    SELECT wanted.account_id, eldest.job_id
    FROM unnest(CAST(:accounts AS text[])) AS wanted (account_id)
    CROSS JOIN LATERAL (
        SELECT job_id
        FROM parked
        WHERE account_id = wanted.account_id
        ORDER BY job_id
        LIMIT 1
    ) AS eldest
""")

_READ_LOTS = Statement("""
    SELECT account_id, lot_id, source, granted, available, expires_at, held, spent, expired, revoked, charged_back
    FROM lots
    WHERE account_id = ANY(CAST(:accounts AS text[]))
      AND NOT closed
""")

_COUNT_RUNNING = Statement("""
    SELECT account_id, count(*) AS running
    FROM live
    WHERE account_id = ANY(CAST(:accounts AS text[]))
    GROUP BY account_id
""")
