"""Where an account stands with what time does to it: its subscription, read only where a cycle has ended or somebody
is about to change it. Under the account's lock, like everything that is gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.page import Look, Page
from worker.credits.plans import Plan
from worker.credits.subscriptions import Renewal, Subscription, frozen_until
from worker.store.plan_books import PlanBooks


@dataclass(frozen=True, slots=True)
class Standing:
    """An account's subscription and the terms of the plans that it names."""

    subscription: Subscription
    terms: Mapping[str, Plan]


async def read_standings(
    connection: AsyncConnection, account_ids: Sequence[str], plan_books: PlanBooks
) -> dict[str, Standing]:
    """By account; those that never subscribed are missing."""
    found: dict[str, Subscription] = {}
    for row in await connection.execute(_READ_SUBSCRIPTIONS, {"accounts": account_ids}):
        found[row.account_id] = Subscription(
            plan=row.plan,
            anchor=row.anchor,
            cycle_starts_at=row.starts_at,
            cycle_ends_at=row.ends_at,
            cycle_plan=row.cycle_plan,
            granted=row.granted_total,
            active_until=row.active_until,
            next_plan=row.next_plan,
            renewal=Renewal(row.renewal),
            grace=timedelta(seconds=row.grace_seconds),
            cancelled_at=row.cancelled_at,
        )
    if not found:
        return {}
    names = {name for one in found.values() for name in (one.plan, one.next_plan) if name}
    terms = await plan_books.terms(connection, names, await plan_books.current(connection))
    return {account_id: Standing(one, terms) for account_id, one in found.items()}


async def judge_frozen(connection: AsyncConnection, lapsed: Mapping[str, datetime], pages: Mapping[str, Page]) -> None:
    """Give top-ups that were frozen for too long their end, on the pages of accounts that lapsed (at) so long ago."""
    ends: dict[str, list[datetime]] = {account_id: [] for account_id in lapsed}
    for row in await connection.execute(_READ_TOPUPS, {"accounts": list(lapsed)}):
        page = pages[row.account_id]
        until = frozen_until(lapsed[row.account_id], row.created_at, page.frozen_life)
        if until > page.now:
            ends[row.account_id].append(until)
        else:
            page.ledger.lots[row.lot_id] = replace(page.ledger.lots[row.lot_id], expires_at=until)
    for account_id, of_one in ends.items():
        pages[account_id].frozen_next = Look(min(of_one, default=None))


def lapsed_long_ago(active_until: datetime | None, now: datetime, frozen_life: timedelta) -> bool:
    """Whether top-ups bought before the lapse are frozen no more, but gone."""
    return active_until is not None and active_until + frozen_life <= now


_READ_TOPUPS = text("""
    SELECT account_id, lot_id, created_at
    FROM lots
    WHERE account_id = ANY(CAST(:accounts AS text[]))
      AND NOT closed
      AND source = 'topup'
      AND expires_at IS NULL
""")

_READ_SUBSCRIPTIONS = text("""
    SELECT a.account_id, a.plan, s.anchor, c.starts_at, c.ends_at, c.cycle_plan, c.granted_total, a.active_until,
           s.next_plan, s.renewal, s.grace_seconds, s.cancelled_at
    FROM accounts AS a
    CROSS JOIN LATERAL (
        SELECT anchor, next_plan, renewal, grace_seconds, cancelled_at
        FROM subscriptions
        WHERE account_id = a.account_id
        OFFSET 0
    ) AS s
    CROSS JOIN LATERAL (
        SELECT starts_at, ends_at, plan AS cycle_plan, granted_total
        FROM cycles
        WHERE account_id = a.account_id
        ORDER BY starts_at DESC
        LIMIT 1
    ) AS c
    WHERE a.account_id = ANY(CAST(:accounts AS text[]))
""")
