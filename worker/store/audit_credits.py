"""What the audit asks of cycles, chargebacks, debts and frozen top-ups: one statement a check, rows (rule, what)."""

from __future__ import annotations

from sqlalchemy import text

#: A resume begins a new anchor only after the last cycle's end, so cycles never overlap.
CYCLES = text("""
    WITH lined AS (
        SELECT account_id, starts_at, ends_at,
               lag(ends_at) OVER line AS before,
               lead(starts_at) OVER line IS NULL AS is_last
        FROM cycles
        WINDOW line AS (PARTITION BY account_id ORDER BY starts_at)
    ), broken AS MATERIALIZED (
        SELECT format('cycle of %s from %s to %s: the one before ends %s, the account knows %s',
                      account_id, l.starts_at, l.ends_at, l.before, a.cycle_ends_at) AS what
        FROM lined AS l
        JOIN accounts AS a USING (account_id)
        WHERE l.before > l.starts_at
           OR (l.is_last AND a.cycle_ends_at IS DISTINCT FROM l.ends_at)
    )
    SELECT 'cycle_is_in_line' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: What was spent of a charged-back lot is owed, and so is what it had paid of older debts.
DEBTS = text("""
    WITH told AS (
        SELECT account_id, lot_id,
               COALESCE(sum(amount) FILTER (WHERE amount > 0), 0) AS owed,
               COALESCE(-sum(amount) FILTER (WHERE amount < 0), 0) AS paid
        FROM debts
        GROUP BY account_id, lot_id
    ), taken AS (
        SELECT account_id, lot_id, sum(amount) AS paid
        FROM (
            SELECT account_id, lot_id, amount
            FROM journal
            WHERE move = 'revoke'
              AND reason = 'debt'
              AND at >= :closed_until
            UNION ALL
            SELECT account_id, lot_id, debt_paid
            FROM checkpoints
            WHERE month < :closed_until
              AND debt_paid > 0
        ) AS entries
        GROUP BY account_id, lot_id
    ), compared AS (
        SELECT account_id, lot_id, COALESCE(t.owed, 0) AS owed, COALESCE(t.paid, 0) AS paid,
               COALESCE(j.paid, 0) AS revoked, COALESCE(l.charged_back, false) AS charged_back, l.spent, l.available
        FROM lots AS l
        FULL JOIN told AS t USING (account_id, lot_id)
        FULL JOIN taken AS j USING (account_id, lot_id)
        WHERE l.charged_back
           OR t.owed IS NOT NULL
           OR j.paid IS NOT NULL
    ), broken AS MATERIALIZED (
        SELECT CASE WHEN charged_back AND available > 0
                    THEN 'charged_back_is_taken'
                    ELSE 'debt_is_explained' END AS rule,
               format('lot %s of %s: charged back %s, available %s, spent %s; owed for it %s, paid by it %s, '
                      'revoked for that %s',
                      lot_id, account_id, charged_back, available, spent, owed, paid, revoked) AS what
        FROM compared
        WHERE owed IS DISTINCT FROM CASE WHEN charged_back THEN spent + paid ELSE 0 END
           OR paid <> revoked
           OR (charged_back AND available > 0)
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: A purchase and its lot are charged back together.
CHARGEBACKS = text("""
    SELECT 'charged_back_is_taken' AS rule,
           format('purchase %s of %s: charged back at %s, its lot %s', reference, account_id, p.charged_back_at,
                  l.charged_back) AS what
    FROM purchases AS p
    JOIN lots AS l USING (account_id, reference)
    WHERE l.source = 'topup'
      AND l.charged_back <> (p.charged_back_at IS NOT NULL)
    LIMIT :limit
""")

#: Judged by where the account stands now: of a lapse that was resumed since, nothing is kept.
FROZEN = text("""
    WITH broken AS MATERIALIZED (
        SELECT format('entry %s of %s reserves %s of top-up %s at %s; it is frozen since %s',
                      e.seq, a.account_id, e.amount, l.lot_id, e.at, a.active_until) AS what
        FROM accounts AS a
        JOIN lots AS l USING (account_id)
        JOIN journal AS e USING (account_id, lot_id)
        WHERE (a.plan IS NULL OR a.active_until <= fermata_now())
          AND l.source = 'topup'
          AND e.move = 'reserve'
          AND e.at >= COALESCE(a.active_until, '-infinity')
          AND e.at >= :since
    )
    SELECT 'frozen_is_not_spent' AS rule, what
    FROM broken
    LIMIT :limit
""")
