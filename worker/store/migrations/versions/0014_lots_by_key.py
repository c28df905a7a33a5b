"""Lots are found by their own key: only those that have a reference stand in the index of references.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"

# With every lot in it, and one lot an account in most, the index was as good as the key to the planner, which looked
# up each lot of a batch by its account alone: past all 10,000 that an account had emptied before.
_WITH = "CREATE UNIQUE INDEX lots_reference ON lots (account_id, source, reference)"


def upgrade() -> None:
    """Leave out those without."""
    op.execute("DROP INDEX lots_reference")
    op.execute(f"{_WITH} WHERE reference IS NOT NULL")


def downgrade() -> None:
    """Take all in again."""
    op.execute("DROP INDEX lots_reference")
    op.execute(_WITH)
