-- Time comes from one place. Tests replace this body by one with an offset; production start refuses any other.
CREATE FUNCTION fermata_now() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT clock_timestamp() $$;

CREATE SEQUENCE journal_seq AS BIGINT;

CREATE SEQUENCE event_seq AS BIGINT;

CREATE SEQUENCE lot_ids AS BIGINT;

CREATE TABLE accounts (
    account_id TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    plan TEXT,
    active_until TIMESTAMP WITH TIME ZONE,
    cycle_ends_at TIMESTAMP WITH TIME ZONE,
    running_max INTEGER,
    paused BOOLEAN DEFAULT false NOT NULL,
    actor TEXT NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (account_id),
    CONSTRAINT accounts_account_id CHECK (account_id ~ '^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$'),
    CONSTRAINT accounts_running_max CHECK (running_max > 0),
    CONSTRAINT accounts_subscription CHECK (plan IS NOT NULL OR (active_until IS NULL AND cycle_ends_at IS NULL)),
    CONSTRAINT accounts_finite_times CHECK (isfinite(active_until) AND isfinite(cycle_ends_at))
) WITH (fillfactor = 70);

CREATE TABLE attempts (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    token UUID NOT NULL,
    worker_id TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ending TEXT NOT NULL,
    message TEXT,
    usage JSONB,
    engine_state JSONB,
    CONSTRAINT attempts_pkey PRIMARY KEY (account_id, job_id, attempt),
    CONSTRAINT attempts_attempt CHECK (attempt > 0)
);

CREATE TABLE controls (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    paused BOOLEAN DEFAULT false NOT NULL,
    running_max INTEGER,
    reason TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    CONSTRAINT controls_pkey PRIMARY KEY (scope, name),
    CONSTRAINT controls_scope CHECK (scope IN ('queue', 'kind')),
    CONSTRAINT controls_running_max CHECK (running_max > 0)
);

CREATE TABLE due (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    turn BIGINT DEFAULT 0 NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_by TIMESTAMP WITH TIME ZONE NOT NULL,
    hinted_at TIMESTAMP WITH TIME ZONE,
    hint_again_at TIMESTAMP WITH TIME ZONE,
    hints INTEGER DEFAULT 0 NOT NULL,
    waits_for TEXT,
    CONSTRAINT due_pkey PRIMARY KEY (account_id, job_id),
    CONSTRAINT due_hint_mark CHECK ((hinted_at IS NULL) = (hint_again_at IS NULL)),
    CONSTRAINT due_finite_times CHECK (isfinite(not_before) AND isfinite(ends_by))
) WITH (fillfactor = 70);

CREATE INDEX due_ends_by ON due (ends_by);

CREATE INDEX due_hinted ON due (queue, hint_again_at) WHERE hinted_at IS NOT NULL;

CREATE INDEX due_unhinted ON due (queue, priority, turn, job_id) WHERE hinted_at IS NULL AND waits_for IS NULL;

CREATE INDEX due_waiting ON due (account_id) WHERE waits_for IS NOT NULL;

CREATE TABLE duty_runs (
    duty TEXT NOT NULL,
    ran_at TIMESTAMP WITH TIME ZONE NOT NULL,
    body JSONB,
    CONSTRAINT duty_runs_pkey PRIMARY KEY (duty)
) WITH (fillfactor = 50);

CREATE TABLE events (
    account_id TEXT NOT NULL,
    seq BIGINT DEFAULT nextval('event_seq') NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    what TEXT NOT NULL,
    job_id UUID,
    state TEXT,
    kind TEXT,
    queue TEXT,
    reason TEXT,
    charged BIGINT,
    body JSONB,
    CONSTRAINT events_pkey PRIMARY KEY (account_id, seq, at)
) PARTITION BY RANGE (at);

CREATE INDEX events_ended ON events (at, state, kind) WHERE what = 'ended';

