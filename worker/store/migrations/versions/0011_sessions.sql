CREATE TABLE sessions (
    hash bytea NOT NULL,
    key_id uuid NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (hash),
    CONSTRAINT sessions_hash CHECK (length(hash) = 32)
);

COMMENT ON COLUMN sessions.hash IS 'sha256 of the cookie''s secret';

CREATE INDEX sessions_expires_at ON sessions (expires_at);
