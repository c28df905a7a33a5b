-- By it an artifact that goes is looked up, here and by the foreign key.
CREATE INDEX voices_artifact ON voices (account_id, artifact_id);

-- Looks at `most` ends of jobs behind `after`, in the order of their time, among those before `cutoff`; and at what else
-- has the instant of the last one, so that the next look goes on behind it. Says of each whether it may go: a job whose
-- sound another one still waits for stays, and so does one that a voice was made of. Costs what it looks at, and the
-- unfinished jobs of the same accounts: it is planned for look-ups by key alone, whatever the statistics say.
CREATE FUNCTION fermata_old_ends(cutoff timestamptz, after timestamptz, most integer)
RETURNS TABLE (account_id text, job_id uuid, seq bigint, at timestamptz, may_go boolean)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    accounts text[];
    seen uuid[];
    ends bigint[];
    times timestamptz[];
    needed uuid[];
BEGIN
    SELECT array_agg(page.account_id), array_agg(page.job_id), array_agg(page.seq), array_agg(page.at)
    INTO accounts, seen, ends, times
    FROM (
        SELECT e.account_id, e.job_id, e.seq, e.at
        FROM events AS e
        WHERE e.what = 'ended'
          AND e.at > after
          AND e.at < cutoff
        ORDER BY e.at
        FETCH FIRST (most) ROWS WITH TIES
    ) AS page;
    -- Each look-up stands behind its OFFSET, where no other order of the joins, and no half of a key, can be thought of.
    -- An input is text: whatever was written there, a read goes on.
    needed := ARRAY(
        SELECT a.job_id
        FROM (SELECT DISTINCT s.account_id FROM unnest(accounts) AS s (account_id)) AS owner
        CROSS JOIN LATERAL (
            SELECT d.job_id FROM due AS d WHERE d.account_id = owner.account_id
            UNION ALL
            SELECT l.job_id FROM live AS l WHERE l.account_id = owner.account_id
            UNION ALL
            SELECT p.job_id FROM parked AS p WHERE p.account_id = owner.account_id
            OFFSET 0
        ) AS unfinished
        CROSS JOIN LATERAL (
            SELECT j.account_id, j.inputs FROM jobs AS j WHERE j.job_id = unfinished.job_id OFFSET 0
        ) AS j
        CROSS JOIN LATERAL jsonb_each_text(j.inputs) AS i (name, artifact)
        CROSS JOIN LATERAL (
            SELECT a.account_id, a.job_id
            FROM artifacts AS a
            WHERE a.artifact_id
                = CASE WHEN i.artifact ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN CAST(i.artifact AS uuid) END
            OFFSET 0
        ) AS a
        WHERE j.account_id = owner.account_id
          AND a.account_id = owner.account_id
          AND a.job_id IS NOT NULL
    );
    RETURN QUERY
    SELECT s.account_id, s.job_id, s.seq, s.at,
           s.job_id NOT IN (SELECT unnest(needed))
           AND NOT EXISTS (
               SELECT FROM jobs AS j
               WHERE j.account_id = s.account_id
                 AND j.job_id = s.job_id
                 AND (j.ended_at < cutoff) IS NOT TRUE
               OFFSET 0
           )
           AND NOT EXISTS (
               SELECT FROM artifacts AS a
               WHERE a.account_id = s.account_id
                 AND a.job_id = s.job_id
                 AND EXISTS (
                     SELECT FROM voices AS v
                     WHERE v.account_id = a.account_id AND v.artifact_id = a.artifact_id
                     OFFSET 0
                 )
               OFFSET 0
           )
    FROM unnest(accounts, seen, ends, times) AS s (account_id, job_id, seq, at);
END
$$;

