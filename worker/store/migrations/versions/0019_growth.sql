CREATE TABLE journal_months (
    starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_to TEXT DEFAULT '' NOT NULL,
    entries BIGINT DEFAULT 0 NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    detached_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT journal_months_pkey PRIMARY KEY (starts_at),
    CONSTRAINT journal_months_closed_before_detached CHECK (detached_at IS NULL OR closed_at IS NOT NULL)
);

COMMENT ON COLUMN journal_months.closed_to IS 'the last account whose checkpoints of this month are written';

COMMENT ON COLUMN journal_months.entries IS 'that its checkpoints stand for';

COMMENT ON COLUMN journal_months.closed_at IS 'since when its checkpoints are whole';

CREATE TABLE checkpoints (
    account_id TEXT NOT NULL,
    lot_id BIGINT NOT NULL,
    month TIMESTAMP WITH TIME ZONE NOT NULL,
    entries BIGINT NOT NULL,
    granted BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    committed BIGINT NOT NULL,
    refunded BIGINT NOT NULL,
    expired BIGINT NOT NULL,
    revoked BIGINT NOT NULL,
    debt_paid BIGINT NOT NULL,
    reserved_last TIMESTAMP WITH TIME ZONE,
    expired_first TIMESTAMP WITH TIME ZONE,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (account_id, lot_id, month)
);

COMMENT ON COLUMN checkpoints.month IS 'when it began, by UTC';

COMMENT ON COLUMN checkpoints.debt_paid IS 'of what was revoked';

CREATE TABLE carried_draws (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    lot_id BIGINT NOT NULL,
    month TIMESTAMP WITH TIME ZONE NOT NULL,
    amount BIGINT NOT NULL,
    CONSTRAINT carried_draws_pkey PRIMARY KEY (account_id, job_id, lot_id, month)
);

CREATE INDEX carried_draws_month ON carried_draws (month);

COMMENT ON COLUMN carried_draws.amount IS 'reserved by then and not yet settled when the month ended';

CREATE TABLE erasures (
    account_id TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    CONSTRAINT erasures_pkey PRIMARY KEY (account_id)
);

COMMENT ON COLUMN erasures.at IS 'of the last one: what ended before it says nothing of anybody any more';

CREATE TRIGGER checkpoints_append_only BEFORE UPDATE OR DELETE ON checkpoints
FOR EACH ROW EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER checkpoints_no_truncate BEFORE TRUNCATE ON checkpoints
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER carried_draws_append_only BEFORE UPDATE OR DELETE ON carried_draws
FOR EACH ROW EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER carried_draws_no_truncate BEFORE TRUNCATE ON carried_draws
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER erasures_audit AFTER INSERT OR UPDATE ON erasures
FOR EACH ROW EXECUTE FUNCTION fermata_audit('account_id');

-- What people did may be forgotten after a year, and never be changed.
CREATE FUNCTION fermata_kept_a_year() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'UPDATE' OR OLD.at > fermata_now() - INTERVAL '365 days' THEN
        RAISE EXCEPTION '% is append-only, and kept for a year', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END
$$;

DROP TRIGGER audit_log_append_only ON audit_log;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION fermata_kept_a_year();

-- The functions below delete what nobody else may. Each refuses what the promises forbid, whoever calls it with
-- whatever, does a bounded part in one transaction, and may be called again after any death.

