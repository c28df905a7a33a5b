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
$$;

-- What may not be changed. What stands for a month is made anew where a clock that ran ahead closed it before its time,
-- by the owner's function alone.
CREATE OR REPLACE FUNCTION fermata_append_only() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME IN ('checkpoints', 'carried_draws') THEN
        IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
            AND EXISTS (
                SELECT FROM public.journal_months AS m
                WHERE m.starts_at = OLD.month
                  AND m.detached_at IS NULL
                  AND (m.closed_at > public.fermata_now() OR m.ends_at > public.fermata_now() - INTERVAL '1 day')
            ) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Closes the oldest month that is not closed, for the next accounts in order: what its entries sum up to, lot by
-- lot, and which draws it leaves unsettled. Returns the accounts that it looked at; 0 with nothing left to close.
CREATE OR REPLACE FUNCTION fermata_close_month(accounts_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    open journal_months%ROWTYPE;
    first_day timestamp;
    chosen text[];
    counted bigint;
    too_early timestamptz;
BEGIN
    IF accounts_most NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'accounts_most must be 1 to 100000, got %', accounts_most;
    END IF;
    -- One at a time; a second one finds nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('fermata_close_month')) THEN
        RETURN 0;
    END IF;
    -- By a clock that ran ahead, which is right again: what is written now belongs into that month, which would never come
    -- out. It opens again, and so do those after it, which were closed later by that very clock.
    SELECT min(m.starts_at) INTO too_early
    FROM journal_months AS m
    WHERE m.detached_at IS NULL
      AND (m.closed_at > fermata_now() OR m.ends_at > fermata_now() - INTERVAL '1 day');
    IF too_early IS NOT NULL THEN
        DELETE FROM carried_draws WHERE month >= too_early;
        DELETE FROM checkpoints WHERE month >= too_early;
        INSERT INTO audit_log (at, actor, what, subject, before)
        SELECT fermata_now(), session_user, 'journal_months.reopen', CAST(m.starts_at AS text), to_jsonb(m)
        FROM journal_months AS m
        WHERE m.starts_at >= too_early;
        DELETE FROM journal_months WHERE starts_at >= too_early;
        RETURN 1;
    END IF;
    SELECT * INTO open FROM journal_months WHERE closed_at IS NULL ORDER BY starts_at LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        SELECT max(m.ends_at) AT TIME ZONE 'UTC' INTO first_day FROM journal_months AS m;
        IF first_day IS NULL THEN
            SELECT date_trunc('month', LEAST((SELECT min(a.created_at) FROM accounts AS a),
                                             (SELECT min(j.at) FROM journal AS j)) AT TIME ZONE 'UTC') INTO first_day;
        END IF;
        -- A day later no transaction of that month is under way any more.
        IF first_day IS NULL
            OR (first_day + INTERVAL '1 month') AT TIME ZONE 'UTC' > fermata_now() - INTERVAL '1 day' THEN
            RETURN 0;
        END IF;
        INSERT INTO journal_months (starts_at, ends_at)
        VALUES (first_day AT TIME ZONE 'UTC', (first_day + INTERVAL '1 month') AT TIME ZONE 'UTC')
        RETURNING * INTO open;
    END IF;
    -- In the order of their names.
    SELECT array_agg(next.account_id ORDER BY next.account_id) INTO chosen
    FROM (
        SELECT a.account_id FROM accounts AS a WHERE a.account_id > open.closed_to
        ORDER BY a.account_id LIMIT accounts_most
    ) AS next;
    IF chosen IS NULL THEN
        SELECT count(*) INTO counted FROM journal AS j WHERE j.at >= open.starts_at AND j.at < open.ends_at;
        IF counted <> open.entries THEN
            RAISE EXCEPTION 'the month % has % entries and its checkpoints stand for %: run the audit',
                open.starts_at, counted, open.entries;
        END IF;
        UPDATE journal_months SET closed_at = fermata_now() WHERE starts_at = open.starts_at;
        RETURN 1;
    END IF;
    -- Accounts lie next to each other in their own index, and each of their pages is visited once.
    WITH entries AS MATERIALIZED (
        SELECT j.account_id, j.lot_id, j.job_id, j.move, j.amount, j.reason, j.at
        FROM journal AS j
        WHERE j.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
          AND j.at >= open.starts_at
          AND j.at < open.ends_at
    ), kept AS (
        INSERT INTO checkpoints
        SELECT e.account_id, e.lot_id, open.starts_at, count(*),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'grant'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'reserve'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'commit'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'refund'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'expire'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'revoke'), 0),
               COALESCE(sum(e.amount) FILTER (WHERE e.move = 'revoke' AND e.reason = 'debt'), 0),
               max(e.at) FILTER (WHERE e.move = 'reserve'),
               min(e.at) FILTER (WHERE e.move = 'expire')
        FROM entries AS e
        GROUP BY e.account_id, e.lot_id
        RETURNING checkpoints.entries
    ), carried AS (
        INSERT INTO carried_draws
        SELECT moved.account_id, moved.job_id, moved.lot_id, open.starts_at, sum(moved.amount)
        FROM (
            SELECT e.account_id, e.job_id, e.lot_id,
                   CASE WHEN e.move = 'reserve' THEN e.amount ELSE -e.amount END AS amount
            FROM entries AS e
            WHERE e.move IN ('reserve', 'commit', 'refund')
              AND e.job_id IS NOT NULL
            UNION ALL
            SELECT c.account_id, c.job_id, c.lot_id, c.amount
            FROM carried_draws AS c
            WHERE c.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
              AND c.month = (open.starts_at AT TIME ZONE 'UTC' - INTERVAL '1 month') AT TIME ZONE 'UTC'
        ) AS moved
        GROUP BY moved.account_id, moved.job_id, moved.lot_id
        HAVING sum(moved.amount) <> 0
    )
    SELECT COALESCE(sum(k.entries), 0) INTO counted FROM kept AS k;
    UPDATE journal_months
    SET closed_to = chosen[cardinality(chosen)], entries = journal_months.entries + counted
    WHERE starts_at = open.starts_at;
    RETURN cardinality(chosen);
