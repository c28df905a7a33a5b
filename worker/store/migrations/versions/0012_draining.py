"""Ops ask a worker to drain by its row: it hears of it with its next sign of life.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column."""
    op.get_bind().exec_driver_sql("ALTER TABLE workers ADD COLUMN drain_asked_by TEXT")


def downgrade() -> None:
    """Drop it."""
    op.get_bind().exec_driver_sql("ALTER TABLE workers DROP COLUMN drain_asked_by")
