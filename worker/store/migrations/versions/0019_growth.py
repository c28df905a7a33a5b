"""Growth: checkpoints of months that are over, and functions that delete what has been kept long enough.

Revision ID: 0019
"""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Run the statements of the file beside this one, in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: months of the journal may hang on their checkpoints by now."""
    raise RuntimeError("this migration can't be undone: detached months of the journal hang on their checkpoints")
