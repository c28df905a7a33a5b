"""What the history of price and plan books keeps: who withdrew one and why, what it repeats, what forced it.

A withdrawn book's time is free again, so only books that stand have a time of their own.

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the statements of 0002_book_history.sql in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_name("0002_book_history.sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """Refuse: this would forget who withdrew what."""
    raise RuntimeError("this migration can't be undone: it would forget who withdrew which book")
