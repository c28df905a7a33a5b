"""Whether an account could pay a job that is submitted now. Advice to whoever asks; the claim alone decides.

An account's room is what it can spend less the quotes of its queued jobs that hold nothing yet. A process remembers
it for a moment and takes off what it stores meanwhile, so that a burst of submits costs one look; but no job is
turned down without a fresh look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import monotonic

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.store.errors import InsufficientCredits
from worker.store.plan_books import PlanBooks
from worker.store.refusals import debts_of

#: For so long a room that was large enough is believed, in seconds.
_REMEMBERED_SECONDS = 2.0
#: Accounts whose room is remembered; more are looked up again.
_ACCOUNTS_MAX = 20_000


@dataclass(slots=True)
class _Room:
    """Credits that are free for new jobs. None: time is about to change that, so only the claim can tell."""

    left: int | None
    frozen: bool
    until: float

    def holds(self, wanted: int) -> bool:
        return self.left is None or wanted <= self.left


class Affordability:
    """Rooms of accounts, as one process remembers them."""

    def __init__(self, plan_books: PlanBooks) -> None:
        self._plan_books = plan_books
        self._rooms: dict[str, _Room] = {}

    async def turned_down(
        self, connection: AsyncConnection, wanted: Sequence[tuple[str, int]]
    ) -> Mapping[int, InsufficientCredits]:
        """Of these (account, quote) pairs, in their order, those that don't fit any more, by their place."""
        demand: Counter[str] = Counter()
        for account_id, quoted in wanted:
            demand[account_id] += quoted
        now = monotonic()
        await self._look(connection, [a for a, amount in demand.items() if not self._believed(a, amount, now)], now)
        short: dict[int, InsufficientCredits] = {}
        for place, (account_id, quoted) in enumerate(wanted):
            room = self._rooms[account_id]
            if not room.holds(quoted):
                short[place] = await self._refusal(connection, account_id, quoted, room)
            elif room.left is not None:
                room.left -= quoted
        return short

    def _believed(self, account_id: str, amount: int, now: float) -> bool:
        room = self._rooms.get(account_id)
        return room is not None and room.until > now and room.holds(amount)

    async def _look(self, connection: AsyncConnection, account_ids: Sequence[str], now: float) -> None:
        if not account_ids:
            return
        if len(self._rooms) > _ACCOUNTS_MAX:
            self._rooms = {account: room for account, room in self._rooms.items() if room.until > now}
        for row in await connection.execute(_ROOMS, {"accounts": list(account_ids)}):
            left = None if row.changes else row.available - row.queued
            self._rooms[row.account_id] = _Room(left, row.frozen, now + _REMEMBERED_SECONDS)

    async def _refusal(
        self, connection: AsyncConnection, account_id: str, quoted: int, room: _Room
    ) -> InsufficientCredits:
        available = max(0, room.left or 0)
        # What is bought without a subscription is born frozen: no pack would do.
        pack, frozen = None, None
        if room.frozen:
            frozen = (await connection.execute(_FROZEN, {"account": account_id})).scalar_one()
        else:
            debt = (await debts_of(connection, [account_id])).get(account_id, 0)
            pack = (await self._plan_books.current(connection)).smallest_pack(quoted - available + debt)
        return InsufficientCredits(account_id, quoted, available, asdict(pack) if pack else None, frozen)


_FROZEN = text("""
    SELECT CAST(COALESCE(sum(available), 0) AS bigint)
    FROM lots
    WHERE account_id = :account
      AND source = 'topup'
      AND NOT closed
      AND (expires_at IS NULL OR expires_at > fermata_now())
""")

#: A queued job that ran before has its hold already. `changes`: a cycle is due, whoever meets it first begins it.
_ROOMS = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    )
    SELECT a.account_id, a.look_at IS NOT NULL AND a.look_at <= clock.now AS changes,
           a.plan IS NULL OR COALESCE(a.active_until <= clock.now, false) AS frozen,
           (
               SELECT CAST(COALESCE(sum(l.available), 0) AS bigint)
               FROM lots AS l
               WHERE l.account_id = a.account_id
                 AND NOT l.closed
                 AND (l.expires_at IS NULL OR l.expires_at > clock.now)
                 AND (l.source <> 'topup' OR NOT (a.plan IS NULL OR COALESCE(a.active_until <= clock.now, false)))
           ) AS available,
           (
               SELECT CAST(COALESCE(sum(j.quoted), 0) AS bigint)
               FROM due AS d
               JOIN jobs AS j USING (account_id, job_id)
               WHERE d.account_id = a.account_id
                 AND j.attempt = 0
           ) AS queued
    FROM accounts AS a
    CROSS JOIN clock
    WHERE a.account_id = ANY(CAST(:accounts AS text[]))
""")
