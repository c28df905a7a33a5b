"""What the audit asks of subscriptions: one statement a check, rows (rule, what).

What a subscription is now follows from the last step that somebody took with it (`subscription_changes`, append-only)
and from the cycles that began since.
"""

from __future__ import annotations

from sqlalchemy import text

#: Cycles never overlap: a resume begins a new anchor only after the last one's end. Those since the anchor lie on its
#: months, counted from it as `worker.credits.cycles` does; of those under an earlier anchor is known only that none is
#: longer than a month. No anchor lies within the last one, or the next would be too short. Each began while it ran, the
#: skipped ones afterwards.
CYCLES = text("""
    WITH lined AS (
        SELECT c.account_id, c.starts_at, c.ends_at, c.at, c.skipped, s.anchor,
               lag(c.ends_at) OVER line AS before,
               lead(c.starts_at) OVER line IS NULL AS is_last,
               -- Else nothing can be counted: whatever was written there, the audit goes on.
               c.starts_at < '9999-01-01' AS is_sane,
               isfinite(s.anchor) AND c.starts_at >= s.anchor AND c.starts_at < '9999-01-01' AS is_counted
        FROM cycles AS c
        LEFT JOIN subscriptions AS s USING (account_id)
        WINDOW line AS (PARTITION BY c.account_id ORDER BY c.starts_at)
    ), counted AS (
        SELECT account_id, starts_at, ends_at, at, skipped, anchor, before, is_last, is_sane,
               CASE WHEN is_counted THEN anchor AT TIME ZONE 'UTC' END AS first,
               CASE WHEN is_counted THEN CAST(
                   12 * (date_part('year', starts_at AT TIME ZONE 'UTC') - date_part('year', anchor AT TIME ZONE 'UTC'))
                   + date_part('month', starts_at AT TIME ZONE 'UTC') - date_part('month', anchor AT TIME ZONE 'UTC')
               AS integer) END AS months
        FROM lined
    ), broken AS MATERIALIZED (
        SELECT format('cycle of %s from %s to %s, begun %s, skipped %s: the one before ends %s, the account knows %s, '
                      'the anchor is %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          account_id, c.starts_at, c.ends_at, c.at, c.skipped, c.before, a.cycle_ends_at, c.anchor
                      ))))) AS what
        FROM counted AS c
        JOIN accounts AS a USING (account_id)
        WHERE c.before > c.starts_at
           OR (c.is_last AND a.cycle_ends_at IS DISTINCT FROM c.ends_at)
           OR CASE WHEN c.is_sane THEN c.ends_at > c.starts_at + INTERVAL '744 hours' ELSE true END  -- 31 days
           OR (c.is_last AND c.anchor > c.starts_at AND c.anchor <> c.ends_at)
           OR NOT isfinite(c.anchor)
           OR (c.first + make_interval(months => c.months)) AT TIME ZONE 'UTC' <> c.starts_at
           OR (c.first + make_interval(months => c.months + 1)) AT TIME ZONE 'UTC' <> c.ends_at
           OR c.at < c.starts_at
           OR c.skipped <> (c.ends_at <= c.at)
    )
    SELECT 'cycle_is_in_line' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: A cycle's first lot came as it began and is what its plan brings by some book; each further one came by a step that
#: brought so many credits, and raised the cycle to what some plan brings. Which of several books counted then nobody
#: knows any more: a plan is sold on by the one that had it last.
CYCLE_GRANTS = text("""
    WITH sold AS (
        SELECT DISTINCT plan, credits
        FROM unnest(CAST(:plans AS text[]), CAST(:plan_credits AS bigint[])) AS u (plan, credits)
    ), allotments AS (
        SELECT DISTINCT credits
        FROM sold
    ), steps AS (
        SELECT DISTINCT account_id, at, body -> 'answer' ->> 'credits' AS credits
        FROM subscription_changes
    ), placed AS (
        SELECT account_id, cycle_starts_at AS starts_at, lot_id, granted, created_at,
               sum(granted) OVER cycle AS so_far,
               lag(lot_id) OVER cycle IS NULL AS is_first
        FROM lots
        WHERE source = 'subscription'
        WINDOW cycle AS (PARTITION BY account_id, cycle_starts_at ORDER BY lot_id)
    ), broken AS MATERIALIZED (
        SELECT format('cycle of %s from %s, %s, begun %s: lot %s of %s came %s and makes it %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          c.account_id, c.starts_at, c.plan, c.at, p.lot_id, p.granted, p.created_at, p.so_far
                      ))))) AS what
        FROM cycles AS c
        LEFT JOIN placed AS p USING (account_id, starts_at)
        LEFT JOIN sold AS s ON s.plan = c.plan AND s.credits = p.so_far
        LEFT JOIN allotments AS a ON a.credits = p.so_far
        LEFT JOIN steps AS t ON t.account_id = p.account_id AND t.at = p.created_at
             AND t.credits = CAST(p.granted AS text)
        WHERE CASE
                  WHEN p.lot_id IS NULL THEN NOT c.skipped
                  WHEN p.is_first THEN c.skipped OR p.created_at <> c.at OR s.plan IS NULL
                  ELSE a.credits IS NULL OR t.account_id IS NULL
              END
    )
    SELECT 'cycle_is_granted' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: The account has the plan and the end that the last step left it, or the plan that was to come where a cycle began
