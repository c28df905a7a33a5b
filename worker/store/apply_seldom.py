"""Apply, what most batches have nothing of: subscriptions, cycles, debts, acts of people, when to look again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.lots import BrokenInvariant
from worker.credits.page import Page

Row = tuple[Any, ...]

#: What of `page.writes` is written here.
_SELDOM = frozenset({"acts", "look_by", "look_next"})


def has_seldom(page: Page) -> bool:
    """Whether there may be anything to write."""
    return page.subscription is not None or bool(page.ledger.debts) or not _SELDOM.isdisjoint(vars(page.writes))


async def write_seldom(
    connection: AsyncConnection, pages: Sequence[Page], lot_ids: Mapping[tuple[str, int], int], now: datetime
) -> None:
    """Write what the pages decided of all this. Raises `BrokenInvariant` where a row was not as they had it."""
    await _write_subscriptions(connection, pages, now)
    owed = [
        (page.account_id, line.amount, line.cause, lot_ids.get((page.account_id, line.lot_id), line.lot_id))
        + (line.reference, line.actor)
        for page in pages
        for line in page.ledger.debts
    ]
    names = ("accounts", "amounts", "causes", "lots", "refs", "actors")
    await _run(connection, _INSERT_DEBTS, names, owed, now=now)
    acts = [
        (act.actor, act.what, str(act.job_id), _json(act.before), _json(act.after))
        for page in pages
        for act in page.writes.acts
    ]
    await _run(connection, _LOG_ACTS, ("actors", "whats", "subjects", "befores", "afters"), acts, now=now)
    sooner = [(page.account_id, page.writes.look_by) for page in pages if page.writes.look_by is not None]
    await _run(connection, _LOOK_BY, ("accounts", "looks"), sooner)
    exactly = [(page.account_id, page.writes.look_next.at) for page in pages if page.writes.look_next is not None]
    await _run(connection, _LOOK_NEXT, ("accounts", "looks"), exactly)


async def _write_subscriptions(connection: AsyncConnection, pages: Sequence[Page], now: datetime) -> None:
    subscriptions, accounts = [], []
    for page in pages:
        row = page.writes.subscription
        if row is not None:
            after = row.after
            accounts.append(
                (page.account_id, after.plan, after.active_until, after.cycle_ends_at, page.running_max)
                + (after.look_at(page.frozen_life), page.warn_below)
            )
            subscriptions.append(
                (page.account_id, after.anchor, after.next_plan, str(after.renewal), after.grace.total_seconds())
                + (after.cancelled_at,)
            )
    await _run(
        connection, _SET_ACCOUNTS, ("accounts", "plans", "until", "cycles", "running", "looks", "warns"), accounts
    )
    names = ("accounts", "anchors", "next_plans", "renewals", "graces", "cancelled")
    await _run(connection, _SET_SUBSCRIPTIONS, names, subscriptions, now=now)
    # A cycle that is there already stops the whole transaction: it would be granted twice.
    begun = [
        (page.account_id, row.starts_at, row.ends_at, row.plan, row.granted, row.skipped)
        for page in pages
        for row in page.writes.cycles
    ]
    names = ("accounts", "starts", "ends", "plans", "granted", "skipped")
    await _run(connection, _INSERT_CYCLES, names, begun, now=now)
    raised = [(page.account_id, *row) for page in pages for row in page.writes.cycles_raised]
    await _run(connection, _RAISE_CYCLES, ("accounts", "starts", "granted"), raised)


def _json(document: Mapping[str, Any]) -> str:
    return msgspec.json.encode(document).decode()


async def _run(
    connection: AsyncConnection, statement: TextClause, names: Sequence[str], rows: Sequence[Row], **more: Any
) -> None:
    if not rows:
        return
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    result = await connection.execute(statement, {**columns, **more})
    if result.rowcount != len(rows):
        raise BrokenInvariant(f"{result.rowcount} rows changed where {len(rows)} were meant")


_SET_ACCOUNTS = text("""
    UPDATE accounts AS a
    SET plan = u.plan, active_until = u.active_until, cycle_ends_at = u.cycle_ends_at, running_max = u.running_max,
        look_at = u.look_at, warn_below = u.warn_below
    FROM unnest(CAST(:accounts AS text[]), CAST(:plans AS text[]), CAST(:until AS timestamptz[]),
                CAST(:cycles AS timestamptz[]), CAST(:running AS integer[]), CAST(:looks AS timestamptz[]),
                CAST(:warns AS bigint[]))
         AS u (account_id, plan, active_until, cycle_ends_at, running_max, look_at, warn_below)
    WHERE a.account_id = ANY(ARRAY[u.account_id])
