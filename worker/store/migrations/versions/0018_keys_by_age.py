"""What a job adds to reservations and attempts goes to the end of their keys: job first, and jobs' ids grow with age.

Revision ID: 0018
"""

from alembic import op

revision = "0018"
down_revision = "0017"

#: Each key with the account first, as it was: every insert then went to a page of its own, somewhere in the index.
_KEYS = {"reservations": ("account_id", "job_id"), "attempts": ("account_id", "job_id", "attempt")}


def upgrade() -> None:
    """Put the job before the account. Nobody looks them up by the account alone."""
    for table, (account, job, *rest) in _KEYS.items():
        _set_key(table, [job, account, *rest])


def downgrade() -> None:
    """Put the account first again."""
    for table, columns in _KEYS.items():
        _set_key(table, columns)


def _set_key(table: str, columns: list[str] | tuple[str, ...]) -> None:
    op.drop_constraint(f"{table}_pkey", table)
    op.create_primary_key(f"{table}_pkey", table, list(columns))
