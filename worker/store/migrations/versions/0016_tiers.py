"""Workers say which tiers they can't make: their jobs wait for those who can.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the column."""
    op.get_bind().exec_driver_sql("ALTER TABLE workers ADD COLUMN lacks TEXT[] NOT NULL DEFAULT '{}'")


def downgrade() -> None:
    """Drop it."""
    op.get_bind().exec_driver_sql("ALTER TABLE workers DROP COLUMN lacks")
