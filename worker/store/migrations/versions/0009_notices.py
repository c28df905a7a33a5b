"""Notices: when an account is told that few credits are left, and what was told. Limits that people set themselves.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"

_STATEMENTS = (
    """
    CREATE TABLE told (
        account_id TEXT NOT NULL,
        what TEXT NOT NULL,
        subject TEXT NOT NULL,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT told_pkey PRIMARY KEY (account_id, what, subject)
    )
    """,
    "ALTER TABLE accounts ADD COLUMN warn_below BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE accounts ADD COLUMN own_warn_below BIGINT",
    "ALTER TABLE accounts ADD COLUMN own_running_max INTEGER",
    "ALTER TABLE accounts ADD CONSTRAINT accounts_warn_below "
    "CHECK (warn_below BETWEEN 0 AND 1000000000000 AND own_warn_below BETWEEN 0 AND 1000000000000)",
    "ALTER TABLE accounts ADD CONSTRAINT accounts_own_running_max CHECK (own_running_max > 0)",
    # Who sets a limit by hand is told by the log, as who pauses an account is.
    """
    CREATE TRIGGER accounts_limits_audit AFTER UPDATE OF own_warn_below, own_running_max ON accounts
    FOR EACH ROW EXECUTE FUNCTION fermata_audit('account_id')
    """,
    "COMMENT ON COLUMN accounts.warn_below IS 'told once when fewer are spendable; 0: never'",
    "COMMENT ON COLUMN accounts.own_warn_below IS 'set by a person; null: as the plan has it'",
    "COMMENT ON COLUMN accounts.own_running_max IS 'set by a person; null: as the plan has it'",
    "CREATE INDEX accounts_active_until ON accounts (active_until) WHERE active_until IS NOT NULL",
)


def upgrade() -> None:
    """Make the table and the columns."""
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Refuse: limits that people set would be lost."""
    raise RuntimeError("notices can't be undone by a migration; go back by restoring, or go on")
