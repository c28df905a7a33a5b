"""Erasing reaches what ops wrote about an account, its endpoints, what was said of its voices, and the log of all that.

Revision ID: 0021
"""

from pathlib import Path

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Run the statements of the file beside this one, in order. No row is read or written."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: words that are gone don't come back, and whoever asked for it was told so."""
    raise RuntimeError("this migration can't be undone: accounts were told that their words are gone")
