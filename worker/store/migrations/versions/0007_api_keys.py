"""Keys of the HTTP API, and the log of every change that a person or a key made.

Revision ID: 0007
"""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Run the statements of 0007_api_keys.sql in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_name("0007_api_keys.sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: this would drop the log."""
    raise RuntimeError("this migration can't be undone: it would drop the audit log")