CREATE TABLE journal (
    account_id TEXT NOT NULL,
    seq BIGINT DEFAULT nextval('journal_seq') NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    lot_id BIGINT NOT NULL,
    move TEXT NOT NULL,
    amount BIGINT NOT NULL,
    job_id UUID,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    CONSTRAINT journal_pkey PRIMARY KEY (account_id, seq, at),
    CONSTRAINT journal_move CHECK (move IN ('grant', 'reserve', 'commit', 'refund', 'expire', 'revoke')),
    CONSTRAINT journal_amount CHECK (amount BETWEEN 0 AND 1000000000000 AND amount > 0)
) PARTITION BY RANGE (at);

CREATE TABLE live (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    token UUID NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_by TIMESTAMP WITH TIME ZONE NOT NULL,
    attempt INTEGER NOT NULL,
    cancel_asked_at TIMESTAMP WITH TIME ZONE,
    cancel_reason TEXT,
    progress FLOAT DEFAULT 0 NOT NULL,
    stage TEXT,
    progress_at TIMESTAMP WITH TIME ZONE,
    engine_state JSONB,
    CONSTRAINT live_pkey PRIMARY KEY (account_id, job_id),
    CONSTRAINT live_progress CHECK (progress BETWEEN 0 AND 1),
    CONSTRAINT live_finite_times CHECK (isfinite(lease_until) AND isfinite(ends_by))
) WITH (fillfactor = 50);

CREATE TABLE parked (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    queue TEXT NOT NULL,
    kind TEXT NOT NULL,
    parked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    needed BIGINT NOT NULL,
    ends_by TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT parked_pkey PRIMARY KEY (account_id, job_id),
    CONSTRAINT parked_needed CHECK (needed BETWEEN 0 AND 1000000000000),
    CONSTRAINT parked_finite_times CHECK (isfinite(ends_by))
);

CREATE INDEX parked_ends_by ON parked (ends_by);

CREATE TABLE plan_books (
    book_id INTEGER GENERATED BY DEFAULT AS IDENTITY,
    document TEXT NOT NULL,
    digest TEXT NOT NULL,
    effective_at TIMESTAMP WITH TIME ZONE NOT NULL,
    author TEXT NOT NULL,
    note TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    withdrawn_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT plan_books_pkey PRIMARY KEY (book_id),
    CONSTRAINT plan_books_effective_at_key UNIQUE (effective_at)
);

CREATE TABLE price_books (
    book_id INTEGER GENERATED BY DEFAULT AS IDENTITY,
    document TEXT NOT NULL,
    digest TEXT NOT NULL,
    effective_at TIMESTAMP WITH TIME ZONE NOT NULL,
    author TEXT NOT NULL,
    note TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    withdrawn_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT price_books_pkey PRIMARY KEY (book_id),
    CONSTRAINT price_books_effective_at_key UNIQUE (effective_at)
);

CREATE TABLE reservations (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    amount BIGINT NOT NULL,
    state TEXT NOT NULL,
    charged BIGINT DEFAULT 0 NOT NULL,
    draw_lots BIGINT[] NOT NULL,
    draw_amounts BIGINT[] NOT NULL,
    reserved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    reason TEXT,
    CONSTRAINT reservations_pkey PRIMARY KEY (account_id, job_id),
    CONSTRAINT reservations_state CHECK (state IN ('held', 'committed', 'refunded')),
    CONSTRAINT reservations_amount CHECK (amount BETWEEN 0 AND 1000000000000),
    CONSTRAINT reservations_charged CHECK (charged BETWEEN 0 AND amount),
    CONSTRAINT reservations_only_commits_charge CHECK (state = 'committed' OR charged = 0),
    CONSTRAINT reservations_settled CHECK ((state = 'held') = (settled_at IS NULL)),
    CONSTRAINT reservations_draws CHECK (cardinality(draw_lots) = cardinality(draw_amounts))
) WITH (fillfactor = 45);

CREATE TABLE workers (
    worker_id TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    version TEXT NOT NULL,
    queues TEXT[] NOT NULL,
    slots INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    draining BOOLEAN DEFAULT false NOT NULL,
    stopped_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT workers_pkey PRIMARY KEY (worker_id),
    CONSTRAINT workers_slots CHECK (slots > 0)
) WITH (fillfactor = 50);

