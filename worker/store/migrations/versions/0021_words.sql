-- The log stays append-only. Of an account that is erased the owner's function may take words out of what was logged,
-- and nothing else: who did what to which row, and when, stands for its year.
CREATE OR REPLACE FUNCTION fermata_kept_a_year() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at <= fermata_now() - INTERVAL '365 days' THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE'
        AND (NEW.entry_id, NEW.at, NEW.actor, NEW.what, NEW.subject)
            = (OLD.entry_id, OLD.at, OLD.actor, OLD.what, OLD.subject)
        AND COALESCE(NEW.before, '{}') <@ COALESCE(OLD.before, '{}')
        AND COALESCE(NEW.after, '{}') <@ COALESCE(OLD.after, '{}')
        AND pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
        AND EXISTS (SELECT FROM public.erasures AS e
                    WHERE e.account_id IN (OLD.before ->> 'account_id', OLD.after ->> 'account_id', OLD.subject)) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% is append-only, and kept for a year', TG_TABLE_NAME
    USING ERRCODE = 'insufficient_privilege';
END
$$;

-- Notes that an account is erased, if nothing of it is unfinished. What it may no longer be told goes at once, and so
-- does what people wrote about it, its own endpoints, and what was said of its voices, which were taken away before.
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
    INSERT INTO erasures (account_id, at, actor, reason) VALUES (erased, fermata_now(), who, why)
    ON CONFLICT (account_id) DO UPDATE SET at = excluded.at, actor = excluded.actor, reason = excluded.reason;
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
END
$$;

-- Takes what people wrote out of what the next `most` entries of the log after that one say of an erased account.
-- Returns the last entry it looked at; null at the end. Why it was erased stays.
CREATE FUNCTION fermata_erase_log(erased text, after_entry bigint, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    words text[] := ARRAY['note', 'url', 'licence', 'consent', 'statistics', 'filter'];
    seen bigint[];
BEGIN
    IF NOT EXISTS (SELECT FROM erasures WHERE account_id = erased) OR most NOT BETWEEN 1 AND 100000 THEN
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
      AND (l.what LIKE 'jobs.%') = ('reason' = ANY (said.words))
      AND (erased IN (l.before ->> 'account_id', l.after ->> 'account_id') OR (l.subject = erased AND l.what LIKE 'jobs.%'))
      AND (l.before ?| said.words OR l.after ?| said.words);
    RETURN seen[cardinality(seen)];
END
$$
