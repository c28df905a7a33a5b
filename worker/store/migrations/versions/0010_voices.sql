CREATE TABLE voices (
    name TEXT NOT NULL,
    account_id TEXT NOT NULL,
    artifact_id UUID NOT NULL,
    licence TEXT NOT NULL,
    consent TEXT NOT NULL,
    statistics JSONB NOT NULL,
    plans TEXT[],
    accounts TEXT[],
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor TEXT NOT NULL,
    removed_at TIMESTAMP WITH TIME ZONE,
    changed_by TEXT,
    CONSTRAINT voices_pkey PRIMARY KEY (name),
    CONSTRAINT voices_account_id_fkey FOREIGN KEY(account_id, artifact_id) REFERENCES artifacts (account_id, artifact_id),
    CONSTRAINT voices_rights CHECK (licence <> '' AND consent <> '')
);

COMMENT ON COLUMN voices.account_id IS 'whose the clip is';

COMMENT ON COLUMN voices.artifact_id IS 'a clip of the voice alone';

COMMENT ON COLUMN voices.licence IS 'by what right it is used';

COMMENT ON COLUMN voices.consent IS 'who agreed to it, and where that is kept';

COMMENT ON COLUMN voices.plans IS 'only for these plans; null beside null accounts: for all';

COMMENT ON COLUMN voices.accounts IS 'only for these accounts';

COMMENT ON COLUMN voices.changed_by IS 'who removed it';

CREATE TRIGGER voices_audit AFTER INSERT OR UPDATE ON voices
FOR EACH ROW EXECUTE FUNCTION fermata_audit('name');
