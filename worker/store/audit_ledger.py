"""What the audit asks of lots, reservations, the journal and what brought the credits: one statement a check.

Each yields rows (rule, what). The rules of one statement share its scan of the journal. What is broken is
materialized before the LIMIT: else the planner, expecting a thousand rows soon, goes through every index one row
at a time. A million entries of 333,000 jobs took 15 s so, and take 6 s now.

Of months that are closed, `MONTH` holds the checkpoints against the entries and `DRAWS` the draws, a month at a time;
with that, `LOTS` needs no entry of theirs.
"""

from __future__ import annotations

from sqlalchemy import text

#: Each lot against its own entries, or what stands for those before `closed_until`: checkpoints; and the holds on it.
LOTS = text("""
    WITH entries AS (
        SELECT account_id, lot_id,
               COALESCE(sum(amount) FILTER (WHERE move = 'grant'), 0) AS came,
               COALESCE(sum(amount) FILTER (WHERE move = 'reserve'), 0) AS reserved,
               COALESCE(sum(amount) FILTER (WHERE move = 'commit'), 0) AS committed,
               COALESCE(sum(amount) FILTER (WHERE move = 'refund'), 0) AS refunded,
               COALESCE(sum(amount) FILTER (WHERE move = 'expire'), 0) AS gone,
               COALESCE(sum(amount) FILTER (WHERE move = 'revoke'), 0) AS taken,
               max(at) FILTER (WHERE move = 'reserve') AS reserved_last,
               min(at) FILTER (WHERE move = 'expire') AS expired_first,
               count(*) FILTER (WHERE move = 'grant') AS grants
        FROM journal
        WHERE at >= :closed_until
        GROUP BY account_id, lot_id
        UNION ALL
        SELECT account_id, lot_id, granted, reserved, committed, refunded, expired, revoked, reserved_last,
               expired_first, sign(granted)
        FROM checkpoints
        WHERE month < :closed_until
    ), folded AS (
        SELECT account_id, lot_id, sum(came) AS came, sum(reserved) AS reserved, sum(committed) AS committed,
               sum(refunded) AS refunded, sum(gone) AS gone, sum(taken) AS taken,
               max(reserved_last) AS reserved_last, min(expired_first) AS expired_first, sum(grants) AS grants
        FROM entries
        GROUP BY account_id, lot_id
    ), drawn AS (
        SELECT r.account_id, d.lot_id, sum(d.amount) AS holds
        FROM reservations AS r
        CROSS JOIN LATERAL unnest(r.draw_lots, r.draw_amounts) AS d (lot_id, amount)
        WHERE r.state = 'held'
        GROUP BY r.account_id, d.lot_id
    ), compared AS (
        SELECT account_id, lot_id, l.granted, l.available, l.held, l.spent, l.expired, l.revoked, l.expires_at,
               f.came, f.reserved, f.committed, f.refunded, f.gone, f.taken, COALESCE(d.holds, 0) AS holds,
               array_remove(ARRAY[
                   CASE WHEN LEAST(l.available, l.held, l.spent, l.expired, l.revoked) < 0
                        THEN 'bucket_below_zero' END,
                   CASE WHEN l.granted <> l.available + l.held + l.spent + l.expired + l.revoked
                        THEN 'buckets_sum' END,
                   CASE WHEN l.granted IS NOT NULL AND f.came IS NULL THEN 'lot_without_entries' END,
                   CASE WHEN f.grants > 1 THEN 'lot_is_granted_once' END,
                   CASE WHEN l.granted IS NULL AND f.came IS NOT NULL THEN 'entries_without_lot' END,
                   CASE WHEN l.granted <> f.came
                          OR l.available <> f.came - f.reserved + f.refunded - f.gone - f.taken
                          OR l.held <> f.reserved - f.committed - f.refunded
                          OR l.spent <> f.committed
                          OR l.expired <> f.gone
                          OR l.revoked <> f.taken
                        THEN 'bucket_is_fold' END,
                   CASE WHEN COALESCE(l.held, 0) <> COALESCE(d.holds, 0) THEN 'held_is_draws' END,
                   CASE WHEN f.reserved_last >= l.expires_at THEN 'reserved_after_expiry' END,
                   -- Top-ups only after a lapse, and thirty days from their purchase at the soonest.
                   CASE WHEN f.expired_first < COALESCE(l.expires_at, CASE l.source
                            WHEN 'topup' THEN l.created_at + INTERVAL '30 days' ELSE 'infinity' END)
                        THEN 'expired_before_expiry' END
               ], NULL) AS rules
        FROM lots AS l
        FULL JOIN folded AS f USING (account_id, lot_id)
        FULL JOIN drawn AS d USING (account_id, lot_id)
    ), broken AS MATERIALIZED (
        SELECT rule,
               format('lot %s of %s: granted %s, available %s, held %s, spent %s, expired %s, revoked %s; its entries: '
                      'granted %s, reserved %s, committed %s, refunded %s, expired %s, revoked %s; held by jobs %s; '
                      'expires at %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          lot_id, account_id, granted, available, held, spent, expired, revoked, came, reserved,
                          committed, refunded, gone, taken, holds, expires_at
                      ))))) AS what
        FROM compared
        CROSS JOIN LATERAL unnest(rules) AS rule
        WHERE cardinality(rules) > 0
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: Each draw against the entries of its job on its lot, from `since` to `until`. Charges are spent in draw order. The
#: entries of a job that was pruned, with its reservation, must have ended what they began. What was settled before is
#: looked at with its own month; what was unsettled then stands in `carried_draws`, as what a closed month leaves does.
DRAWS = text("""
    WITH moved AS (
        SELECT account_id, job_id, lot_id,
               COALESCE(sum(amount) FILTER (WHERE move = 'reserve'), 0) AS reserved,
               COALESCE(sum(amount) FILTER (WHERE move = 'commit'), 0) AS committed,
               COALESCE(sum(amount) FILTER (WHERE move = 'refund'), 0) AS refunded,
               count(*) FILTER (WHERE move = 'reserve') AS reserves,
               COALESCE(sum(amount) FILTER (WHERE move = 'carry'), 0) AS carried
        FROM (
            SELECT account_id, job_id, lot_id, move, amount
            FROM journal
            WHERE move IN ('reserve', 'commit', 'refund')
              AND at >= :since
              AND at < :until
            UNION ALL
            SELECT account_id, job_id, lot_id, 'reserve', amount
            FROM carried_draws
            WHERE month = :month_before
            UNION ALL
            SELECT account_id, job_id, lot_id, 'carry', amount
            FROM carried_draws
            WHERE month = :month
        ) AS entries
        GROUP BY account_id, job_id, lot_id
    ), placed AS (
        -- Most reservations draw on one lot: only the others need their draws in order.
        SELECT account_id, job_id, draw_lots[1] AS lot_id, draw_amounts[1] AS amount, state, settled_at, charged,
               0 AS before
        FROM reservations
        WHERE cardinality(draw_lots) = 1
          AND reserved_at < :until
          AND (state = 'held' OR settled_at >= :since)
        UNION ALL
        SELECT r.account_id, r.job_id, d.lot_id, d.amount, r.state, r.settled_at, r.charged,
               sum(d.amount) OVER (PARTITION BY r.account_id, r.job_id ORDER BY d.position) - d.amount
        FROM reservations AS r
        CROSS JOIN LATERAL unnest(r.draw_lots, r.draw_amounts) WITH ORDINALITY AS d (lot_id, amount, position)
        WHERE cardinality(r.draw_lots) > 1
          AND r.reserved_at < :until
          AND (r.state = 'held' OR r.settled_at >= :since)
    ), drawn AS (
        -- As they stood when the time was over.
        SELECT account_id, job_id, lot_id, amount, CASE WHEN settled_at < :until THEN state ELSE 'held' END AS state,
               LEAST(amount, GREATEST(0, charged - before)) AS charged
        FROM placed
    ), compared AS (
        SELECT account_id, job_id, lot_id, d.amount, d.state, d.charged, m.reserved, m.committed, m.refunded, m.carried,
               array_remove(ARRAY[
                   CASE WHEN d.amount IS NOT NULL AND (m.reserved IS DISTINCT FROM d.amount OR m.reserves <> 1)
                        THEN 'reserve_is_draw' END,
                   CASE WHEN (d.state = 'held' AND m.committed + m.refunded <> 0)
                          OR (d.state <> 'held' AND (m.committed IS DISTINCT FROM d.charged
                                                     OR m.refunded IS DISTINCT FROM d.amount - d.charged))
                        THEN 'settle_is_split' END,
                   CASE WHEN d.amount IS NULL
                         AND (m.job_id IS NULL OR m.reserved <> m.committed + m.refunded + m.carried
                              OR EXISTS (SELECT FROM jobs AS j WHERE j.job_id = m.job_id))
                        THEN 'entries_without_draw' END,
                   CASE WHEN CAST(:is_closed AS boolean) AND m.carried <> m.reserved - m.committed - m.refunded
                         AND m.job_id IS NOT NULL
                        THEN 'checkpoint_is_fold' END
               ], NULL) AS rules
        FROM drawn AS d
        FULL JOIN moved AS m USING (account_id, job_id, lot_id)
    ), broken AS MATERIALIZED (
        SELECT rule,
               format('job %s of %s on lot %s: draw %s, %s, charged %s; its entries: reserved %s, committed %s, '
                      'refunded %s, carried over %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, lot_id, amount, state, charged, reserved, committed, refunded, carried
                      ))))) AS what
        FROM compared
        CROSS JOIN LATERAL unnest(rules) AS rule
        WHERE cardinality(rules) > 0
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: Soonest expiry first, never-expiring last, ties by age.
DRAW_ORDER = text("""
    WITH placed AS (
        SELECT r.account_id, r.job_id, d.position, d.lot_id, COALESCE(l.expires_at, 'infinity') AS expires_at,
               lag(d.lot_id) OVER drawn AS lot_before,
               lag(COALESCE(l.expires_at, 'infinity')) OVER drawn AS expiry_before
        FROM reservations AS r
        CROSS JOIN LATERAL unnest(r.draw_lots) WITH ORDINALITY AS d (lot_id, position)
        JOIN lots AS l ON l.account_id = r.account_id AND l.lot_id = d.lot_id
        WHERE cardinality(r.draw_lots) > 1
        WINDOW drawn AS (PARTITION BY r.account_id, r.job_id ORDER BY d.position)
    ), broken AS MATERIALIZED (
        SELECT 'draw_order' AS rule,
               format('job %s of %s drew on lot %s (%s) after lot %s (%s)',
                      job_id, account_id, lot_id, expires_at, lot_before, expiry_before) AS what
        FROM placed
        WHERE (expires_at, lot_id) < (expiry_before, lot_before)
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: A second of tolerance: a server's clock may be set back, and a journal can't be set right afterwards.
JOURNAL_ORDER = text("""
    WITH placed AS (
        SELECT account_id, seq, at, lag(at) OVER (PARTITION BY account_id ORDER BY seq) AS before
        FROM journal
        WHERE at >= :since
    ), broken AS MATERIALIZED (
        SELECT 'journal_order' AS rule,
               format('entry %s of %s is of %s, after one of %s', seq, account_id, at, before) AS what
        FROM placed
        WHERE at < before - INTERVAL '1 second'
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: A month that is closed and still lies here: its checkpoints must say what its entries say.
MONTH = text("""
    WITH folded AS (
        SELECT account_id, lot_id, count(*) AS entries,
               COALESCE(sum(amount) FILTER (WHERE move = 'grant'), 0) AS granted,
               COALESCE(sum(amount) FILTER (WHERE move = 'reserve'), 0) AS reserved,
               COALESCE(sum(amount) FILTER (WHERE move = 'commit'), 0) AS committed,
               COALESCE(sum(amount) FILTER (WHERE move = 'refund'), 0) AS refunded,
               COALESCE(sum(amount) FILTER (WHERE move = 'expire'), 0) AS expired,
               COALESCE(sum(amount) FILTER (WHERE move = 'revoke'), 0) AS revoked,
               COALESCE(sum(amount) FILTER (WHERE move = 'revoke' AND reason = 'debt'), 0) AS debt_paid,
               max(at) FILTER (WHERE move = 'reserve') AS reserved_last,
               min(at) FILTER (WHERE move = 'expire') AS expired_first,
               count(*) FILTER (WHERE move = 'grant') AS grants
        FROM journal
        WHERE at >= :since
          AND at < :until
        GROUP BY account_id, lot_id
    ), kept AS (
        SELECT account_id, lot_id, entries, granted, reserved, committed, refunded, expired, revoked, debt_paid,
               reserved_last, expired_first
        FROM checkpoints
        WHERE month = :month
    ), broken AS MATERIALIZED (
        SELECT CASE WHEN f.grants > 1 THEN 'lot_is_granted_once' ELSE 'checkpoint_is_fold' END AS rule,
               format('lot %s of %s in the month from %s: the checkpoint says %s, its entries %s, of which %s grants',
                      lot_id, account_id, CAST(:month AS timestamptz),
                      (k.entries, k.granted, k.reserved, k.committed, k.refunded, k.expired, k.revoked),
                      (f.entries, f.granted, f.reserved, f.committed, f.refunded, f.expired, f.revoked),
                      COALESCE(f.grants, 0)) AS what
        FROM folded AS f
        FULL JOIN kept AS k USING (account_id, lot_id)
        WHERE (f.entries, f.granted, f.reserved, f.committed, f.refunded, f.expired, f.revoked, f.debt_paid,
               f.reserved_last, f.expired_first)
              IS DISTINCT FROM
              (k.entries, k.granted, k.reserved, k.committed, k.refunded, k.expired, k.revoked, k.debt_paid,
               k.reserved_last, k.expired_first)
           OR f.grants > 1
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: Months follow each other from the first one on, are closed and detached in that order, and count their checkpoints.
MONTHS = text("""
    WITH counted AS (
        SELECT month, sum(entries) AS entries
        FROM checkpoints
        GROUP BY month
    ), lined AS (
        SELECT starts_at, m.ends_at, m.closed_at, m.detached_at, m.entries, COALESCE(c.entries, 0) AS counted,
               lag(m.ends_at, 1, m.starts_at) OVER line AS before,
               lag(m.detached_at IS NULL, 1, false) OVER line AS kept_before,
               lag(m.closed_at IS NULL, 1, false) OVER line AS open_before,
               EXISTS (
                   SELECT FROM pg_inherits AS i
                   WHERE i.inhparent = CAST('journal' AS regclass)
                     AND i.inhrelid = to_regclass('journal_' || to_char(m.starts_at AT TIME ZONE 'UTC', 'YYYY_MM'))
               ) AS is_attached
        FROM journal_months AS m
        LEFT JOIN counted AS c ON c.month = m.starts_at
        WINDOW line AS (ORDER BY m.starts_at)
    )
    SELECT 'months_are_in_line' AS rule,
           format('the month from %s to %s follows one that ended %s; closed %s, detached %s; it counts %s entries, '
                  'its checkpoints %s; it hangs on the journal: %s; %s',
                  VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                      starts_at, ends_at, before, closed_at, detached_at, entries, counted, is_attached,
                      CASE WHEN closed_at > fermata_now() AND detached_at IS NULL
                          THEN 'a clock that ran ahead closed it: fermata prune opens it again'
                          ELSE 'no clock was ahead' END
                  ))))) AS what
    FROM lined
    WHERE before <> starts_at
       OR ends_at <> starts_at AT TIME ZONE 'UTC' + INTERVAL '1 month'
       OR (detached_at IS NOT NULL AND (kept_before OR is_attached))
       OR open_before
       OR entries <> counted
       OR closed_at > fermata_now()
    LIMIT :limit
