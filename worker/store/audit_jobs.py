"""What the audit asks of jobs: that state, reservation, narrow tables, attempts, events and outputs agree."""

from __future__ import annotations

from sqlalchemy import text

#: Each job against its reservation, its place, its attempts and the outcome table of its own book.
JOBS = text("""
    WITH outcome AS (
        SELECT book_id, ending, state, basis, percent
        FROM unnest(CAST(:books AS integer[]), CAST(:endings AS text[]), CAST(:states AS text[]),
                    CAST(:bases AS text[]), CAST(:percents AS integer[]))
             AS u (book_id, ending, state, basis, percent)
    ), ran AS (
        SELECT account_id, job_id, count(*) AS runs, max(attempt) AS last_run
        FROM attempts
        GROUP BY account_id, job_id
    ), standing AS (
        SELECT account_id, job_id, j.state, j.quoted, j.charged, j.reason, j.partial, j.attempt, j.ends_by,
               j.ended_at IS NOT NULL AS ended,
               r.state AS hold, r.amount, r.charged AS committed, r.draw_amounts,
               l.account_id IS NOT NULL AS is_live, d.account_id IS NOT NULL AS is_due,
               p.account_id IS NOT NULL AS is_parked, l.lease_until, l.attempt AS live_attempt,
               a.runs, a.last_run, o.state AS ending_state, o.basis,
               -- Nothing is charged that never started. Measured use is the settle's to know.
               CASE
                   WHEN j.attempt = 0 OR o.basis = 'nothing' THEN 0
                   WHEN o.basis = 'hold' THEN ceil(COALESCE(r.amount, 0) * o.percent / 100.0)
               END AS expected
        FROM jobs AS j
        FULL JOIN reservations AS r USING (account_id, job_id)
        FULL JOIN live AS l USING (account_id, job_id)
        FULL JOIN due AS d USING (account_id, job_id)
        FULL JOIN parked AS p USING (account_id, job_id)
        LEFT JOIN ran AS a USING (account_id, job_id)
        LEFT JOIN outcome AS o ON o.book_id = j.book_id AND o.ending = j.reason
    ), judged AS (
        SELECT account_id, job_id, state, reason, quoted, charged, hold, amount, committed, attempt, runs, is_live,
               is_due, is_parked, lease_until, ends_by,
               array_remove(ARRAY[
                   CASE WHEN state IS NULL AND hold IS NOT NULL THEN 'reservation_without_job' END,
                   CASE WHEN state IS NULL AND (is_live OR is_due OR is_parked) THEN 'place_without_job' END,
                   CASE WHEN (state = 'running') <> is_live THEN 'running_is_live' END,
                   CASE WHEN (state = 'queued') <> is_due THEN 'queued_is_due' END,
                   CASE WHEN (state = 'waiting') <> is_parked THEN 'waiting_is_parked' END,
                   CASE WHEN state = 'running' AND hold IS DISTINCT FROM 'held' THEN 'running_holds' END,
                   CASE WHEN hold = 'held' AND state NOT IN ('running', 'queued') THEN 'hold_has_ended' END,
                   CASE WHEN hold <> 'held' AND NOT ended THEN 'settled_is_ended' END,
                   CASE WHEN amount <> quoted
                          OR amount <> CASE WHEN cardinality(draw_amounts) = 1 THEN draw_amounts[1]
                                            ELSE (SELECT COALESCE(sum(a), 0) FROM unnest(draw_amounts) AS a) END
                        THEN 'reserved_is_quote' END,
                   CASE WHEN GREATEST(charged, committed) > quoted THEN 'charged_above_quote' END,
                   CASE WHEN state = 'succeeded'
                         AND (hold IS DISTINCT FROM 'committed' OR committed IS DISTINCT FROM charged)
                        THEN 'succeeded_is_committed' END,
                   CASE WHEN (ended AND state <> 'succeeded'
                              AND (charged IS DISTINCT FROM expected
                                   OR COALESCE(committed, 0) <> charged
                                   OR hold <> CASE WHEN charged > 0 THEN 'committed' ELSE 'refunded' END))
                          OR (state = 'succeeded' AND basis = 'nothing' AND charged <> 0)
                        THEN 'charge_is_outcome' END,
                   CASE WHEN ended AND (state IS DISTINCT FROM ending_state OR partial <> (reason = 'partial'))
                        THEN 'end_is_outcome' END,
                   CASE WHEN COALESCE(runs, 0) <> attempt - CAST(is_live AS integer) OR last_run > attempt
                          OR live_attempt <> attempt
                        THEN 'attempts_are_counted' END,
                   CASE WHEN lease_until < :lease_ends_after THEN 'stale_lease' END,
                   CASE WHEN hold = 'held' AND ends_by < :job_ends_after THEN 'stale_hold' END
               ], NULL) AS rules
        FROM standing
    ), broken AS MATERIALIZED (
        SELECT rule,
               format('job %s of %s: %s (%s), quoted %s, charged %s; reservation %s of %s, charged %s; attempt %s, '
                      'runs ended %s; live %s, due %s, parked %s, lease until %s, ends by %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, state, reason, quoted, charged, hold, amount, committed, attempt, runs,
                          is_live, is_due, is_parked, lease_until, ends_by
                      ))))) AS what
        FROM judged
        CROSS JOIN LATERAL unnest(rules) AS rule
        WHERE cardinality(rules) > 0
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: Exactly one `ended` event an ended job, that says what the job says. Events of pruned jobs may be left.
ENDS = text("""
    WITH told AS (
        SELECT account_id, job_id, count(*) AS events, min(state) AS state, min(reason) AS reason,
               sum(charged) AS charged, min(at) AS at
        FROM events
        WHERE what = 'ended'
        GROUP BY account_id, job_id
    ), broken AS MATERIALIZED (
        SELECT 'end_is_told_once' AS rule,
               format('job %s of %s: %s (%s), charged %s, ended %s; %s ended events: %s (%s), charged %s, of %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          j.job_id, j.account_id, j.state, j.reason, j.charged, j.ended_at, COALESCE(t.events, 0),
                          t.state, t.reason, t.charged, t.at
                      ))))) AS what
        FROM jobs AS j
        LEFT JOIN told AS t USING (account_id, job_id)
        WHERE COALESCE(t.events, 0) <> CASE WHEN j.ended_at IS NULL THEN 0 ELSE 1 END
           OR (t.state, t.reason, t.charged, t.at) <> (j.state, j.reason, j.charged, j.ended_at)
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: What a job shows is what its settling attempt made, all of it and nothing else; other artifacts of jobs don't
#: exist. Compared as text: whatever was written in there, the audit goes on.
OUTPUTS = text("""
    WITH listed AS (
        SELECT j.account_id, j.job_id, o.item ->> 'artifact' AS artifact, o.item ->> 'name' AS name, a.token,
               j.ended_at
        FROM jobs AS j
        LEFT JOIN attempts AS a ON a.account_id = j.account_id AND a.job_id = j.job_id AND a.attempt = j.attempt
        CROSS JOIN LATERAL jsonb_array_elements(
            CASE WHEN jsonb_typeof(j.outputs) = 'array' AND j.outputs <> '[]' THEN j.outputs ELSE '[null]' END
        ) AS o (item)
        WHERE j.outputs IS NOT NULL
    ), kept AS (
        SELECT a.account_id, a.job_id, CAST(a.artifact_id AS text) AS artifact, a.name, a.token, a.created_at
        FROM artifacts AS a
        WHERE a.job_id IS NOT NULL
    ), broken AS MATERIALIZED (
        SELECT 'outputs_are_artifacts' AS rule,
               format('job %s of %s: lists %s (%s) of attempt %s, there is %s (%s) of attempt %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, l.artifact, l.name, l.token, k.artifact, k.name, k.token
                      ))))) AS what
        FROM listed AS l
        FULL JOIN kept AS k USING (account_id, job_id, artifact)
        WHERE (l.token IS DISTINCT FROM k.token OR l.name IS DISTINCT FROM k.name)
          AND (l.job_id IS NOT NULL OR EXISTS (SELECT FROM jobs AS j WHERE j.job_id = k.job_id))
          -- What was made for an account that is erased goes, lists and artifacts one after the other.
          AND NOT EXISTS (
              SELECT FROM erasures AS e
              WHERE e.account_id = COALESCE(l.account_id, k.account_id)
                AND e.at > COALESCE(l.ended_at, k.created_at)
          )
    )
    SELECT rule, what
    FROM broken
    LIMIT :limit
""")

