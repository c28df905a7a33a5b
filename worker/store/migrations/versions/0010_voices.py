"""The registry of target voices.

Revision ID: 0010
"""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Run the statements of the file of the same name in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: this would forget by what right voices are used."""
    raise RuntimeError("this migration can't be undone: it would forget by what right voices are used")
