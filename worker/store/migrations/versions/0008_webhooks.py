"""Webhooks: who is told of which events, and how the telling stands.

Every event finds its endpoints in the transaction that writes it: none is ever skipped, however late it commits.

Revision ID: 0008
"""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Run the statements of the file beside this one, in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: endpoints and their secrets would be gone."""
    raise RuntimeError("this migration can't be undone: endpoints and their secrets would be gone")
