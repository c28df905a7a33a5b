CREATE TABLE api_keys (
    key_id UUID NOT NULL,
    prefix TEXT NOT NULL,
    hash BYTEA NOT NULL,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    account_prefix TEXT,
    account_id TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    changed_by TEXT,
    last_used_at TIMESTAMP WITH TIME ZONE,
    replaces UUID,
    CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT api_keys_hash_key UNIQUE (hash),
    CONSTRAINT api_keys_hash CHECK (length(hash) = 32),
    CONSTRAINT api_keys_role CHECK (role IN ('pipeline', 'billing', 'ops', 'product', 'admin', 'viewer', 'customer')),
    CONSTRAINT api_keys_customer_has_account CHECK ((role = 'customer') = (account_id IS NOT NULL)),
    CONSTRAINT api_keys_customer_expires CHECK (role <> 'customer' OR expires_at IS NOT NULL),
    CONSTRAINT api_keys_bound_once CHECK (account_prefix IS NULL OR account_id IS NULL),
    CONSTRAINT api_keys_finite_times CHECK (isfinite(expires_at))
)
WITH (fillfactor = 70);

CREATE INDEX api_keys_prefix ON api_keys (prefix);

COMMENT ON COLUMN api_keys.prefix IS 'the key''s visible beginning: how people name it';

COMMENT ON COLUMN api_keys.hash IS 'sha256 of the whole key';

COMMENT ON COLUMN api_keys.account_prefix IS 'only these accounts, by whole segments; null: all';

COMMENT ON COLUMN api_keys.account_id IS 'of a customer''s token: its one account';

COMMENT ON COLUMN api_keys.changed_by IS 'who revoked or rotated it';

COMMENT ON COLUMN api_keys.replaces IS 'the key that this one was rotated from';

CREATE TABLE audit_log (
    entry_id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    before JSONB,
    after JSONB,
    CONSTRAINT audit_log_pkey PRIMARY KEY (entry_id)
);

CREATE INDEX audit_log_subject ON audit_log (subject, entry_id);

COMMENT ON COLUMN audit_log.what IS 'the table and what was done: controls.update';

COMMENT ON COLUMN audit_log.subject IS 'which row: an account, a queue, a key';

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION fermata_append_only();

CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION fermata_append_only();

-- Who: as the transaction says by `fermata.actor`, else as the row says, else the database's role.
CREATE FUNCTION fermata_audit() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    hidden text[] := ARRAY['hash', 'document'];
    before jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - hidden END;
    after jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - hidden END;
    who text := COALESCE(
        NULLIF(current_setting('fermata.actor', true), ''),
        CASE WHEN TG_OP = 'UPDATE' THEN COALESCE(after ->> 'changed_by', after ->> 'withdrawn_by') END,
        after ->> 'actor', after ->> 'author', session_user);
BEGIN
    INSERT INTO audit_log (at, actor, what, subject, before, after)
    VALUES (fermata_now(), who, TG_TABLE_NAME || '.' || lower(TG_OP),
            COALESCE(after, before) ->> TG_ARGV[0], before, after);
    RETURN NULL;
END
$$;

CREATE TRIGGER api_keys_insert_audit AFTER INSERT ON api_keys
FOR EACH ROW WHEN (NEW.role <> 'customer') EXECUTE FUNCTION fermata_audit('prefix');

CREATE TRIGGER api_keys_update_audit AFTER UPDATE OF expires_at, revoked_at ON api_keys
FOR EACH ROW EXECUTE FUNCTION fermata_audit('prefix');

CREATE TRIGGER accounts_insert_audit AFTER INSERT ON accounts
FOR EACH ROW EXECUTE FUNCTION fermata_audit('account_id');

CREATE TRIGGER accounts_update_audit AFTER UPDATE OF paused ON accounts
FOR EACH ROW WHEN (OLD.paused <> NEW.paused) EXECUTE FUNCTION fermata_audit('account_id');

CREATE TRIGGER subscription_changes_audit AFTER INSERT ON subscription_changes
FOR EACH ROW EXECUTE FUNCTION fermata_audit('account_id');

CREATE TRIGGER purchases_audit AFTER INSERT OR UPDATE ON purchases
FOR EACH ROW EXECUTE FUNCTION fermata_audit('account_id');

-- Make-goods are the books' own doing and have their job.
CREATE TRIGGER lots_audit AFTER INSERT ON lots
FOR EACH ROW WHEN (NEW.source = 'grant' AND NEW.reason <> 'make_good') EXECUTE FUNCTION fermata_audit('account_id');

CREATE TRIGGER price_books_audit AFTER INSERT OR UPDATE ON price_books
FOR EACH ROW EXECUTE FUNCTION fermata_audit('book_id');

CREATE TRIGGER plan_books_audit AFTER INSERT OR UPDATE ON plan_books
FOR EACH ROW EXECUTE FUNCTION fermata_audit('book_id');

CREATE TRIGGER controls_audit AFTER INSERT OR UPDATE OR DELETE ON controls
FOR EACH ROW EXECUTE FUNCTION fermata_audit('name');
