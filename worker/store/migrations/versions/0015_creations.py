"""What a request made, by its idempotency key; and which key minted a token.

Revision ID: 0015
"""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Run the statements of 0015_creations.sql in order."""
    connection = op.get_bind()
    for statement in Path(__file__).with_name("0015_creations.sql").read_text().split(";\n\n"):
        connection.exec_driver_sql(statement.rstrip().rstrip(";"))


def downgrade() -> None:
    """A request that is sent again is done again; a token outlives the key that minted it."""
    connection = op.get_bind()
    connection.exec_driver_sql("ALTER TABLE api_keys DROP COLUMN minted_by")
    connection.exec_driver_sql("DROP TABLE creations")
