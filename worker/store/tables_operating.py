"""Tables of the machinery: who runs, what is paused, what was changed by whom."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from worker.store.tables_columns import document, flag, instant, metadata, words

processes = Table(
    "processes",
    metadata,
    words("process_id"),
    words("process"),
    words("host"),
    Column("pid", Integer, nullable=False),
    words("version"),
    instant("started_at"),
    instant("seen_at"),
    PrimaryKeyConstraint("process_id"),
    CheckConstraint("process IN ('scheduler', 'api')", name="process"),
    postgresql_with={"fillfactor": "50"},
)

workers = Table(
    "workers",
    metadata,
    words("worker_id"),
    words("host"),
    Column("pid", Integer, nullable=False),
    words("version"),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    instant("started_at"),
    instant("seen_at"),
    flag("draining"),
    instant("stopped_at", null=True),
    words("drain_asked_by", null=True),
    Column("lacks", ARRAY(Text), nullable=False, server_default=text("'{}'")),  # tiers that it can't make
    PrimaryKeyConstraint("worker_id"),
    CheckConstraint("slots > 0", name="slots"),
    postgresql_with={"fillfactor": "50"},
)

controls = Table(
    "controls",
    metadata,
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    flag("paused"),
    Column("running_max", Integer),
    words("reason", null=True),
    instant("at"),
    words("actor"),
    PrimaryKeyConstraint("scope", "name"),
    CheckConstraint("scope IN ('queue', 'kind')", name="scope"),
    CheckConstraint("running_max > 0", name="running_max"),
)

#: Every change that a person or a key made, with the row before and after. Written by triggers, in the transaction of
#: the change itself, so that no code can forget it; jobs tell their own story in `events`.
audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", BigInteger, Identity(always=True), nullable=False),
    instant("at"),
    words("actor"),
    Column("what", Text, nullable=False, comment="the table and what was done: controls.update"),
    Column("subject", Text, nullable=False, comment="which row: an account, a queue, a key"),
    document("before", null=True),
    document("after", null=True),
    PrimaryKeyConstraint("entry_id"),
)
Index("audit_log_subject", audit_log.c.subject, audit_log.c.entry_id)

duty_runs = Table(
    "duty_runs",
    metadata,
    words("duty"),
    instant("ran_at"),
    document("body", null=True),
    PrimaryKeyConstraint("duty"),
    postgresql_with={"fillfactor": "50"},
)