""")

#: Each cycle is granted once, each purchase has its lot, and neither has another's.
SOURCES = text("""
    WITH granted AS (
        SELECT account_id, cycle_starts_at AS starts_at, sum(granted) AS credits
        FROM lots
        WHERE source = 'subscription'
        GROUP BY account_id, cycle_starts_at
    ), bought AS (
        SELECT account_id, reference, granted AS credits
        FROM lots
        WHERE source = 'topup'
    )
    (
        SELECT 'cycle_is_granted' AS rule,
               format('cycle of %s from %s: granted %s, its lots %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          account_id, starts_at, c.granted_total, g.credits
                      ))))) AS what
        FROM cycles AS c
        FULL JOIN granted AS g USING (account_id, starts_at)
        WHERE c.starts_at IS NULL
           OR c.granted_total <> COALESCE(g.credits, 0)
        LIMIT :limit
    )
    UNION ALL
    (
        SELECT 'purchase_is_lot',
               format('purchase %s of %s: %s credits, its lot %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          reference, account_id, p.credits, b.credits
                      )))))
        FROM purchases AS p
        FULL JOIN bought AS b USING (account_id, reference)
        WHERE p.credits IS DISTINCT FROM b.credits
        LIMIT :limit
    )
    UNION ALL
    (
        SELECT 'debt_below_zero', format('%s owes %s', account_id, sum(amount))
        FROM debts
        GROUP BY account_id
        HAVING sum(amount) < 0
        LIMIT :limit
    )
