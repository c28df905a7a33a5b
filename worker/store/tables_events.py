"""Tables of what happened and who was told."""

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
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from worker.store.tables_columns import account_id, document, event_seq, instant, metadata, whole_credits, words

#: What an account was told once: a lot that expires soon, a top-up that is frozen.
told = Table(
    "told",
    metadata,
    account_id(),
    words("what"),
    words("subject"),
    instant("at"),
    PrimaryKeyConstraint("account_id", "what", "subject"),
)

events = Table(
    "events",
    metadata,
    account_id(),
    Column("seq", BigInteger, nullable=False, server_default=event_seq.next_value()),
    instant("at"),
    words("what"),
    Column("job_id", UUID(as_uuid=True)),
    words("state", null=True),
    words("kind", null=True),
    words("queue", null=True),
    words("reason", null=True),
    whole_credits("charged", null=True),
    document("body", null=True),
    PrimaryKeyConstraint("account_id", "seq", "at"),
    postgresql_partition_by="RANGE (at)",
)
Index("events_ended", events.c.at, events.c.state, events.c.kind, postgresql_where=text("what = 'ended'"))

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    words("url"),
    Column("account_id", Text, comment="only of this account; null: of all"),
    Column("events", ARRAY(Text), nullable=False, comment="only these; empty: all"),
    instant("created_at"),
    words("actor"),
    Column(
        "closed_at",
        DateTime(timezone=True),
        comment="when its owner answered 410: it wants nothing any more",
    ),
    PrimaryKeyConstraint("webhook_id"),
)

#: Apart, so that whoever shows or logs an endpoint can't show this.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    words("secret"),
    PrimaryKeyConstraint("webhook_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    account_id(),
    Column("seq", BigInteger, nullable=False),
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, comment="the event's"),
    words("what"),
    Column("job_id", UUID(as_uuid=True)),
    words("state"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column(
        "next_at",
        DateTime(timezone=True),
        nullable=False,
        comment="when it is tried again, or when whoever sends it now is given up",
    ),
    Column("token", UUID(as_uuid=True), comment="who sends it: only that one may say how it went"),
    instant("ended_at", null=True),
    Column("last_status", Integer),
    words("last_error", null=True),
    PrimaryKeyConstraint("account_id", "seq", "webhook_id"),
    CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
    CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended"),
    CheckConstraint("attempts >= 0", name="attempts"),
    postgresql_with={"fillfactor": "70"},
)
_PENDING = text("state = 'pending'")
Index("deliveries_due", deliveries.c.webhook_id, deliveries.c.next_at, postgresql_where=_PENDING)
Index(
    "deliveries_order",
    *(deliveries.c[name] for name in ("webhook_id", "account_id", "job_id", "seq")),
    postgresql_where=_PENDING,
)
Index("deliveries_ended", deliveries.c.ended_at, postgresql_where=text("state <> 'pending'"))

#: Accounts whose words and sounds were taken out of all that is kept.
erasures = Table(
    "erasures",
    metadata,
    account_id(),
    Column(
        "at",
        DateTime(timezone=True),
        nullable=False,
        comment="of the last one: what ended before it says nothing of anybody any more",
    ),
    words("actor"),
    words("reason"),
    PrimaryKeyConstraint("account_id"),
)