CREATE TABLE artifacts (
    account_id TEXT NOT NULL,
    artifact_id UUID NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    storage_key TEXT NOT NULL,
    sha256 BYTEA NOT NULL,
    frames BIGINT NOT NULL,
    sample_rate INTEGER NOT NULL,
    channels SMALLINT NOT NULL,
    bytes BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    job_id UUID,
    token UUID,
    actor TEXT NOT NULL,
    CONSTRAINT artifacts_pkey PRIMARY KEY (account_id, artifact_id),
    CONSTRAINT artifacts_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT artifacts_measured CHECK (frames > 0 AND sample_rate > 0 AND channels > 0 AND bytes > 0),
    CONSTRAINT artifacts_sha256 CHECK (length(sha256) = 32)
);

CREATE INDEX artifacts_artifact_id ON artifacts (artifact_id);

CREATE INDEX artifacts_job ON artifacts (account_id, job_id) WHERE job_id IS NOT NULL;

CREATE TABLE cycles (
    account_id TEXT NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    plan TEXT NOT NULL,
    granted_total BIGINT NOT NULL,
    skipped BOOLEAN DEFAULT false NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT cycles_pkey PRIMARY KEY (account_id, starts_at),
    CONSTRAINT cycles_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT cycles_order CHECK (starts_at < ends_at),
    CONSTRAINT cycles_granted_total CHECK (granted_total BETWEEN 0 AND 1000000000000)
);

CREATE TABLE debts (
    account_id TEXT NOT NULL,
    seq BIGINT DEFAULT nextval('journal_seq') NOT NULL,
    amount BIGINT NOT NULL,
    cause TEXT NOT NULL,
    lot_id BIGINT,
    reference TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    CONSTRAINT debts_pkey PRIMARY KEY (account_id, seq),
    CONSTRAINT debts_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT debts_amount CHECK (amount <> 0 AND amount BETWEEN -1000000000000 AND 1000000000000)
);

CREATE TABLE jobs (
    account_id TEXT NOT NULL,
    job_id UUID NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_hash BYTEA NOT NULL,
    kind TEXT NOT NULL,
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    request JSONB NOT NULL,
    inputs JSONB NOT NULL,
    metadata JSONB NOT NULL,
    quoted BIGINT NOT NULL,
    book_id INTEGER NOT NULL,
    plan TEXT,
    priority SMALLINT DEFAULT 0 NOT NULL,
    on_insufficient TEXT NOT NULL,
    max_credits BIGINT,
    run_at TIMESTAMP WITH TIME ZONE,
    ends_by TIMESTAMP WITH TIME ZONE NOT NULL,
    retry_of UUID,
    actor TEXT NOT NULL,
    traceparent TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    failures_max SMALLINT NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    failures SMALLINT DEFAULT 0 NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    reason TEXT,
    message TEXT,
    charged BIGINT,
    partial BOOLEAN DEFAULT false NOT NULL,
    outputs JSONB,
    CONSTRAINT jobs_pkey PRIMARY KEY (account_id, job_id),
    CONSTRAINT jobs_account_id_idempotency_key_key UNIQUE (account_id, idempotency_key),
    CONSTRAINT jobs_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT jobs_idempotency_key CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    -- queued -> running | waiting | refused | cancelled | failed
    -- running -> succeeded | failed | cancelled | queued;  waiting -> queued | refused | cancelled
    CONSTRAINT jobs_state CHECK (state IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'refused')),
    CONSTRAINT jobs_ended_at CHECK ((state IN ('succeeded', 'failed', 'cancelled', 'refused')) = (ended_at IS NOT NULL)),
    CONSTRAINT jobs_charged_when_ended CHECK ((ended_at IS NULL) = (charged IS NULL)),
    CONSTRAINT jobs_charged CHECK (charged BETWEEN 0 AND quoted),
    CONSTRAINT jobs_outputs_when_succeeded CHECK ((state = 'succeeded') = (outputs IS NOT NULL)),
    CONSTRAINT jobs_partial CHECK (NOT partial OR state = 'succeeded'),
    CONSTRAINT jobs_running_has_attempt CHECK (state <> 'running' OR attempt > 0),
    CONSTRAINT jobs_quoted CHECK (quoted BETWEEN 0 AND 1000000000000),
    CONSTRAINT jobs_failures CHECK (failures BETWEEN 0 AND failures_max),
    CONSTRAINT jobs_on_insufficient CHECK (on_insufficient IN ('refuse', 'wait')),
    CONSTRAINT jobs_finite_times CHECK (isfinite(run_at) AND isfinite(ends_by))
) WITH (fillfactor = 45);

