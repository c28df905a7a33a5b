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

-- Drops the months of events that ended so many days ago and of which nothing is left. Waits for their lock for a
-- blink only, as above. Returns how many.
CREATE OR REPLACE FUNCTION fermata_drop_empty_months(kept_days integer) RETURNS integer
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
    -- One at a time; a second one finds nothing to do, not a table that is gone.
    IF NOT pg_try_advisory_xact_lock(hashtext('fermata_drop_empty_months')) THEN
        RETURN 0;
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
$$
