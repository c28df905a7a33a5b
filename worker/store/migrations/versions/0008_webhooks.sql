CREATE TABLE webhooks (
    webhook_id UUID NOT NULL,
    url TEXT NOT NULL,
    account_id TEXT,
    events TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhooks_pkey PRIMARY KEY (webhook_id)
);

COMMENT ON COLUMN webhooks.account_id IS 'only of this account; null: of all';

COMMENT ON COLUMN webhooks.events IS 'only these; empty: all';

COMMENT ON COLUMN webhooks.closed_at IS 'when its owner answered 410: it wants nothing any more';

CREATE TABLE webhook_secrets (
    webhook_id UUID NOT NULL,
    secret TEXT NOT NULL,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (webhook_id)
);

CREATE TABLE deliveries (
    account_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    webhook_id UUID NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    what TEXT NOT NULL,
    job_id UUID,
    state TEXT NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE NOT NULL,
    token UUID,
    ended_at TIMESTAMP WITH TIME ZONE,
    last_status INTEGER,
    last_error TEXT,
    CONSTRAINT deliveries_pkey PRIMARY KEY (account_id, seq, webhook_id),
    CONSTRAINT deliveries_state CHECK (state IN ('pending', 'delivered', 'dead')),
    CONSTRAINT deliveries_ended CHECK ((state = 'pending') = (ended_at IS NULL)),
    CONSTRAINT deliveries_attempts CHECK (attempts >= 0)
)
WITH (fillfactor = 70);

CREATE INDEX deliveries_due ON deliveries (webhook_id, next_at) WHERE state = 'pending';

CREATE INDEX deliveries_order ON deliveries (webhook_id, account_id, job_id, seq) WHERE state = 'pending';

CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'pending';

COMMENT ON COLUMN deliveries.at IS 'the event''s';

COMMENT ON COLUMN deliveries.next_at IS 'when it is tried again, or when whoever sends it now is given up';

COMMENT ON COLUMN deliveries.token IS 'who sends it: only that one may say how it went';

CREATE FUNCTION fermata_hand_out_events() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO deliveries (account_id, seq, webhook_id, at, what, job_id, state, next_at)
    SELECT e.account_id, e.seq, w.webhook_id, e.at, e.what, e.job_id, 'pending', e.at
    FROM written AS e
    JOIN webhooks AS w
      ON (w.account_id IS NULL OR w.account_id = e.account_id)
     AND (cardinality(w.events) = 0 OR e.what = ANY (w.events))
     AND w.closed_at IS NULL;
    RETURN NULL;
END
$$;

CREATE TRIGGER events_hand_out AFTER INSERT ON events
REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION fermata_hand_out_events();

CREATE TRIGGER webhooks_audit AFTER INSERT OR DELETE ON webhooks
FOR EACH ROW EXECUTE FUNCTION fermata_audit('webhook_id');
