"""Credits as sold: when time next changes something for an account, and what a cycle and a grace may be.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = (
    "ALTER TABLE accounts ADD COLUMN look_at TIMESTAMP WITH TIME ZONE",
    "COMMENT ON COLUMN accounts.look_at IS 'when time next changes something; null: it does not'",
    "ALTER TABLE accounts DROP CONSTRAINT accounts_finite_times",
    """
    ALTER TABLE accounts ADD CONSTRAINT accounts_finite_times
    CHECK (isfinite(active_until) AND isfinite(cycle_ends_at) AND isfinite(look_at))
    """,
    "UPDATE accounts SET look_at = cycle_ends_at WHERE active_until IS NULL",
    "CREATE INDEX accounts_look_at ON accounts (look_at) WHERE look_at IS NOT NULL",
    """
    ALTER TABLE subscriptions ADD CONSTRAINT subscriptions_grace
    CHECK (grace_seconds >= 0 AND (renewal = 'external' OR grace_seconds = 0))
    """,
    "ALTER TABLE cycles ADD CONSTRAINT cycles_skipped_is_not_granted CHECK (NOT skipped OR granted_total = 0)",
)


def upgrade() -> None:
    """Run the statements in order."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: the next cycles would not begin."""
    raise RuntimeError("this migration can't be undone: the next cycles would not begin")