-- Closes the oldest month that is not closed, for the next accounts in order: what its entries sum up to, lot by
-- lot, and which draws it leaves unsettled. Returns the accounts that it looked at; 0 with nothing left to close.
CREATE FUNCTION fermata_close_month(accounts_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    open journal_months%ROWTYPE;
    first_day timestamp;
    chosen text[];
    counted bigint;
BEGIN
    IF accounts_most NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'accounts_most must be 1 to 100000, got %', accounts_most;
    END IF;
    -- One at a time; a second one finds nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('fermata_close_month')) THEN
        RETURN 0;
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
    INSERT INTO checkpoints
    SELECT j.account_id, j.lot_id, open.starts_at, count(*),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'grant'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'reserve'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'commit'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'refund'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'expire'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'revoke'), 0),
           COALESCE(sum(j.amount) FILTER (WHERE j.move = 'revoke' AND j.reason = 'debt'), 0),
           max(j.at) FILTER (WHERE j.move = 'reserve'),
           min(j.at) FILTER (WHERE j.move = 'expire')
    FROM journal AS j
    WHERE j.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
      AND j.at >= open.starts_at
      AND j.at < open.ends_at
    GROUP BY j.account_id, j.lot_id;
    INSERT INTO carried_draws
    SELECT moved.account_id, moved.job_id, moved.lot_id, open.starts_at, sum(moved.amount)
    FROM (
        SELECT j.account_id, j.job_id, j.lot_id, CASE WHEN j.move = 'reserve' THEN j.amount ELSE -j.amount END AS amount
        FROM journal AS j
        WHERE j.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
          AND j.at >= open.starts_at
          AND j.at < open.ends_at
          AND j.move IN ('reserve', 'commit', 'refund')
          AND j.job_id IS NOT NULL
        UNION ALL
        SELECT c.account_id, c.job_id, c.lot_id, c.amount
        FROM carried_draws AS c
        WHERE c.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
          AND c.month = (open.starts_at AT TIME ZONE 'UTC' - INTERVAL '1 month') AT TIME ZONE 'UTC'
    ) AS moved
    GROUP BY moved.account_id, moved.job_id, moved.lot_id
    HAVING sum(moved.amount) <> 0;
    SELECT COALESCE(sum(c.entries), 0) INTO counted
    FROM checkpoints AS c
    WHERE c.account_id BETWEEN chosen[1] AND chosen[cardinality(chosen)]
      AND c.month = open.starts_at;
    UPDATE journal_months
    SET closed_to = chosen[cardinality(chosen)], entries = journal_months.entries + counted
    WHERE starts_at = open.starts_at;
    RETURN cardinality(chosen);
END
$$;

-- Detaches the oldest month of the journal that ended so many days ago, is closed, and that no job which is still
-- kept was settled in. It stays as a table of its own, append-only as before, until somebody archives it. Waits for
-- the journal's lock for a blink only: raises lock_not_available, and is to be tried again. Returns its table's name.
CREATE FUNCTION fermata_detach_month(kept_days integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    old journal_months%ROWTYPE;
    child text;
BEGIN
    IF kept_days NOT BETWEEN 60 AND 36500 THEN
        RAISE EXCEPTION 'kept_days must be 60 to 36500, got %', kept_days;
    END IF;
    SELECT * INTO old FROM journal_months WHERE detached_at IS NULL ORDER BY starts_at LIMIT 1 FOR UPDATE;
    IF NOT FOUND OR old.closed_at IS NULL OR old.ends_at > fermata_now() - make_interval(days => kept_days) THEN
        RETURN NULL;
    END IF;
    child := 'journal_' || to_char(old.starts_at AT TIME ZONE 'UTC', 'YYYY_MM');
    IF EXISTS (SELECT FROM reservations AS r WHERE r.settled_at < old.ends_at)
        OR EXISTS (SELECT FROM journal_default AS d WHERE d.at < old.ends_at) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM pg_inherits AS i
               WHERE i.inhrelid = to_regclass(child) AND i.inhparent = 'journal'::regclass) THEN
        EXECUTE format('ALTER TABLE journal DETACH PARTITION %I', child);
        EXECUTE format('CREATE TRIGGER journal_append_only BEFORE UPDATE OR DELETE ON %I '
            'FOR EACH ROW EXECUTE FUNCTION fermata_append_only()', child);
    END IF;
    UPDATE journal_months SET detached_at = fermata_now() WHERE starts_at = old.starts_at;
    RETURN child;
END
$$;

-- Which artifacts the jobs that have not ended name, as text: whatever was written there, a read goes on.
CREATE VIEW inputs_in_use AS
SELECT j.account_id, i.artifact
FROM (
    SELECT account_id, job_id FROM due
    UNION ALL
    SELECT account_id, job_id FROM live
    UNION ALL
    SELECT account_id, job_id FROM parked
) AS standing
JOIN jobs AS j ON j.account_id = standing.account_id AND j.job_id = standing.job_id
CROSS JOIN LATERAL jsonb_each_text(j.inputs) AS i (name, artifact)
WHERE j.inputs <> '{}';

