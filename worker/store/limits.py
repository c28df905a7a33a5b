"""What a person sets for one account, whatever its plan has: how many jobs at a time, and when it is warned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.lots import CREDITS_MAX
from worker.store.audit_log import acting
from worker.store.database import reading, transaction
from worker.store.errors import Refused, UnknownAccount
from worker.store.ops import RUNNING_MAX_MAX
from worker.store.plan_books import PlanBooks


@dataclass(frozen=True, slots=True)
class AsPlanned:
    """Leave it to the plan again."""


AS_PLANNED = AsPlanned()


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What holds for an account. `own_…` is what a person set; None: it is the plan's."""

    account: str
    running_max: int | None  # jobs at a time; None: no limit
    own_running_max: int | None
    warn_below: int  # spendable credits; 0: never
    own_warn_below: int | None


class Limits:
    """Limits of accounts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._plan_books = PlanBooks()

    async def limits(self, account_id: str) -> AccountLimits:
        """What holds now. Raises `UnknownAccount`."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_READ, {"account": account_id})).one_or_none()
        if row is None:
            raise UnknownAccount(account_id)
        return AccountLimits(account_id, *row)

    async def set_limits(
        self,
        account_id: str,
        actor: str,
        *,
        running_max: int | AsPlanned | None = None,
        warn_below: int | AsPlanned | None = None,
    ) -> AccountLimits:
        """Change what is given, leave the rest; from the next claim on. Raises `UnknownAccount` and `Refused`."""
        if isinstance(running_max, int) and not 1 <= running_max <= RUNNING_MAX_MAX:
            raise Refused("running_max", f"must be from 1 to {RUNNING_MAX_MAX:,}; to run none, pause the account")
        if isinstance(warn_below, int) and not 0 <= warn_below <= CREDITS_MAX:
            raise Refused("warn_below", f"must be from 0 to {CREDITS_MAX:,}")
        async with transaction(self._engine, "set_limits") as connection:
            await acting(connection, actor)
            row = (await connection.execute(_LOCK, {"account": account_id})).one_or_none()
            if row is None:
                raise UnknownAccount(account_id)
            own_running, own_warn = _own(running_max, row.own_running_max), _own(warn_below, row.own_warn_below)
            planned = await self._planned(connection, row.plan)
            now = AccountLimits(
                account=account_id,
                running_max=own_running if own_running is not None else planned[0],
                own_running_max=own_running,
                warn_below=own_warn if own_warn is not None else planned[1],
                own_warn_below=own_warn,
            )
            values = {"account": account_id, "running": now.running_max, "warn": now.warn_below}
            await connection.execute(_SET, values | {"own_running": own_running, "own_warn": own_warn})
            await connection.execute(_LOOK_AGAIN, {"account": account_id})
            await connection.execute(_NOTIFY_DUE)
        return now

    async def _planned(self, connection: AsyncConnection, plan: str | None) -> tuple[int | None, int]:
        if plan is None:
            return None, 0
        book = await self._plan_books.current(connection)
        terms = (await self._plan_books.terms(connection, [plan], book))[plan]
        return terms.jobs_at_a_time, terms.warn_below


def _own(given: int | AsPlanned | None, before: int | None) -> Any:
    if isinstance(given, AsPlanned):
        return None
    return before if given is None else given


_READ = text("""
    SELECT running_max, own_running_max, warn_below, own_warn_below
    FROM accounts
    WHERE account_id = :account
""")

_LOCK = text("""
    SELECT plan, own_running_max, own_warn_below
    FROM accounts
    WHERE account_id = :account
    FOR NO KEY UPDATE
""")

_SET = text("""
    UPDATE accounts
    SET running_max = :running, own_running_max = :own_running, warn_below = :warn, own_warn_below = :own_warn
    WHERE account_id = :account
""")

#: There may be room now; a claim that finds none says so again.
_LOOK_AGAIN = text("""
    UPDATE due AS d
    SET waits_for = NULL
    FROM (
        SELECT w.job_id
        FROM due AS w
        WHERE w.account_id = :account
          AND w.waits_for = 'account_limit'
        ORDER BY w.priority DESC, w.turn, w.job_id
        LIMIT (SELECT running_max FROM accounts WHERE account_id = :account)
        FOR UPDATE OF w SKIP LOCKED
    ) AS next
    WHERE d.account_id = :account
      AND d.job_id = next.job_id
""")

_NOTIFY_DUE = text("SELECT pg_notify('fermata_due', '')")
