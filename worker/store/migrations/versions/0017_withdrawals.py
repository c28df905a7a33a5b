"""A book in force can't be withdrawn, and a withdrawn one never comes back: not by raw SQL either.

Revision ID: 0017
"""

from alembic import op

revision = "0017"
down_revision = "0016"

# `withdraw` of the store refuses both already, and earlier: this stands behind it, for whoever holds a role's password.
_FUNCTION = """
CREATE FUNCTION fermata_withdrawal() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF OLD.withdrawn_at IS NOT NULL THEN
        RAISE EXCEPTION 'book % of % was withdrawn: that never changes', OLD.book_id, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF OLD.effective_at <= fermata_now() THEN
        RAISE EXCEPTION 'book % of % is or was in force: it is never withdrawn', OLD.book_id, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$
"""
_TABLES = ("price_books", "plan_books")


def upgrade() -> None:
    """Guard both tables. No row is read or written."""
    op.execute(_FUNCTION)
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_withdrawal BEFORE UPDATE OF withdrawn_at, withdrawn_by, withdrawn_note "
            f"ON {table} FOR EACH ROW EXECUTE FUNCTION fermata_withdrawal()"
        )


def downgrade() -> None:
    """Raw SQL may do both again."""
    for table in _TABLES:
        op.execute(f"DROP TRIGGER {table}_withdrawal ON {table}")
    op.execute("DROP FUNCTION fermata_withdrawal()")
