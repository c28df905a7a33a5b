"""What the tables are made of: columns that many have, and what holds for all of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    MetaData,
    Sequence,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData(
    naming_convention={
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)

#: Taken under the account's lock, so each account's numbers grow in the order of its commits. Gaps are normal.
journal_seq = Sequence("journal_seq", metadata=metadata, data_type=BigInteger)
event_seq = Sequence("event_seq", metadata=metadata, data_type=BigInteger)
lot_ids = Sequence("lot_ids", metadata=metadata, data_type=BigInteger)

CREDITS = "BETWEEN 0 AND 1000000000000"
#: Room on each page for the next, longer version of all its rows: neighbours are claimed and settled together.
#: Heap-only updates of jobs and reservations, 64 jobs in flight: at 60 94 and 61 %, at 50 100 and 88 %, at 45 all.
ROOMY = {"fillfactor": "45"}


def account_id() -> Column[Any]:
    """Whose the row is."""
    return Column("account_id", Text, nullable=False)


def job_id() -> Column[Any]:
    """Which job of the account."""
    return Column("job_id", UUID(as_uuid=True), nullable=False)


def instant(name: str, *, null: bool = False) -> Column[Any]:
    """A time, with its zone."""
    return Column(name, DateTime(timezone=True), nullable=null)


def whole_credits(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    """Credits; `CREDITS` in a CHECK bounds them."""
    return Column(name, BigInteger, nullable=null, server_default=None if default is None else text(default))


def words(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    """Text of any length."""
    return Column(name, Text, nullable=null, server_default=None if default is None else text(f"'{default}'"))


def flag(name: str) -> Column[Any]:
    """False unless somebody says so."""
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def document(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    """A JSON document."""
    return Column(name, JSONB, nullable=null, server_default=None if default is None else text(f"'{default}'"))


def finite(*names: str) -> CheckConstraint:
    """PostgreSQL has an infinite time; Python has none, and can't compare what it reads in its place."""
    return CheckConstraint(" AND ".join(f"isfinite({name})" for name in names), name="finite_times")


def of_account() -> ForeignKeyConstraint:
    """Only of accounts that there are. Not for what claim and settle write."""
    return ForeignKeyConstraint(["account_id"], ["accounts.account_id"])