""")

#: The database must be able to refuse what the promises say it refuses. Bits of tgtype: 8 delete, 16 update,
#: 32 truncate; each partition needs its own trigger against truncation.
GUARDS = text("""
    WITH guarded AS (
        SELECT CAST('debts' AS regclass) AS relation
        UNION ALL
        SELECT CAST('journal' AS regclass)
        UNION ALL
        SELECT i.inhrelid
        FROM pg_inherits AS i
        WHERE i.inhparent = CAST('journal' AS regclass)
        UNION ALL
        SELECT CAST(name AS regclass)
        FROM unnest(ARRAY['checkpoints', 'carried_draws']) AS name
        UNION ALL
        -- What is detached and not yet archived is still ours to keep.
        SELECT to_regclass('journal_' || to_char(m.starts_at AT TIME ZONE 'UTC', 'YYYY_MM'))
        FROM journal_months AS m
        WHERE m.detached_at IS NOT NULL
          AND to_regclass('journal_' || to_char(m.starts_at AT TIME ZONE 'UTC', 'YYYY_MM')) IS NOT NULL
    ), refusing AS (
        SELECT t.tgrelid AS relation, bit_or(t.tgtype) & 56 AS refused
        FROM pg_trigger AS t
        WHERE t.tgfoid = CAST('fermata_append_only' AS regproc)
          AND t.tgenabled IN ('O', 'A')
          AND t.tgqual IS NULL
          AND CAST(t.tgattr AS text) = ''  -- for whichever column
        GROUP BY t.tgrelid
    )
    SELECT 'append_only_is_guarded' AS rule, format('%s can be changed: its triggers are off', g.relation) AS what
    FROM guarded AS g
    LEFT JOIN refusing AS r USING (relation)
    WHERE r.refused IS DISTINCT FROM 56
    UNION ALL
    SELECT 'buckets_are_guarded', format('the CHECK %s is not in force on lots', wanted.name)
    FROM unnest(ARRAY['lots_no_bucket_below_zero', 'lots_buckets_sum']) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT FROM pg_constraint AS c
        WHERE c.conrelid = CAST('lots' AS regclass)
          AND c.conname = wanted.name
          AND c.convalidated
    )
    UNION ALL
    SELECT 'book_is_unchanged', format('%s %s is not what was applied', book.kind, book.number)
    FROM (
        SELECT 'price book' AS kind, book_id AS number, document, digest
        FROM price_books
        UNION ALL
        SELECT 'plan book', book_id, document, digest
        FROM plan_books
    ) AS book
    WHERE encode(sha256(convert_to(book.document, 'UTF8')), 'hex') <> book.digest
""")
