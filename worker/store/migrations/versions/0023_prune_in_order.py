"""Pruning walks the ends of jobs in the order of their time, from where the part before it ended, and sorts nothing.

Revision ID: 0023
"""

from pathlib import Path

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Make the functions, and an index of the voices. Those that the release before calls stay as they are."""
    connection = op.get_bind()
    for statement in Path(__file__).with_suffix(".sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Take away what is new; the function that looks at inputs does the same as before."""
    op.execute("DROP FUNCTION fermata_prune_jobs(integer, timestamptz, integer)")
    op.execute("DROP FUNCTION fermata_old_ends(timestamptz, timestamptz, integer)")
    op.execute("DROP INDEX voices_artifact")
