"""What the audit asks of chargebacks, debts and frozen top-ups: one statement a check, rows (rule, what)."""

from __future__ import annotations

from sqlalchemy import text

#: What was spent of a charged-back lot is owed, and so is what it had paid of older debts. Nothing is revoked for
#: anything else.
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
               COALESCE(j.paid, 0) AS revoked, COALESCE(l.charged_back, false) AS charged_back, l.spent, l.available,
               COALESCE(l.revoked, 0) AS taken
        FROM lots AS l
        FULL JOIN told AS t USING (account_id, lot_id)
        FULL JOIN taken AS j USING (account_id, lot_id)
        WHERE l.charged_back
           OR l.revoked > 0
           OR t.owed IS NOT NULL
           OR j.paid IS NOT NULL
    ), broken AS MATERIALIZED (
        SELECT CASE WHEN charged_back AND available > 0
                    THEN 'charged_back_is_taken'
                    ELSE 'debt_is_explained' END AS rule,
               format('lot %s of %s: charged back %s, available %s, spent %s, revoked %s; owed for it %s, '
                      'paid by it %s, revoked for that %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          lot_id, account_id, charged_back, available, spent, taken, owed, paid, revoked
                      ))))) AS what
        FROM compared
        WHERE owed IS DISTINCT FROM CASE WHEN charged_back THEN spent + paid ELSE 0 END
           OR paid <> revoked
           OR (taken <> revoked AND NOT charged_back)
           OR (charged_back AND available > 0)
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: A purchase and its lot are charged back together.
CHARGEBACKS = text("""
    SELECT 'charged_back_is_taken' AS rule,
           format('purchase %s of %s: charged back at %s, its lot %s',
                  VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                      reference, account_id, p.charged_back_at, l.charged_back
                  ))))) AS what
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
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          e.seq, a.account_id, e.amount, l.lot_id, e.at, a.active_until
                      ))))) AS what
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
