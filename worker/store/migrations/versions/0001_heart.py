"""The heart: accounts, ledger, prices, jobs and the machinery around them.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run the statements of 0001_heart.sql in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_name("0001_heart.sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: this would drop the books."""
    raise RuntimeError("the first migration can't be undone: it would drop the books")
