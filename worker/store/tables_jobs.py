"""Tables of jobs: the wide row, the narrow tables that each unfinished one stands in, and who goes next."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import UUID

from worker.store.tables_columns import (
    CREDITS,
    ROOMY,
    account_id,
    document,
    finite,
    flag,
    instant,
    job_id,
    metadata,
    of_account,
    whole_credits,
    words,
)

jobs = Table(
    "jobs",
    metadata,
    account_id(),
    job_id(),
    words("idempotency_key"),
    Column("body_hash", LargeBinary, nullable=False),
    words("kind"),
    words("queue"),
    words("state"),
    document("request"),
    document("inputs"),
    document("metadata"),
    whole_credits("quoted"),
    Column("book_id", Integer, nullable=False),
    words("plan", null=True),
    Column("priority", SmallInteger, nullable=False, server_default=text("0"), comment="higher goes first"),
    words("on_insufficient"),
    whole_credits("max_credits", null=True),
    instant("run_at", null=True),
    instant("ends_by"),
    Column("retry_of", UUID(as_uuid=True)),
    words("actor"),
    words("traceparent", null=True),
    instant("created_at"),
    Column("failures_max", SmallInteger, nullable=False),
    # From here on claim and settle write.
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="counts only; the token fences"),
    Column("failures", SmallInteger, nullable=False, server_default=text("0")),
    instant("started_at", null=True),
    instant("ended_at", null=True),
    words("reason", null=True),
    words("message", null=True),
    whole_credits("charged", null=True),
    flag("partial"),
    document("outputs", null=True),
    PrimaryKeyConstraint("account_id", "job_id"),
    UniqueConstraint("account_id", "idempotency_key"),
    of_account(),
    CheckConstraint("length(idempotency_key) BETWEEN 1 AND 255", name="idempotency_key"),
    CheckConstraint(
        # queued -> running | waiting | refused | cancelled | failed
        # running -> succeeded | failed | cancelled | queued;  waiting -> queued | refused | cancelled
        "state IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'refused')",
        name="state",
    ),
    CheckConstraint(
        "(state IN ('succeeded', 'failed', 'cancelled', 'refused')) = (ended_at IS NOT NULL)", name="ended_at"
    ),
    CheckConstraint("(ended_at IS NULL) = (charged IS NULL)", name="charged_when_ended"),
    CheckConstraint("charged BETWEEN 0 AND quoted", name="charged"),
    CheckConstraint("(state = 'succeeded') = (outputs IS NOT NULL)", name="outputs_when_succeeded"),
    CheckConstraint("NOT partial OR state = 'succeeded'", name="partial"),
    CheckConstraint("state <> 'running' OR attempt > 0", name="running_has_attempt"),
    CheckConstraint(f"quoted {CREDITS}", name="quoted"),
    CheckConstraint("failures BETWEEN 0 AND failures_max", name="failures"),
    CheckConstraint("on_insufficient IN ('refuse', 'wait')", name="on_insufficient"),
    finite("run_at", "ends_by"),
    postgresql_with=ROOMY,
)
Index("jobs_job_id", jobs.c.job_id)
Index("jobs_retry_of", jobs.c.account_id, jobs.c.retry_of, postgresql_where=text("retry_of IS NOT NULL"))

due = Table(
    "due",
    metadata,
    account_id(),
    job_id(),
    words("queue"),
    words("kind"),
    Column("priority", SmallInteger, nullable=False, comment="higher goes first"),
    Column("turn", BigInteger, nullable=False, server_default=text("0")),
    instant("not_before"),
    instant("ends_by"),
    Column("hinted_at", DateTime(timezone=True), comment="the hint mark: since when a hint may be under way"),
    instant("hint_again_at", null=True),
    Column("hints", Integer, nullable=False, server_default=text("0")),
    Column(
        "waits_for",
        Text,
        comment="its time, or why the last claim dropped it; cleared by the time or by what makes room",
    ),
    Column(
        "since",
        DateTime(timezone=True),
        nullable=False,
        comment="when it could first run: from here on its priority rises",
    ),
    PrimaryKeyConstraint("account_id", "job_id"),
    CheckConstraint("(hinted_at IS NULL) = (hint_again_at IS NULL)", name="hint_mark"),
    finite("not_before", "ends_by"),
    postgresql_with={"fillfactor": "70"},
)
Index(
    "due_unhinted",
    due.c.queue,
    due.c.priority.desc(),
    due.c.turn,
    due.c.job_id,
    postgresql_where=text("hinted_at IS NULL AND waits_for IS NULL"),
)
Index("due_hinted", due.c.queue, due.c.hint_again_at, postgresql_where=text("hinted_at IS NOT NULL"))
Index(
    "due_waiting",
    due.c.waits_for,
    due.c.account_id,
    due.c.priority.desc(),
    due.c.turn,
    due.c.job_id,
    postgresql_where=text("waits_for IN ('paused', 'account_limit')"),
)
Index("due_later", due.c.not_before, postgresql_where=text("waits_for IN ('run_at', 'backoff')"))
Index("due_ends_by", due.c.ends_by)

queue_turns = Table(
    "queue_turns",
    metadata,
    words("queue"),
    Column("priority", SmallInteger, nullable=False),
    Column("turn", BigInteger, nullable=False, comment="the highest that was dispatched"),
    PrimaryKeyConstraint("queue", "priority"),
    postgresql_with={"fillfactor": "50"},
)

#: Unlogged: written by every submit, and worth no flush. After a crash it is empty, and `due` tells the last turns.
turns = Table(
    "turns",
    metadata,
    account_id(),
    words("queue"),
    Column("priority", SmallInteger, nullable=False),
    Column("turn", BigInteger, nullable=False, comment="the last that was given"),
    Column("taken", Integer, nullable=False, comment="how many were given with it"),
    PrimaryKeyConstraint("account_id", "queue", "priority"),
    prefixes=["UNLOGGED"],
    postgresql_with={"fillfactor": "50"},
)

live = Table(
    "live",
    metadata,
    account_id(),
    job_id(),
    Column("token", UUID(as_uuid=True), nullable=False, comment="made by the worker before the claim: who may settle"),
    words("queue"),
    words("kind"),
    words("worker_id"),
    instant("started_at"),
    instant("lease_until"),
    instant("ends_by"),
    Column("attempt", Integer, nullable=False),
    instant("cancel_asked_at", null=True),
    words("cancel_reason", null=True),
    Column("progress", Float, nullable=False, server_default=text("0")),
    words("stage", null=True),
    instant("progress_at", null=True),
    document("engine_state", null=True),
    PrimaryKeyConstraint("account_id", "job_id"),
    CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
    finite("lease_until", "ends_by"),
    postgresql_with={"fillfactor": "50"},
)

parked = Table(
    "parked",
    metadata,
    account_id(),
    job_id(),
    words("queue"),
    words("kind"),
    instant("parked_at"),
    whole_credits("needed"),
    instant("ends_by"),
    PrimaryKeyConstraint("account_id", "job_id"),
    CheckConstraint(f"needed {CREDITS}", name="needed"),
    finite("ends_by"),
)
Index("parked_ends_by", parked.c.ends_by)

#: Why a job was refused for want of credits, as it was said then.
refusals = Table(
    "refusals",
    metadata,
    account_id(),
    job_id(),
    document("body"),
    PrimaryKeyConstraint("account_id", "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    account_id(),
    job_id(),
    Column("attempt", Integer, nullable=False),
    Column("token", UUID(as_uuid=True), nullable=False, comment="tells whether a settle with a lost answer was ours"),
    words("worker_id"),
    instant("started_at"),
    instant("ended_at"),
    words("ending"),
    words("message", null=True),
    document("usage", null=True),
    document("engine_state", null=True),
    PrimaryKeyConstraint("job_id", "account_id", "attempt"),  # as that of reservations
    CheckConstraint("attempt > 0", name="attempt"),
)
