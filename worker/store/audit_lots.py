"""What the audit asks of where lots come from and when they end: one statement a check, rows (rule, what)."""

from __future__ import annotations

from sqlalchemy import text

#: A cycle's credits end with it, bought ones never by themselves (frozen ones by what the account's row says), and what
#: makes a job good after a day or with the cycle that was running.
ENDS = text("""
    WITH begun AS (
        SELECT account_id, starts_at AS cycle_starts_at, ends_at
        FROM cycles
    ), broken AS MATERIALIZED (
        SELECT format('lot %s of %s (%s, %s) came %s and ends %s; its cycle ends %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          l.lot_id, l.account_id, l.source, l.reason, l.created_at, l.expires_at, b.ends_at
                      ))))) AS what
        FROM lots AS l
        LEFT JOIN begun AS b USING (account_id, cycle_starts_at)
        LEFT JOIN cycles AS c ON c.account_id = l.account_id AND c.ends_at = l.expires_at
             AND l.source = 'grant' AND l.reason IN ('make_good', 'compensation')
        WHERE CASE
                  WHEN l.source = 'subscription' THEN l.expires_at IS DISTINCT FROM b.ends_at
                  WHEN l.source = 'topup' THEN l.expires_at IS NOT NULL
                  WHEN l.reason IN ('make_good', 'compensation')
                  THEN l.expires_at IS DISTINCT FROM l.created_at + CAST(:make_good_life AS interval)
                       AND (c.starts_at <= l.created_at) IS NOT TRUE
                  ELSE l.expires_at <= l.created_at
              END
    )
    SELECT 'lot_ends_with_its_source' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: Credits that a job brought. A make-good is what came back of a hold to lots that had ended meanwhile, all of it, by a
#: failure of ours, once; a compensation no more than was charged. A job that nobody knows may have been pruned, if it
#: is old enough by the time in its id. Entries before `since` are not read.
GIVEN = text("""
    WITH given AS (
        SELECT account_id, job_id,
               count(*) FILTER (WHERE reason = 'make_good') AS make_goods,
               COALESCE(sum(granted) FILTER (WHERE reason = 'make_good'), 0) AS made_good,
               COALESCE(sum(granted) FILTER (WHERE reason <> 'make_good'), 0) AS compensated,
               max(created_at) FILTER (WHERE reason = 'make_good') AS made_good_at
        FROM lots
        WHERE source = 'grant'
          AND (job_id IS NOT NULL OR reason IN ('make_good', 'compensation'))
        GROUP BY account_id, job_id
    ), gone AS (
        SELECT account_id, job_id, sum(amount) AS expired
        FROM journal
        WHERE move = 'expire'
          AND job_id IS NOT NULL
          AND at >= :since
        GROUP BY account_id, job_id
    ), compared AS (
        SELECT account_id, job_id, j.state, j.reason, r.amount, r.charged, r.settled_at, g.made_good_at,
               COALESCE(g.made_good, 0) AS made_good, COALESCE(g.compensated, 0) AS compensated,
               COALESCE(n.expired, 0) AS expired,
               array_remove(ARRAY[
                   CASE WHEN g.make_goods > 1
                          OR CASE
                                 WHEN j.job_id IS NOT NULL
                                 THEN g.make_goods > 0
                                      AND (j.reason = ANY(CAST(:our_faults AS text[]))
                                           AND r.settled_at = g.made_good_at
                                           AND g.made_good <= r.amount - r.charged) IS NOT TRUE
                                 ELSE g.make_goods > 0 AND (g.job_id IS NULL OR g.made_good_at > :pruned_before)
                             END
                          OR (j.reason = ANY(CAST(:our_faults AS text[]))
                              AND r.settled_at >= :since
                              AND COALESCE(n.expired, 0) <> COALESCE(g.made_good, 0))
                        THEN 'make_good' END,
                   CASE WHEN g.compensated > 0
                         AND CASE
                                 WHEN j.job_id IS NOT NULL THEN g.compensated > COALESCE(r.charged, 0)
                                 ELSE g.job_id IS NULL OR g.job_id > :pruned_id
                             END
                        THEN 'compensation' END
               ], NULL) AS rules
        FROM given AS g
        FULL JOIN gone AS n USING (account_id, job_id)
        LEFT JOIN jobs AS j USING (account_id, job_id)
        LEFT JOIN reservations AS r USING (account_id, job_id)
    ), broken AS MATERIALIZED (
        SELECT rule,
               format('job %s of %s: %s (%s), reserved %s, charged %s, settled %s; its lots had ended with %s; '
                      'made good %s at %s, compensated %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, state, reason, amount, charged, settled_at, expired, made_good,
                          made_good_at, compensated
                      ))))) AS what
        FROM compared
        CROSS JOIN LATERAL unnest(rules) AS rule
        WHERE cardinality(rules) > 0
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")