-- The ends of jobs that ended before then and may go. A job whose sound another one still waits for stays, and so does
-- one that a voice was made of.
CREATE FUNCTION fermata_old_ends(cutoff timestamptz)
RETURNS TABLE (account_id text, job_id uuid, seq bigint, at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT e.account_id, e.job_id, e.seq, e.at
    FROM public.events AS e
    LEFT JOIN public.jobs AS j ON j.account_id = e.account_id AND j.job_id = e.job_id
    WHERE e.what = 'ended'
      AND e.at < cutoff
      AND (j.job_id IS NULL OR j.ended_at < cutoff)
      AND NOT EXISTS (
          SELECT FROM public.artifacts AS a
          WHERE a.account_id = e.account_id
            AND a.job_id = e.job_id
            AND (
                EXISTS (SELECT FROM public.voices AS v WHERE v.artifact_id = a.artifact_id)
                OR (a.account_id, CAST(a.artifact_id AS text))
                    IN (SELECT u.account_id, u.artifact FROM public.inputs_in_use AS u)
            )
      )
$$;

-- Deletes up to `most` jobs that ended more than `kept_days` ago, with all that was kept of them but the journal.
-- Returns how many ends are forgotten.
CREATE FUNCTION fermata_prune_jobs(kept_days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    cutoff timestamptz;
    accounts text[];
    gone uuid[];
    ends bigint[];
    times timestamptz[];
BEGIN
    IF kept_days NOT BETWEEN 30 AND 36500 OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'jobs are kept for 30 to 36500 days and go by 1 to 10000, got % and %', kept_days, most;
    END IF;
    -- One at a time; a second one finds nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('fermata_prune_jobs')) THEN
        RETURN 0;
    END IF;
    cutoff := fermata_now() - make_interval(days => kept_days);
    SELECT array_agg(old.account_id), array_agg(old.job_id), array_agg(old.seq), array_agg(old.at)
    INTO accounts, gone, ends, times
    FROM (
        SELECT e.account_id, e.job_id, e.seq, e.at
        FROM fermata_old_ends(cutoff) AS e
        ORDER BY e.at
        LIMIT most
    ) AS old;
    IF gone IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM jobs AS j USING unnest(accounts, gone) AS g (account_id, job_id)
    WHERE j.account_id = g.account_id AND j.job_id = g.job_id AND j.ended_at < cutoff;
    DELETE FROM reservations AS r USING unnest(accounts, gone) AS g (account_id, job_id)
    WHERE r.account_id = g.account_id AND r.job_id = g.job_id AND r.settled_at < cutoff;
    DELETE FROM attempts AS a USING unnest(accounts, gone) AS g (account_id, job_id)
    WHERE a.account_id = g.account_id AND a.job_id = g.job_id AND a.ended_at < cutoff;
    DELETE FROM refusals AS r USING unnest(accounts, gone) AS g (account_id, job_id)
    WHERE r.account_id = g.account_id AND r.job_id = g.job_id;
    DELETE FROM artifacts AS a USING unnest(accounts, gone) AS g (account_id, job_id)
    WHERE a.account_id = g.account_id AND a.job_id = g.job_id AND a.created_at < cutoff;
    DELETE FROM events AS e USING unnest(accounts, ends, times) AS g (account_id, seq, at)
    WHERE e.account_id = g.account_id AND e.seq = g.seq AND e.at = g.at;
    RETURN cardinality(gone);
END
$$;

-- Looks at `most` inputs after that one, in order, and deletes those that are older than `kept_days` and that neither a
-- job nor a voice names. Returns where their files lie, and always the last one it looked at, with a null for its file.
CREATE FUNCTION fermata_prune_inputs(kept_days integer, after_account text, after_artifact uuid, most integer)
RETURNS TABLE (account_id text, artifact_id uuid, storage_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    cutoff timestamptz;
    accounts text[];
    seen uuid[];
BEGIN
    IF kept_days NOT BETWEEN 1 AND 36500 OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'inputs are kept for 1 to 36500 days and go by 1 to 10000, got % and %', kept_days, most;
    END IF;
    cutoff := fermata_now() - make_interval(days => kept_days);
    SELECT array_agg(page.account_id ORDER BY page.account_id, page.artifact_id),
           array_agg(page.artifact_id ORDER BY page.account_id, page.artifact_id)
    INTO accounts, seen
    FROM (
        SELECT a.account_id, a.artifact_id
        FROM artifacts AS a
        WHERE (a.account_id, a.artifact_id) > (after_account, after_artifact)
        ORDER BY a.account_id, a.artifact_id
        LIMIT most
    ) AS page;
    IF seen IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH old AS MATERIALIZED (
        SELECT a.account_id, a.artifact_id
        FROM unnest(accounts, seen) AS s (account_id, artifact_id)
        JOIN artifacts AS a ON a.account_id = s.account_id AND a.artifact_id = s.artifact_id
        WHERE a.job_id IS NULL
          AND a.created_at < cutoff
          AND NOT EXISTS (SELECT FROM voices AS v WHERE v.artifact_id = a.artifact_id)
    ), named AS MATERIALIZED (
        SELECT j.account_id, i.artifact
        FROM jobs AS j
        CROSS JOIN LATERAL jsonb_each_text(j.inputs) AS i (name, artifact)
        WHERE j.inputs <> '{}'
          AND j.account_id IN (SELECT old.account_id FROM old)
    )
    DELETE FROM artifacts AS a
    USING old
    WHERE a.account_id = old.account_id
      AND a.artifact_id = old.artifact_id
      AND NOT EXISTS (
          SELECT FROM named AS n
          WHERE n.account_id = old.account_id
            AND n.artifact = CAST(old.artifact_id AS text)
      )
    RETURNING a.account_id, a.artifact_id, a.storage_key;
    RETURN QUERY SELECT accounts[cardinality(accounts)], seen[cardinality(seen)], CAST(NULL AS text);
END
$$;

-- Deletes up to `most` rows of one sort that are older than `kept_days`, but none before its time; returns how many.
CREATE FUNCTION fermata_forget(what text, kept_days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    least_days integer := CASE what WHEN 'events' THEN 30 WHEN 'rehearsals' THEN 7 WHEN 'customer tokens' THEN 1
                                    WHEN 'deliveries' THEN 1 WHEN 'audit log' THEN 365 END;
    cutoff timestamptz := fermata_now() - make_interval(days => kept_days);
    gone integer;
BEGIN
    IF least_days IS NULL OR kept_days NOT BETWEEN least_days AND 36500 OR most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION '% are kept for % to 36500 days and go by 1 to 10000, got % and %', what, least_days,
            kept_days, most;
    END IF;
    IF what = 'events' THEN
        -- Ends go with their jobs.
        DELETE FROM events AS e USING (
            SELECT old.account_id, old.seq, old.at FROM events AS old
            WHERE old.at < cutoff AND old.what <> 'ended' LIMIT most
        ) AS g
        WHERE e.account_id = g.account_id AND e.seq = g.seq AND e.at = g.at;
    ELSIF what = 'rehearsals' THEN
        DELETE FROM rehearsals WHERE rehearsal_id IN (
            SELECT r.rehearsal_id FROM rehearsals AS r WHERE r.at < cutoff LIMIT most);
    ELSIF what = 'customer tokens' THEN
        DELETE FROM api_keys WHERE key_id IN (
            SELECT k.key_id FROM api_keys AS k WHERE k.role = 'customer' AND k.expires_at < cutoff LIMIT most);
    ELSIF what = 'deliveries' THEN
        DELETE FROM deliveries AS d USING (
            SELECT old.account_id, old.seq, old.webhook_id FROM deliveries AS old
            WHERE old.state <> 'pending' AND old.ended_at < cutoff LIMIT most
        ) AS g
        WHERE d.account_id = g.account_id AND d.seq = g.seq AND d.webhook_id = g.webhook_id;
    ELSE
        DELETE FROM audit_log WHERE entry_id IN (
            SELECT l.entry_id FROM audit_log AS l WHERE l.at < cutoff ORDER BY l.entry_id LIMIT most);
    END IF;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Drops the months of events that ended so many days ago and of which nothing is left. Waits for their lock for a
-- blink only, as above. Returns how many.
CREATE FUNCTION fermata_drop_empty_months(kept_days integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    child text;
    left_there boolean;
    gone integer := 0;
BEGIN
    IF kept_days NOT BETWEEN 30 AND 36500 THEN
        RAISE EXCEPTION 'events are kept for 30 to 36500 days, got %', kept_days;
    END IF;
    FOR child IN
        SELECT c.relname
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'events'::regclass
          AND c.relname ~ '^events_[0-9]{4}_[0-9]{2}$'
          AND to_date(right(c.relname, 7), 'YYYY_MM') + INTERVAL '1 month'
              < (fermata_now() - make_interval(days => kept_days)) AT TIME ZONE 'UTC'
        ORDER BY c.relname
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', child) INTO left_there;
        CONTINUE WHEN left_there;
        EXECUTE format('DROP TABLE %I', child);
        gone := gone + 1;
    END LOOP;
    RETURN gone;
END
$$;

-- Notes that an account is erased, if nothing of it is unfinished. What it may no longer be told goes at once.
CREATE FUNCTION fermata_erase_account(erased text, who text, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM FROM accounts AS a WHERE a.account_id = erased FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no account %', erased;
    END IF;
    IF EXISTS (SELECT FROM due WHERE account_id = erased) OR EXISTS (SELECT FROM live WHERE account_id = erased)
        OR EXISTS (SELECT FROM parked WHERE account_id = erased) THEN
        RAISE EXCEPTION '% has unfinished jobs', erased;
    END IF;
    INSERT INTO erasures (account_id, at, actor, reason) VALUES (erased, fermata_now(), who, why)
    ON CONFLICT (account_id) DO UPDATE SET at = excluded.at, actor = excluded.actor, reason = excluded.reason;
    DELETE FROM deliveries WHERE account_id = erased;
    DELETE FROM refusals WHERE account_id = erased;
    DELETE FROM api_keys WHERE account_id = erased AND role = 'customer';
    UPDATE events SET body = NULL WHERE account_id = erased AND body IS NOT NULL;
END
$$;

-- Takes what people wrote out of the next `most` jobs of an erased account after that one. Numbers, switches and the
-- fields in `kept` stay: a price depends on them. Returns the last job it looked at; null at the end.
CREATE FUNCTION fermata_erase_jobs(erased text, after_job uuid, kept text[], most integer) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    seen uuid[];
BEGIN
    IF NOT EXISTS (SELECT FROM erasures WHERE account_id = erased) OR most NOT BETWEEN 1 AND 10000 THEN
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
      AND j.ended_at < (SELECT e.at FROM erasures AS e WHERE e.account_id = erased);
    UPDATE attempts AS a
    SET message = NULL, engine_state = NULL
    WHERE a.account_id = erased
      AND a.job_id = ANY (seen);
    RETURN seen[cardinality(seen)];
END
$$;

-- Forgets these artifacts of an erased account: their files are gone. What a voice was made of keeps its row, nameless.
CREATE FUNCTION fermata_erase_artifacts(erased text, gone uuid[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    forgotten integer;
BEGIN
    IF NOT EXISTS (SELECT FROM erasures WHERE account_id = erased) THEN
        RAISE EXCEPTION '% is not erased', erased;
    END IF;
    DELETE FROM artifacts AS a
    WHERE a.account_id = erased
      AND a.artifact_id = ANY (gone)
      AND NOT EXISTS (SELECT FROM voices AS v WHERE v.artifact_id = a.artifact_id);
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    UPDATE artifacts AS a
    SET name = 'erased'
    WHERE a.account_id = erased
      AND a.artifact_id = ANY (gone);
    RETURN forgotten;
END
$$