CREATE INDEX jobs_job_id ON jobs (job_id);

CREATE INDEX jobs_retry_of ON jobs (account_id, retry_of) WHERE retry_of IS NOT NULL;

CREATE TABLE lots (
    account_id TEXT NOT NULL,
    lot_id BIGINT DEFAULT nextval('lot_ids') NOT NULL,
    source TEXT NOT NULL,
    granted BIGINT NOT NULL,
    available BIGINT NOT NULL,
    held BIGINT DEFAULT 0 NOT NULL,
    spent BIGINT DEFAULT 0 NOT NULL,
    expired BIGINT DEFAULT 0 NOT NULL,
    revoked BIGINT DEFAULT 0 NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    cycle_starts_at TIMESTAMP WITH TIME ZONE,
    reference TEXT,
    job_id UUID,
    reason TEXT NOT NULL,
    note TEXT,
    charged_back BOOLEAN DEFAULT false NOT NULL,
    closed BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT lots_pkey PRIMARY KEY (account_id, lot_id),
    CONSTRAINT lots_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT lots_source CHECK (source IN ('subscription', 'topup', 'grant')),
    CONSTRAINT lots_granted CHECK (granted BETWEEN 0 AND 1000000000000 AND granted > 0),
    CONSTRAINT lots_no_bucket_below_zero CHECK (available >= 0 AND held >= 0 AND spent >= 0 AND expired >= 0 AND revoked >= 0),
    CONSTRAINT lots_buckets_sum CHECK (granted = available + held + spent + expired + revoked),
    CONSTRAINT lots_closed_is_empty CHECK (NOT closed OR (available = 0 AND held = 0)),
    CONSTRAINT lots_subscription_has_cycle CHECK ((source = 'subscription') = (cycle_starts_at IS NOT NULL)),
    CONSTRAINT lots_finite_times CHECK (isfinite(expires_at))
) WITH (fillfactor = 45);

CREATE INDEX lots_expiring ON lots (expires_at) WHERE NOT closed AND expires_at IS NOT NULL;

CREATE UNIQUE INDEX lots_make_good ON lots (account_id, job_id) WHERE reason = 'make_good';

CREATE INDEX lots_open ON lots (account_id) WHERE NOT closed;

CREATE UNIQUE INDEX lots_reference ON lots (account_id, source, reference);

CREATE TABLE purchases (
    account_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    credits BIGINT NOT NULL,
    pack TEXT,
    price_shown TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    charged_back_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT purchases_pkey PRIMARY KEY (account_id, reference),
    CONSTRAINT purchases_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT purchases_credits CHECK (credits BETWEEN 0 AND 1000000000000 AND credits > 0)
);

CREATE TABLE subscription_changes (
    account_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    what TEXT NOT NULL,
    body JSONB NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    CONSTRAINT subscription_changes_pkey PRIMARY KEY (account_id, reference),
    CONSTRAINT subscription_changes_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id)
);

CREATE TABLE subscriptions (
    account_id TEXT NOT NULL,
    anchor TIMESTAMP WITH TIME ZONE NOT NULL,
    next_plan TEXT,
    renewal TEXT DEFAULT 'automatic' NOT NULL,
    grace_seconds INTEGER DEFAULT 0 NOT NULL,
    cancelled_at TIMESTAMP WITH TIME ZONE,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT subscriptions_pkey PRIMARY KEY (account_id),
    CONSTRAINT subscriptions_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (account_id),
    CONSTRAINT subscriptions_renewal CHECK (renewal IN ('automatic', 'external'))
);

COMMENT ON COLUMN accounts.active_until IS 'null: open-ended; lapsed and frozen derive from it';

COMMENT ON COLUMN accounts.cycle_ends_at IS 'of the cycle granted last';

