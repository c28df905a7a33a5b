"""Writing what accounts are told, each notice with a subject once; and whom time has brought something to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.page import Notice, Page
from worker.store.database import reading, transaction


async def write_notices(
    connection: AsyncConnection, pages: Sequence[Page], lot_ids: Mapping[tuple[str, int], int], now: datetime
) -> None:
    """Write the pages' notices as events, but none of a subject that was told before. Under the accounts' locks."""
    rows = [(page.account_id, notice) for page in pages for notice in page.writes.notices]
    if not rows:
        return
    lots = [
        None if notice.lot_id is None else lot_ids.get((account_id, notice.lot_id), notice.lot_id)
        for account_id, notice in rows
    ]
    await connection.execute(
        _TELL,
        {
            "accounts": [account_id for account_id, _ in rows],
            "whats": [str(notice.what) for _, notice in rows],
            "subjects": [_subject(notice, lot) for (_, notice), lot in zip(rows, lots, strict=True)],
            "bodies": [_body(notice, lot) for (_, notice), lot in zip(rows, lots, strict=True)],
            "now": now,
        },
    )


def _subject(notice: Notice, lot: int | None) -> str | None:
    return None if notice.subject is None else f"{'' if lot is None else lot}{notice.subject}"


def _body(notice: Notice, lot: int | None) -> str:
    body = dict(notice.body) if lot is None else {**notice.body, "lot": lot}
    return msgspec.json.encode(body).decode()


class Notices:
    """Looks for the notify duty."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def accounts_to_tell(self, expiring_days: float, frozen_days: float, limit: int) -> list[str]:
        """Accounts that were not told of credits that expire soon, or of top-ups that are frozen."""
        values = {"expiring": expiring_days, "frozen": frozen_days, "limit": limit}
        async with reading(self._engine) as connection:
            return list((await connection.execute(_TO_TELL, values)).scalars())

    async def forget(self, days: float) -> int:
        """Forget what was told so long ago that it can't come again; returns how many."""
        async with transaction(self._engine, "forget_told") as connection:
            return int((await connection.execute(_FORGET, {"days": days})).rowcount)


_TELL = text("""
    WITH wanted AS (
        SELECT u.account_id, u.what, u.subject, u.body, u.position
        FROM unnest(CAST(:accounts AS text[]), CAST(:whats AS text[]), CAST(:subjects AS text[]),
                    CAST(:bodies AS jsonb[]))
             WITH ORDINALITY AS u (account_id, what, subject, body, position)
    ), fresh AS (
        INSERT INTO told (account_id, what, subject, at)
        SELECT account_id, what, subject, :now
        FROM wanted
        WHERE subject IS NOT NULL
        ON CONFLICT DO NOTHING
        RETURNING account_id, what, subject
    )
    INSERT INTO events (account_id, at, what, body)
    SELECT account_id, :now, what, body
    FROM wanted
    WHERE subject IS NULL
       OR ((account_id, what, subject) IN (SELECT account_id, what, subject FROM fresh)) IS TRUE
    ORDER BY position
""")

_TO_TELL = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), expiring AS (
        SELECT DISTINCT l.account_id
        FROM clock
        JOIN lots AS l ON l.expires_at > clock.now
            AND l.expires_at <= clock.now + make_interval(secs => :expiring * 86400)
        JOIN accounts AS a USING (account_id)
        WHERE NOT l.closed
          AND l.available > 0
          AND (l.source <> 'topup' OR (a.plan IS NOT NULL AND (a.active_until IS NULL OR a.active_until > clock.now)))
          AND NOT EXISTS (
              SELECT FROM told AS t
              WHERE t.account_id = l.account_id
                AND t.what = 'credits_expiring'
                AND t.subject = CAST(l.lot_id AS text)
          )
        LIMIT :limit
    ), frozen AS (
        SELECT DISTINCT a.account_id
        FROM clock
        JOIN accounts AS a ON a.active_until <= clock.now
            AND a.active_until > clock.now - make_interval(secs => :frozen * 86400)
        JOIN lots AS l USING (account_id)
        WHERE NOT l.closed
          AND l.source = 'topup'
          AND l.available > 0
          AND NOT EXISTS (
              SELECT FROM told AS t
              WHERE t.account_id = l.account_id
                AND t.what = 'topup_frozen'
                AND t.subject = l.lot_id || '@' || CAST(floor(EXTRACT(EPOCH FROM a.active_until)) AS bigint)
          )
        LIMIT :limit
    )
    SELECT account_id FROM expiring
    UNION
    SELECT account_id FROM frozen
""")

_FORGET = text("""
    DELETE FROM told
    WHERE at < fermata_now() - make_interval(secs => :days * 86400)
""")
