ALTER TABLE price_books
    ADD COLUMN withdrawn_by TEXT,
    ADD COLUMN withdrawn_note TEXT,
    ADD COLUMN reverts_to INTEGER,
    ADD COLUMN forced TEXT,
    DROP CONSTRAINT price_books_effective_at_key,
    ADD CONSTRAINT price_books_withdrawn CHECK (withdrawn_by IS NULL OR withdrawn_at IS NOT NULL);

CREATE UNIQUE INDEX price_books_standing ON price_books (effective_at) WHERE withdrawn_at IS NULL;

COMMENT ON COLUMN price_books.reverts_to IS 'the book whose document this one repeats';

COMMENT ON COLUMN price_books.forced IS 'why it was applied without a rehearsal';

ALTER TABLE plan_books
    ADD COLUMN withdrawn_by TEXT,
    ADD COLUMN withdrawn_note TEXT,
    ADD COLUMN reverts_to INTEGER,
    ADD COLUMN forced TEXT,
    DROP CONSTRAINT plan_books_effective_at_key,
    ADD CONSTRAINT plan_books_withdrawn CHECK (withdrawn_by IS NULL OR withdrawn_at IS NOT NULL);

CREATE UNIQUE INDEX plan_books_standing ON plan_books (effective_at) WHERE withdrawn_at IS NULL;

COMMENT ON COLUMN plan_books.reverts_to IS 'the book whose document this one repeats';

COMMENT ON COLUMN plan_books.forced IS 'why it was applied without a rehearsal';
