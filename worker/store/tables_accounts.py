"""Tables of accounts and what they subscribe to."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from worker.store.tables_columns import (
    CREDITS,
    account_id,
    document,
    finite,
    flag,
    instant,
    metadata,
    of_account,
    whole_credits,
    words,
)

accounts = Table(
    "accounts",
    metadata,
    account_id(),
    instant("created_at"),
    words("plan", null=True),
    Column("active_until", DateTime(timezone=True), comment="null: open-ended; lapsed and frozen derive from it"),
    Column("cycle_ends_at", DateTime(timezone=True), comment="of the cycle granted last"),
    Column("look_at", DateTime(timezone=True), comment="when time next changes something; null: it does not"),
    Column("running_max", Integer, comment="jobs at a time; null: no limit"),
    flag("paused"),
    words("actor"),
    Column(
        "warn_below",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="told once when fewer are spendable; 0: never",
    ),
    Column("own_warn_below", BigInteger, comment="set by a person; null: as the plan has it"),
    Column("own_running_max", Integer, comment="set by a person; null: as the plan has it"),
    PrimaryKeyConstraint("account_id"),
    CheckConstraint(f"warn_below {CREDITS} AND own_warn_below {CREDITS}", name="warn_below"),
    CheckConstraint("own_running_max > 0", name="own_running_max"),
    CheckConstraint("account_id ~ '^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$'", name="account_id"),
    CheckConstraint("running_max > 0", name="running_max"),
    CheckConstraint("plan IS NOT NULL OR (active_until IS NULL AND cycle_ends_at IS NULL)", name="subscription"),
    finite("active_until", "cycle_ends_at", "look_at"),
    postgresql_with={"fillfactor": "70"},
)

Index("accounts_active_until", accounts.c.active_until, postgresql_where=text("active_until IS NOT NULL"))
Index("accounts_look_at", accounts.c.look_at, postgresql_where=text("look_at IS NOT NULL"))

subscriptions = Table(
    "subscriptions",
    metadata,
    account_id(),
    instant("anchor"),
    words("next_plan", null=True),
    words("renewal", default="automatic"),
    Column("grace_seconds", Integer, nullable=False, server_default=text("0")),
    instant("cancelled_at", null=True),
    instant("updated_at"),
    PrimaryKeyConstraint("account_id"),
    of_account(),
    CheckConstraint("renewal IN ('automatic', 'external')", name="renewal"),
    CheckConstraint("grace_seconds >= 0 AND (renewal = 'external' OR grace_seconds = 0)", name="grace"),
)

subscription_changes = Table(
    "subscription_changes",
    metadata,
    account_id(),
    Column("reference", Text, nullable=False, comment="the caller's: the same step twice is one step"),
    words("what"),
    document("body"),
    instant("at"),
    words("actor"),
    PrimaryKeyConstraint("account_id", "reference"),
    of_account(),
)

cycles = Table(
    "cycles",
    metadata,
    account_id(),
    instant("starts_at"),
    instant("ends_at"),
    words("plan"),
    whole_credits("granted_total"),
    flag("skipped"),
    instant("at"),
    PrimaryKeyConstraint("account_id", "starts_at"),
    of_account(),
    CheckConstraint("starts_at < ends_at", name="order"),
    CheckConstraint(f"granted_total {CREDITS}", name="granted_total"),
    CheckConstraint("NOT skipped OR granted_total = 0", name="skipped_is_not_granted"),
)
