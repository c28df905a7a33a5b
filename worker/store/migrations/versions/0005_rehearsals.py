"""Rehearsals: which documents were tried out on past jobs, and what was found.

Revision ID: 0005
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the statements of the file of the same name in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: this would forget what was rehearsed."""
    raise RuntimeError("this migration can't be undone: it would forget which books were rehearsed")