#: Whatever names a job, a lot or an artifact names one of its own account.
ACCOUNTS = text("""
    WITH naming_job AS (
        SELECT 'reservation' AS source, account_id, job_id FROM reservations
        UNION ALL
        SELECT 'attempt', account_id, job_id FROM attempts
        UNION ALL
        SELECT 'event', account_id, job_id FROM events WHERE job_id IS NOT NULL
        UNION ALL
        SELECT 'artifact', account_id, job_id FROM artifacts WHERE job_id IS NOT NULL
        UNION ALL
        SELECT 'lot', account_id, job_id FROM lots WHERE job_id IS NOT NULL
        UNION ALL
        SELECT 'live row', account_id, job_id FROM live
        UNION ALL
        SELECT 'due row', account_id, job_id FROM due
        UNION ALL
        SELECT 'parked row', account_id, job_id FROM parked
        UNION ALL
        SELECT 'retry', account_id, retry_of FROM jobs WHERE retry_of IS NOT NULL
    ), naming_lot AS (
        SELECT r.account_id, d.lot_id
        FROM reservations AS r
        CROSS JOIN LATERAL unnest(r.draw_lots) AS d (lot_id)
    ), naming_artifact AS (
        SELECT j.account_id, i.artifact
        FROM jobs AS j
        CROSS JOIN LATERAL jsonb_each_text(
            CASE WHEN jsonb_typeof(j.inputs) = 'object' THEN j.inputs ELSE '{}' END
        ) AS i (name, artifact)
        WHERE j.inputs <> '{}'
    ), broken AS MATERIALIZED (
        SELECT format('%s of %s names job %s of %s', n.source, n.account_id, n.job_id, j.account_id) AS what
        FROM naming_job AS n
        JOIN jobs AS j USING (job_id)
        WHERE j.account_id <> n.account_id
        UNION ALL
        SELECT format('a reservation of %s draws on lot %s of %s', n.account_id, n.lot_id, l.account_id)
        FROM naming_lot AS n
        -- Nothing is known of how many lots are drawn on: they must be hashed, not looked up by half of their key.
        JOIN (SELECT account_id, lot_id FROM lots OFFSET 0) AS l USING (lot_id)
        WHERE l.account_id <> n.account_id
        UNION ALL
        SELECT format('a job of %s reads artifact %s of %s', n.account_id, n.artifact, a.account_id)
        FROM naming_artifact AS n
        JOIN artifacts AS a ON CAST(a.artifact_id AS text) = n.artifact
        WHERE a.account_id <> n.account_id
    )
    SELECT 'own_account' AS rule, what
    FROM broken
    LIMIT :limit
""")