COMMENT ON COLUMN accounts.running_max IS 'jobs at a time; null: no limit';

COMMENT ON COLUMN attempts.token IS 'tells whether a settle with a lost answer was ours';

COMMENT ON COLUMN due.priority IS 'smaller goes first';

COMMENT ON COLUMN due.hinted_at IS 'the hint mark: since when a hint may be under way';

COMMENT ON COLUMN due.waits_for IS 'why the last claim dropped it; cleared by what makes room';

COMMENT ON COLUMN live.token IS 'made by the worker before the claim: who may settle';

COMMENT ON COLUMN plan_books.document IS 'the TOML as it was applied';

COMMENT ON COLUMN plan_books.digest IS 'sha256 of the document, hex';

COMMENT ON COLUMN price_books.document IS 'the TOML as it was applied';

COMMENT ON COLUMN price_books.digest IS 'sha256 of the document, hex';

COMMENT ON COLUMN reservations.draw_lots IS 'in draw order; the view `draws` shows them as rows';

COMMENT ON COLUMN artifacts.job_id IS 'of an output';

COMMENT ON COLUMN debts.amount IS '+ owed, - paid';

COMMENT ON COLUMN jobs.attempt IS 'counts only; the token fences';

COMMENT ON COLUMN lots.cycle_starts_at IS 'of a subscription lot';

COMMENT ON COLUMN lots.reference IS 'of a purchase or a grant';

COMMENT ON COLUMN lots.job_id IS 'of a make-good or a compensation';

COMMENT ON COLUMN lots.closed IS 'set once, by the expire duty only, when nothing is available or held any more';

COMMENT ON COLUMN purchases.reference IS 'also of its lot';

COMMENT ON COLUMN subscription_changes.reference IS 'the caller''s: the same step twice is one step';

-- A reservation's draws as rows: which lots pay, in draw order.
CREATE VIEW draws AS
SELECT r.account_id, r.job_id, d.position, d.lot_id, d.amount
FROM reservations AS r
CROSS JOIN LATERAL unnest(r.draw_lots, r.draw_amounts) WITH ORDINALITY AS d (lot_id, amount, position);

-- The journal and the debts are append-only for everybody, the owner included.
CREATE FUNCTION fermata_append_only() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER journal_append_only BEFORE UPDATE OR DELETE ON journal
FOR EACH ROW EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON journal
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER debts_append_only BEFORE UPDATE OR DELETE ON debts
FOR EACH ROW EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER debts_no_truncate BEFORE TRUNCATE ON debts
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

-- Makes the month partitions of journal and events from this month to `months_ahead` later; returns how many it
-- made. Runs as the owner, so the app's role can ask for partitions without owning the tables.
CREATE FUNCTION fermata_make_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    made integer := 0;
    parent text;
    first_day timestamp;
    starts_at timestamptz;
    ends_at timestamptz;
    taken boolean;
    child text;
BEGIN
    IF months_ahead NOT BETWEEN 0 AND 36 THEN
        RAISE EXCEPTION 'months_ahead must be 0 to 36, got %', months_ahead;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('fermata_make_partitions'));
    FOREACH parent IN ARRAY ARRAY['journal', 'events'] LOOP
        FOR month IN 0..months_ahead LOOP
            first_day := date_trunc('month', fermata_now() AT TIME ZONE 'UTC') + make_interval(months => month);
            starts_at := first_day AT TIME ZONE 'UTC';
            ends_at := (first_day + interval '1 month') AT TIME ZONE 'UTC';
            child := parent || to_char(first_day, '_YYYY_MM');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            -- What came while nobody made partitions stays where it is: it can't be moved, and stops no other month.
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE at >= %L AND at < %L)', parent || '_default',
                starts_at, ends_at) INTO taken;
            CONTINUE WHEN taken;
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', child, parent,
                starts_at, ends_at);
            IF parent = 'journal' THEN
                EXECUTE format('CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON %I '
                    'FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only()', child);
            END IF;
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

CREATE TABLE journal_default PARTITION OF journal DEFAULT;

CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON journal_default
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

CREATE TABLE events_default PARTITION OF events DEFAULT;

SELECT fermata_make_partitions(3);
