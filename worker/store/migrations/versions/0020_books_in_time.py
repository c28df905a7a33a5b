"""A book comes into force when it is written, or later: not by raw SQL either, for whoever is not the tables' owner.

Revision ID: 0020
"""

from alembic import op

revision = "0020"
down_revision = "0019"

# `apply` of the store refuses a past time already: this stands behind it, for whoever holds a role's password. "From
# now on" is read early in its transaction, so that is where the past ends. Time is counted by the server's own clock,
# the distance then taken from ours. The owner writes the first book, for all times.
_FUNCTION = """
CREATE FUNCTION fermata_book_in_time() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF NEW.effective_at < fermata_now() - (clock_timestamp() - transaction_timestamp())
        AND NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
    THEN
        RAISE EXCEPTION 'a book of % comes into force when it is written, or later', TG_TABLE_NAME
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
            f"CREATE TRIGGER {table}_in_time BEFORE INSERT ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION fermata_book_in_time()"
        )


def downgrade() -> None:
    """Raw SQL may write a past one again."""
    for table in _TABLES:
        op.execute(f"DROP TRIGGER {table}_in_time ON {table}")
    op.execute("DROP FUNCTION fermata_book_in_time()")
