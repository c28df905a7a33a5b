"""An erasure takes what was there at its moment; a month that was closed before its time opens again.

People can move what lies in a default partition to its month.

Revision ID: 0024
"""

from pathlib import Path

from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Replace the functions that erase and close, and what guards checkpoints. No row is read or written."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Take away what is new; the others are called as before, and do what was promised before."""
    op.execute("DROP FUNCTION fermata_empty_defaults()")
