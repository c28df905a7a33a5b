"""Turns: in which order accounts go, kept at submit. Priority by plan: higher goes first, everywhere.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    """
    CREATE TABLE queue_turns (
        queue TEXT NOT NULL,
        priority SMALLINT NOT NULL,
        turn BIGINT NOT NULL,
        CONSTRAINT queue_turns_pkey PRIMARY KEY (queue, priority)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE UNLOGGED TABLE turns (
        account_id TEXT NOT NULL,
        queue TEXT NOT NULL,
        priority SMALLINT NOT NULL,
        turn BIGINT NOT NULL,
        taken INTEGER NOT NULL,
        CONSTRAINT turns_pkey PRIMARY KEY (account_id, queue, priority)
    ) WITH (fillfactor = 50)
    """,
    "COMMENT ON COLUMN queue_turns.turn IS 'the highest that was dispatched'",
    "COMMENT ON COLUMN turns.turn IS 'the last that was given'",
    "COMMENT ON COLUMN turns.taken IS 'how many were given with it'",
    "COMMENT ON COLUMN jobs.priority IS 'higher goes first'",
    "COMMENT ON COLUMN due.priority IS 'higher goes first'",
    "COMMENT ON COLUMN due.waits_for IS "
    "'its time, or why the last claim dropped it; cleared by the time or by what makes room'",
    "ALTER TABLE due ADD COLUMN since TIMESTAMP WITH TIME ZONE",
    "UPDATE due AS d SET since = GREATEST(j.run_at, j.created_at), priority = j.priority, "
    "waits_for = CASE WHEN d.not_before > fermata_now() THEN CASE WHEN j.attempt = 0 THEN 'run_at' ELSE 'backoff' END "
    "ELSE d.waits_for END FROM jobs AS j WHERE j.account_id = d.account_id AND j.job_id = d.job_id",
    "ALTER TABLE due ALTER COLUMN since SET NOT NULL",
    "COMMENT ON COLUMN due.since IS 'when it could first run: from here on its priority rises'",
    "DROP INDEX due_unhinted",
    "CREATE INDEX due_unhinted ON due (queue, priority DESC, turn, job_id) "
    "WHERE hinted_at IS NULL AND waits_for IS NULL",
    "DROP INDEX due_waiting",
    "CREATE INDEX due_waiting ON due (waits_for, account_id, priority DESC, turn, job_id) "
    "WHERE waits_for IN ('paused', 'account_limit')",
    "CREATE INDEX due_later ON due (not_before) WHERE waits_for IN ('run_at', 'backoff')",
)


def upgrade() -> None:
    """Make the tables, and give what is queued its age."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Refuse: a release that knows no turns would leave them behind."""
    raise RuntimeError("turns can't be undone by a migration; go back by restoring, or go on")
