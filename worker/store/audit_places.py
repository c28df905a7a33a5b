"""What the audit asks of the narrow tables, and of the order of times: one statement a check, rows (rule, what)."""

from __future__ import annotations

from sqlalchemy import text

#: Each row says what its job's says: who dispatches, pauses, counts or reaps reads nothing else. None is put off, and
#: no lease lasts, for longer than a deployment can have it.
PLACES = text("""
    WITH placed AS (
        SELECT 'due' AS place, account_id, job_id, queue, kind, ends_by, priority, since,
               CAST(NULL AS bigint) AS needed, not_before > GREATEST(since, :latest_wait) AS is_put_off,
               not_before AS until
        FROM due
        UNION ALL
        SELECT 'live', account_id, job_id, queue, kind, ends_by, NULL, NULL, NULL, lease_until > :latest_lease,
               lease_until
        FROM live
        UNION ALL
        SELECT 'parked', account_id, job_id, queue, kind, ends_by, NULL, NULL, needed, false, NULL
        FROM parked
    ), broken AS MATERIALIZED (
        SELECT format('job %s of %s is %s: queue %s, kind %s, ends by %s, priority %s, since %s, needs %s, until %s; '
                      'the job says queue %s, kind %s, ends by %s, priority %s, run at %s, created %s, quoted %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, p.place, p.queue, p.kind, p.ends_by, p.priority, p.since, p.needed,
                          p.until, j.queue, j.kind, j.ends_by, j.priority, j.run_at, j.created_at, j.quoted
                      ))))) AS what
        FROM placed AS p
        JOIN jobs AS j USING (account_id, job_id)
        WHERE (p.queue, p.kind, p.ends_by) <> (j.queue, j.kind, j.ends_by)
           OR p.priority <> j.priority
           OR p.since <> GREATEST(j.run_at, j.created_at)
           OR p.needed <> j.quoted
           OR p.is_put_off
    )
    SELECT 'place_is_jobs' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: A second of tolerance, as for the journal's order; and a day for what is dated ahead.
TIMES = text("""
    WITH broken AS MATERIALIZED (
        SELECT format('job %s of %s: created %s, started %s, ended %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, created_at, started_at, ended_at
                      ))))) AS what
        FROM jobs
        WHERE ended_at < created_at - INTERVAL '1 second'
           OR ended_at < started_at - INTERVAL '1 second'
           OR started_at < created_at - INTERVAL '1 second'
           OR GREATEST(created_at, started_at, ended_at) > :ahead
        UNION ALL
        SELECT format('reservation of job %s of %s: reserved %s, settled %s',
                      VARIADIC ARRAY(SELECT COALESCE(value, 'none') FROM json_each_text(row_to_json(ROW(
                          job_id, account_id, reserved_at, settled_at
                      )))))
        FROM reservations
        WHERE settled_at < reserved_at - INTERVAL '1 second'
           OR GREATEST(reserved_at, settled_at) > :ahead
        UNION ALL
        SELECT format('entry %s of %s is of %s', seq, account_id, at)
        FROM journal
        WHERE at > :ahead
        UNION ALL
        SELECT format('lot %s of %s came %s', lot_id, account_id, created_at)
        FROM lots
        WHERE created_at > :ahead
    )
    SELECT 'times_are_in_order' AS rule, what
    FROM broken
    LIMIT :limit
""")