END
$$;

-- Moves what came while its month had no partition out of the default ones, into partitions of its months: an entry that
-- lies there keeps its month, and every later one, from being detached. For people (docs/RUNBOOK.md): nobody reads or
-- writes the table meanwhile, so it is nothing for a duty. What is of a month that was detached stays. Returns how many
-- it moved; raises lock_not_available, and is to be tried again.
CREATE FUNCTION fermata_empty_defaults() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '5s'
AS $$
DECLARE
    parent text;
    first_day timestamp;
    child text;
    found boolean;
    here bigint;
    moved bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('fermata_make_partitions'));
    FOREACH parent IN ARRAY ARRAY['journal', 'events'] LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent);
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', parent || '_default') INTO found;
        CONTINUE WHEN NOT found;
        -- By itself it has none of the triggers that rows of its table have: nothing is told twice, and what was copied
        -- may go.
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, parent || '_default');
        FOR first_day IN
            EXECUTE format($q$SELECT DISTINCT date_trunc('month', at AT TIME ZONE 'UTC') FROM %I$q$, parent || '_default')
        LOOP
            child := parent || to_char(first_day, '_YYYY_MM');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child, parent);
            EXECUTE format('WITH gone AS (DELETE FROM %I WHERE at >= %L AND at < %L RETURNING *) '
                'INSERT INTO %I SELECT * FROM gone', parent || '_default', first_day AT TIME ZONE 'UTC',
                (first_day + INTERVAL '1 month') AT TIME ZONE 'UTC', child);
            GET DIAGNOSTICS here = ROW_COUNT;
            moved := moved + here;
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                first_day AT TIME ZONE 'UTC', (first_day + INTERVAL '1 month') AT TIME ZONE 'UTC');
            IF parent = 'journal' THEN
                EXECUTE format('CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON %I '
                    'FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only()', child);
            END IF;
        END LOOP;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I DEFAULT', parent, parent || '_default');
    END LOOP;
    RETURN moved;
END
$$
