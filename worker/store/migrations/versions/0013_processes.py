"""A sign of life of every scheduler and API process, as workers leave in their register.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Make the table."""
    op.get_bind().exec_driver_sql("""
        CREATE TABLE processes (
            process_id TEXT NOT NULL,
            process TEXT NOT NULL,
            host TEXT NOT NULL,
            pid INTEGER NOT NULL,
            version TEXT NOT NULL,
            started_at TIMESTAMP WITH TIME ZONE NOT NULL,
            seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
            CONSTRAINT processes_pkey PRIMARY KEY (process_id),
            CONSTRAINT processes_process CHECK (process IN ('scheduler', 'api'))
        ) WITH (fillfactor = 50)
    """)


def downgrade() -> None:
    """Drop it: processes leave their signs again."""
    op.get_bind().exec_driver_sql("DROP TABLE processes")
