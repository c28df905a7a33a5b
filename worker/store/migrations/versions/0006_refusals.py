"""What a refused job was told: needed, available, held by whom, frozen, the pack that would have done.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table."""
    op.get_bind().exec_driver_sql("""
        CREATE TABLE refusals (
            account_id TEXT NOT NULL,
            job_id UUID NOT NULL,
            body JSONB NOT NULL,
            CONSTRAINT refusals_pkey PRIMARY KEY (account_id, job_id)
        )
    """)


def downgrade() -> None:
    """Drop it: only an explanation is lost."""
    op.get_bind().exec_driver_sql("DROP TABLE refusals")