#: since. Times are compared as the step's answer writes them: whatever was written there, the audit goes on.
SUBSCRIPTIONS = text("""
    WITH stepped AS (
        SELECT DISTINCT ON (account_id) account_id, at, what, body -> 'answer' AS answer
        FROM subscription_changes
        ORDER BY account_id, at DESC
    ), asked AS (
        SELECT DISTINCT ON (account_id) account_id, body -> 'asked' AS terms
        FROM subscription_changes
        WHERE what = 'subscribe'
        ORDER BY account_id, at DESC
    ), turned AS (
        SELECT account_id, max(at) AS at
        FROM cycles
        GROUP BY account_id
    ), standing AS (
        SELECT account_id, a.plan, a.active_until, a.cycle_ends_at, s.account_id IS NOT NULL AS is_subscribed,
               s.next_plan, s.renewal, s.grace_seconds, s.cancelled_at, t.at AS turned_at, c.at AS stepped_at,
               c.what AS step, c.answer, q.terms, c.answer ? 'next_plan' AND c.answer ? 'active_until' AS is_known,
               to_char(a.active_until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS')
                   || CASE WHEN date_trunc('second', a.active_until) = a.active_until THEN ''
                           ELSE to_char(a.active_until AT TIME ZONE 'UTC', '.US') END || 'Z' AS ends_at
        FROM accounts AS a
        LEFT JOIN subscriptions AS s USING (account_id)
        LEFT JOIN turned AS t USING (account_id)
        LEFT JOIN stepped AS c USING (account_id)
        LEFT JOIN asked AS q USING (account_id)
        WHERE a.plan IS NOT NULL
           OR s.account_id IS NOT NULL
           OR t.account_id IS NOT NULL
    ), broken AS MATERIALIZED (
        SELECT format('%s: plan %s until %s, cycle until %s; %s renewal, grace %s s, next plan %s, cancelled %s; '
                      'its last step at %s was to %s, and left %s; its last cycle began %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          account_id, plan, active_until, cycle_ends_at, renewal, grace_seconds, next_plan,
                          cancelled_at, stepped_at, step, answer, turned_at
                      ))))) AS what
        FROM standing
        WHERE (plan IS NOT NULL) <> is_subscribed
           OR (cycle_ends_at IS NOT NULL) <> (turned_at IS NOT NULL)
           OR (is_subscribed AND turned_at IS NULL)
           OR (active_until IS NULL) <> (renewal = 'automatic' AND cancelled_at IS NULL)
           OR cancelled_at > active_until
           OR (is_known AND (
                  ends_at IS DISTINCT FROM answer ->> 'active_until'
                  OR CASE
                         WHEN turned_at > stepped_at
                         THEN next_plan IS NOT NULL
                              OR plan IS DISTINCT FROM COALESCE(answer ->> 'next_plan', answer ->> 'plan')
                         ELSE (plan, next_plan) IS DISTINCT FROM (answer ->> 'plan', answer ->> 'next_plan')
                     END
                  OR CASE
                         WHEN step = 'cancel' THEN cancelled_at IS DISTINCT FROM stepped_at
                         WHEN step IN ('subscribe', 'resume', 'renewed') THEN cancelled_at IS NOT NULL
                     END
              ))
           OR (terms ? 'grace_days' AND (
                  renewal IS DISTINCT FROM terms ->> 'renewal'
                  OR CAST(grace_seconds / 86400 AS text) IS DISTINCT FROM terms ->> 'grace_days'
              ))
    )
    SELECT 'subscription_is_agreed' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: Whoever has another cycle paid for is looked at no later than it begins, and a lapsed one while there are top-ups to
#: expire.
LOOKS = text("""
    WITH waiting AS (
        SELECT DISTINCT account_id
        FROM lots
        WHERE source = 'topup'
          AND NOT closed
          AND available > 0
    ), broken AS MATERIALIZED (
        SELECT format('%s is looked at %s; its cycle ends %s, it is active until %s, has top-ups %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          account_id, a.look_at, a.cycle_ends_at, a.active_until, w.account_id IS NOT NULL
                      ))))) AS what
        FROM accounts AS a
        JOIN subscriptions AS s USING (account_id)
        LEFT JOIN waiting AS w USING (account_id)
        WHERE CASE
                  WHEN a.active_until IS NULL
                    OR (s.cancelled_at IS NULL
                        AND a.active_until > a.cycle_ends_at + make_interval(secs => s.grace_seconds))
                  THEN a.look_at IS NULL OR a.look_at > a.cycle_ends_at
                  ELSE a.look_at IS NULL AND w.account_id IS NOT NULL
              END
    )
    SELECT 'account_is_looked_at' AS rule, what
    FROM broken
    LIMIT :limit
""")
