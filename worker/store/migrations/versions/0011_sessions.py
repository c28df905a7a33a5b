"""Sessions of people in front of the dashboard.

Revision ID: 0011
"""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Run the statements of 0011_sessions.sql in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_name("0011_sessions.sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Everybody signs in anew."""
    op.get_bind().exec_driver_sql("DROP TABLE sessions")