""")

_SET_SUBSCRIPTIONS = text("""
    INSERT INTO subscriptions (account_id, anchor, next_plan, renewal, grace_seconds, cancelled_at, updated_at)
    SELECT u.account_id, u.anchor, u.next_plan, u.renewal, u.grace_seconds, u.cancelled_at, :now
    FROM unnest(CAST(:accounts AS text[]), CAST(:anchors AS timestamptz[]), CAST(:next_plans AS text[]),
                CAST(:renewals AS text[]), CAST(:graces AS double precision[]), CAST(:cancelled AS timestamptz[]))
         AS u (account_id, anchor, next_plan, renewal, grace_seconds, cancelled_at)
    ON CONFLICT (account_id) DO UPDATE
    SET anchor = excluded.anchor, next_plan = excluded.next_plan, renewal = excluded.renewal,
        grace_seconds = excluded.grace_seconds, cancelled_at = excluded.cancelled_at, updated_at = excluded.updated_at
""")

_INSERT_CYCLES = text("""
    INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, skipped, at)
    SELECT u.account_id, u.starts_at, u.ends_at, u.plan, u.granted, u.skipped, :now
    FROM unnest(CAST(:accounts AS text[]), CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]),
                CAST(:plans AS text[]), CAST(:granted AS bigint[]), CAST(:skipped AS boolean[]))
         AS u (account_id, starts_at, ends_at, plan, granted, skipped)
""")

_RAISE_CYCLES = text("""
    UPDATE cycles AS c
    SET granted_total = u.granted
    FROM unnest(CAST(:accounts AS text[]), CAST(:starts AS timestamptz[]), CAST(:granted AS bigint[]))
         AS u (account_id, starts_at, granted)
    WHERE c.account_id = ANY(ARRAY[u.account_id])
      AND c.starts_at = ANY(ARRAY[u.starts_at])
""")

_INSERT_DEBTS = text("""
    INSERT INTO debts (account_id, amount, cause, lot_id, reference, at, actor)
    SELECT u.account_id, u.amount, u.cause, u.lot_id, u.reference, :now, u.actor
    FROM unnest(CAST(:accounts AS text[]), CAST(:amounts AS bigint[]), CAST(:causes AS text[]),
                CAST(:lots AS bigint[]), CAST(:refs AS text[]), CAST(:actors AS text[]))
         AS u (account_id, amount, cause, lot_id, reference, actor)
""")

_LOG_ACTS = text("""
    INSERT INTO audit_log (at, actor, what, subject, before, after)
    SELECT :now, u.actor, u.what, u.subject, CAST(u.before AS jsonb), CAST(u.after AS jsonb)
    FROM unnest(CAST(:actors AS text[]), CAST(:whats AS text[]), CAST(:subjects AS text[]),
                CAST(:befores AS text[]), CAST(:afters AS text[]))
         AS u (actor, what, subject, before, after)
""")

_LOOK_BY = text("""
    UPDATE accounts AS a
    SET look_at = LEAST(a.look_at, u.look_at)
    FROM unnest(CAST(:accounts AS text[]), CAST(:looks AS timestamptz[])) AS u (account_id, look_at)
    WHERE a.account_id = ANY(ARRAY[u.account_id])
""")

_LOOK_NEXT = text("""
    UPDATE accounts AS a
    SET look_at = u.look_at
    FROM unnest(CAST(:accounts AS text[]), CAST(:looks AS timestamptz[])) AS u (account_id, look_at)
    WHERE a.account_id = ANY(ARRAY[u.account_id])
""")