-- Looks at `most` jobs, as above, that ended more than `kept_days` ago, behind `after` (null: from the first one on),
-- and deletes those that may go, with all that was kept of them but the journal. Returns how many ends are forgotten,
-- and where to go on: null at the end.
CREATE FUNCTION fermata_prune_jobs(kept_days integer, after timestamptz, most integer)
RETURNS TABLE (gone integer, looked_to timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    cutoff timestamptz;
    accounts text[];
    ended uuid[];
    ends bigint[];
    times timestamptz[];
BEGIN
    IF kept_days NOT BETWEEN 30 AND 36500 OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'jobs are kept for 30 to 36500 days and go by 1 to 10000, got % and %', kept_days, most;
    END IF;
    gone := 0;
    -- One at a time; a second one finds nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('fermata_prune_jobs')) THEN
        RETURN NEXT;
        RETURN;
    END IF;
    cutoff := fermata_now() - make_interval(days => kept_days);
    SELECT array_agg(old.account_id) FILTER (WHERE old.may_go), array_agg(old.job_id) FILTER (WHERE old.may_go),
           array_agg(old.seq) FILTER (WHERE old.may_go), array_agg(old.at) FILTER (WHERE old.may_go),
           count(*) FILTER (WHERE old.may_go), max(old.at)
    INTO accounts, ended, ends, times, gone, looked_to
    FROM fermata_old_ends(cutoff, COALESCE(after, '-infinity'), most) AS old;
    DELETE FROM jobs AS j USING unnest(accounts, ended) AS g (account_id, job_id)
    WHERE j.account_id = g.account_id AND j.job_id = g.job_id AND j.ended_at < cutoff;
    DELETE FROM reservations AS r USING unnest(accounts, ended) AS g (account_id, job_id)
    WHERE r.account_id = g.account_id AND r.job_id = g.job_id AND r.settled_at < cutoff;
    DELETE FROM attempts AS a USING unnest(accounts, ended) AS g (account_id, job_id)
    WHERE a.account_id = g.account_id AND a.job_id = g.job_id AND a.ended_at < cutoff;
    DELETE FROM refusals AS r USING unnest(accounts, ended) AS g (account_id, job_id)
    WHERE r.account_id = g.account_id AND r.job_id = g.job_id;
    DELETE FROM artifacts AS a USING unnest(accounts, ended) AS g (account_id, job_id)
    WHERE a.account_id = g.account_id AND a.job_id = g.job_id AND a.created_at < cutoff;
    DELETE FROM events AS e USING unnest(accounts, ends, times) AS g (account_id, seq, at)
    WHERE e.account_id = g.account_id AND e.seq = g.seq AND e.at = g.at;
    RETURN NEXT;
END
$$;

-- Looks at `most` inputs after that one, in order, and deletes those that are older than `kept_days` and that neither a
-- job nor a voice names. Returns where their files lie, and always the last one it looked at, with a null for its file.
-- Reads all jobs of the accounts in which it finds old ones, once: the more it looks at, the less one costs.
CREATE OR REPLACE FUNCTION fermata_prune_inputs(
    kept_days integer, after_account text, after_artifact uuid, most integer
)
RETURNS TABLE (account_id text, artifact_id uuid, storage_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    cutoff timestamptz;
    accounts text[];
    old uuid[];
    last_account text;
    last_artifact uuid;
    named text[];
BEGIN
    IF kept_days NOT BETWEEN 1 AND 36500 OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'inputs are kept for 1 to 36500 days and go by 1 to 10000, got % and %', kept_days, most;
    END IF;
    cutoff := fermata_now() - make_interval(days => kept_days);
    SELECT array_agg(page.account_id) FILTER (WHERE page.is_old), array_agg(page.artifact_id) FILTER (WHERE page.is_old),
           (array_agg(page.account_id))[count(*)], (array_agg(page.artifact_id))[count(*)]
    INTO accounts, old, last_account, last_artifact
    FROM (
        SELECT a.account_id, a.artifact_id,
               a.job_id IS NULL
               AND a.created_at < cutoff
               AND NOT EXISTS (
                   SELECT FROM voices AS v
                   WHERE v.account_id = a.account_id AND v.artifact_id = a.artifact_id
                   OFFSET 0
               ) AS is_old
        FROM artifacts AS a
        WHERE (a.account_id, a.artifact_id) > (after_account, after_artifact)
        ORDER BY a.account_id, a.artifact_id
        LIMIT most
    ) AS page;
    IF last_artifact IS NULL THEN
        RETURN;
    END IF;
    -- As sets: a join of both could be thought of as one of few rows, and try each pair.
    named := ARRAY(
        SELECT CAST(o.artifact_id AS text) FROM unnest(old) AS o (artifact_id)
        INTERSECT
        SELECT i.artifact
        FROM (SELECT DISTINCT o.account_id FROM unnest(accounts) AS o (account_id)) AS owner
        CROSS JOIN LATERAL (
            SELECT j.inputs FROM jobs AS j WHERE j.account_id = owner.account_id AND j.inputs <> '{}' OFFSET 0
        ) AS j
        CROSS JOIN LATERAL jsonb_each_text(j.inputs) AS i (name, artifact)
    );
    RETURN QUERY
    DELETE FROM artifacts AS a USING unnest(accounts, old) AS g (account_id, artifact_id)
    WHERE a.account_id = g.account_id
      AND a.artifact_id = g.artifact_id
      AND CAST(g.artifact_id AS text) NOT IN (SELECT unnest(named))
    RETURNING a.account_id, a.artifact_id, a.storage_key;
    RETURN QUERY SELECT last_account, last_artifact, CAST(NULL AS text);
END
$$
