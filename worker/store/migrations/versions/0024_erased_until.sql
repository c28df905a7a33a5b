-- An erasure has a moment, and takes nothing of what came after it: its account may be in use all the while.
-- Notes it, if nothing of the account is unfinished. What it may no longer be told goes at once, and so does what people
-- wrote about it, its own endpoints, and what was said of its voices, which were taken away before.
CREATE OR REPLACE FUNCTION fermata_erase_account(erased text, who text, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    endpoints uuid[];
    tokens uuid[];
BEGIN
    PERFORM FROM accounts AS a WHERE a.account_id = erased FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no account %', erased;
    END IF;
    IF EXISTS (SELECT FROM due WHERE account_id = erased) OR EXISTS (SELECT FROM live WHERE account_id = erased)
        OR EXISTS (SELECT FROM parked WHERE account_id = erased) THEN
        RAISE EXCEPTION '% has unfinished jobs', erased;
    END IF;
    IF EXISTS (SELECT FROM voices WHERE account_id = erased AND removed_at IS NULL) THEN
        RAISE EXCEPTION '% has a voice', erased;
    END IF;
    PERFORM set_config('fermata.actor', who, true);
    DELETE FROM deliveries WHERE account_id = erased;
    DELETE FROM refusals WHERE account_id = erased;
    UPDATE events SET body = NULL, reason = CASE WHEN what = 'ended' THEN reason END
    WHERE account_id = erased AND (body IS NOT NULL OR (what <> 'ended' AND reason IS NOT NULL));
    UPDATE lots SET note = NULL WHERE account_id = erased AND note IS NOT NULL;
    SELECT array_agg(w.webhook_id) INTO endpoints FROM webhooks AS w WHERE w.account_id = erased;
    DELETE FROM webhook_secrets WHERE webhook_id = ANY (endpoints);
    DELETE FROM webhooks WHERE webhook_id = ANY (endpoints);
    SELECT array_agg(k.key_id) INTO tokens FROM api_keys AS k WHERE k.account_id = erased AND k.role = 'customer';
    DELETE FROM api_keys WHERE key_id = ANY (tokens);
    DELETE FROM creations WHERE made = ANY (CAST(endpoints || tokens AS text[]));
    UPDATE voices SET licence = 'erased', consent = 'erased', statistics = '{}' WHERE account_id = erased;
    -- Last: what the lines above left in the log is of before it too.
    INSERT INTO erasures (account_id, at, actor, reason) VALUES (erased, fermata_now(), who, why)
    ON CONFLICT (account_id) DO UPDATE SET at = excluded.at, actor = excluded.actor, reason = excluded.reason;
END
$$;

-- Takes what people wrote out of what the next `most` entries of the log after that one say of an erased account.
-- Returns the last entry it looked at; null at the end. Why it was erased stays.
CREATE OR REPLACE FUNCTION fermata_erase_log(erased text, after_entry bigint, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    moment timestamptz;
    words text[] := ARRAY['note', 'url', 'licence', 'consent', 'statistics', 'filter'];
    seen bigint[];
BEGIN
    SELECT e.at INTO moment FROM erasures AS e WHERE e.account_id = erased;
    IF moment IS NULL OR most NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION '% is not erased, or % entries are too many', erased, most;
    END IF;
    SELECT array_agg(page.entry_id ORDER BY page.entry_id) INTO seen
    FROM (
        SELECT l.entry_id FROM audit_log AS l WHERE l.entry_id > after_entry ORDER BY l.entry_id LIMIT most
    ) AS page;
    UPDATE audit_log AS l
    SET before = l.before - said.words, after = l.after - said.words
    FROM (VALUES (words), (words || ARRAY['reason'])) AS said (words)
    WHERE l.entry_id BETWEEN seen[1] AND seen[cardinality(seen)]
      AND l.at <= moment
      AND (l.what LIKE 'jobs.%') = ('reason' = ANY (said.words))
      AND (erased IN (l.before ->> 'account_id', l.after ->> 'account_id') OR (l.subject = erased AND l.what LIKE 'jobs.%'))
      AND (l.before ?| said.words OR l.after ?| said.words);
    RETURN seen[cardinality(seen)];
END
$$;

-- Takes what people wrote out of the next `most` jobs of an erased account after that one. Numbers, switches and the
-- fields in `kept` stay: a price depends on them. Returns the last job it looked at; null at the end.
CREATE OR REPLACE FUNCTION fermata_erase_jobs(erased text, after_job uuid, kept text[], most integer) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    moment timestamptz;
    seen uuid[];
BEGIN
    SELECT e.at INTO moment FROM erasures AS e WHERE e.account_id = erased;
    IF moment IS NULL OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION '% is not erased, or % jobs are too many', erased, most;
    END IF;
    SELECT array_agg(page.job_id ORDER BY page.job_id) INTO seen
    FROM (
        SELECT j.job_id FROM jobs AS j WHERE j.account_id = erased AND j.job_id > after_job
        ORDER BY j.job_id LIMIT most
    ) AS page;
    UPDATE jobs AS j
    SET request = (
            SELECT COALESCE(jsonb_object_agg(f.key, f.value), '{}')
            FROM jsonb_each(j.request) AS f
            WHERE jsonb_typeof(f.value) IN ('number', 'boolean')
               OR (jsonb_typeof(f.value) = 'string' AND f.key = ANY (kept))
        ),
        inputs = '{}', metadata = '{}', message = NULL, traceparent = NULL,
        outputs = CASE WHEN j.outputs IS NOT NULL THEN '[]'::jsonb END
    WHERE j.account_id = erased
      AND j.job_id = ANY (seen)
      AND j.ended_at < moment;
    UPDATE attempts AS a
    SET message = NULL, engine_state = NULL
    WHERE a.account_id = erased
      AND a.job_id = ANY (seen)
      AND a.ended_at < moment;
    RETURN seen[cardinality(seen)];
END
$$;

-- Forgets these artifacts of an erased account: their files are gone. What a voice was made of keeps its row, nameless.
CREATE OR REPLACE FUNCTION fermata_erase_artifacts(erased text, gone uuid[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    moment timestamptz;
    forgotten integer;
BEGIN
    SELECT e.at INTO moment FROM erasures AS e WHERE e.account_id = erased;
    IF moment IS NULL THEN
        RAISE EXCEPTION '% is not erased', erased;
    END IF;
    DELETE FROM artifacts AS a
    WHERE a.account_id = erased
      AND a.artifact_id = ANY (gone)
      AND a.created_at < moment
      AND NOT EXISTS (SELECT FROM voices AS v WHERE v.artifact_id = a.artifact_id);
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    UPDATE artifacts AS a
    SET name = 'erased'
    WHERE a.account_id = erased
      AND a.artifact_id = ANY (gone)
      AND a.created_at < moment;
    RETURN forgotten;
END
$$
