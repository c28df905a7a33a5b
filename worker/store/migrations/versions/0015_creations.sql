CREATE TABLE creations (
    key_id UUID NOT NULL,
    what TEXT NOT NULL,
    reference TEXT NOT NULL,
    body_hash BYTEA NOT NULL,
    made TEXT NOT NULL,
    salt BYTEA NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT creations_pkey PRIMARY KEY (key_id, what, reference),
    CONSTRAINT creations_hashes CHECK (length(body_hash) = 32 AND length(salt) = 32)
);

COMMENT ON COLUMN creations.key_id IS 'the key that asked';

COMMENT ON COLUMN creations.reference IS 'its idempotency key';

COMMENT ON COLUMN creations.made IS 'what came of it: an id';

COMMENT ON COLUMN creations.salt IS 'opens nothing without the secret of the key that asked';

CREATE INDEX creations_at ON creations (at);

ALTER TABLE api_keys ADD COLUMN minted_by UUID;

COMMENT ON COLUMN api_keys.minted_by IS 'of a customer''s token: the key that minted it, whose end ends it';
