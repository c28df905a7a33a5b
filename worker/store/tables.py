"""The schema as values. Migrations build it; a test builds it both ways and compares the two catalogues.

Rules of this schema:
- `account_id` stands in every key of the ledger's and the jobs' tables: every money decision concerns one account.
- No index, as key or predicate, holds a column that claim or settle changes on jobs, lots or reservations, so
  those updates stay heap-only. What duties look for stands in the narrow tables `due`, `live` and `parked`.
- The tables that claim and settle write carry no foreign keys (each would cost a look-up a row); they share
  composite keys, every writer holds the account's lock, and `audit` checks the references.
- Credits are whole, bigint, at most 10^12 a value.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

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


def _account() -> Column[Any]:
    return Column("account_id", Text, nullable=False)


def _job() -> Column[Any]:
    return Column("job_id", UUID(as_uuid=True), nullable=False)


def _time(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=null)


def _credits(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    return Column(name, BigInteger, nullable=null, server_default=None if default is None else text(default))


def _text(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    return Column(name, Text, nullable=null, server_default=None if default is None else text(f"'{default}'"))


def _flag(name: str) -> Column[Any]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def _json(name: str, *, null: bool = False, default: str | None = None) -> Column[Any]:
    return Column(name, JSONB, nullable=null, server_default=None if default is None else text(f"'{default}'"))


def _finite(*names: str) -> CheckConstraint:
    """PostgreSQL has an infinite time; Python has none, and can't compare what it reads in its place."""
    return CheckConstraint(" AND ".join(f"isfinite({name})" for name in names), name="finite_times")


def _of_account() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["account_id"], ["accounts.account_id"])


# --- accounts and what they subscribe to -----------------------------------------------------------------------

accounts = Table(
    "accounts",
    metadata,
    _account(),
    _time("created_at"),
    _text("plan", null=True),
    Column("active_until", DateTime(timezone=True), comment="null: open-ended; lapsed and frozen derive from it"),
    Column("cycle_ends_at", DateTime(timezone=True), comment="of the cycle granted last"),
    Column("look_at", DateTime(timezone=True), comment="when time next changes something; null: it does not"),
    Column("running_max", Integer, comment="jobs at a time; null: no limit"),
    _flag("paused"),
    _text("actor"),
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
    _finite("active_until", "cycle_ends_at", "look_at"),
    postgresql_with={"fillfactor": "70"},
)

Index("accounts_active_until", accounts.c.active_until, postgresql_where=text("active_until IS NOT NULL"))
Index("accounts_look_at", accounts.c.look_at, postgresql_where=text("look_at IS NOT NULL"))

subscriptions = Table(
    "subscriptions",
    metadata,
    _account(),
    _time("anchor"),
    _text("next_plan", null=True),
    _text("renewal", default="automatic"),
    Column("grace_seconds", Integer, nullable=False, server_default=text("0")),
    _time("cancelled_at", null=True),
    _time("updated_at"),
    PrimaryKeyConstraint("account_id"),
    _of_account(),
    CheckConstraint("renewal IN ('automatic', 'external')", name="renewal"),
    CheckConstraint("grace_seconds >= 0 AND (renewal = 'external' OR grace_seconds = 0)", name="grace"),
)

subscription_changes = Table(
    "subscription_changes",
    metadata,
    _account(),
    Column("reference", Text, nullable=False, comment="the caller's: the same step twice is one step"),
    _text("what"),
    _json("body"),
    _time("at"),
    _text("actor"),
    PrimaryKeyConstraint("account_id", "reference"),
    _of_account(),
)

cycles = Table(
    "cycles",
    metadata,
    _account(),
    _time("starts_at"),
    _time("ends_at"),
    _text("plan"),
    _credits("granted_total"),
    _flag("skipped"),
    _time("at"),
    PrimaryKeyConstraint("account_id", "starts_at"),
    _of_account(),
    CheckConstraint("starts_at < ends_at", name="order"),
    CheckConstraint(f"granted_total {CREDITS}", name="granted_total"),
    CheckConstraint("NOT skipped OR granted_total = 0", name="skipped_is_not_granted"),
)

# --- the ledger ------------------------------------------------------------------------------------------------

lots = Table(
    "lots",
    metadata,
    _account(),
    Column("lot_id", BigInteger, nullable=False, server_default=lot_ids.next_value()),
    _text("source"),
    _credits("granted"),
    _credits("available"),
    _credits("held", default="0"),
    _credits("spent", default="0"),
    _credits("expired", default="0"),
    _credits("revoked", default="0"),
    _time("expires_at", null=True),
    _time("created_at"),
    Column("cycle_starts_at", DateTime(timezone=True), comment="of a subscription lot"),
    Column("reference", Text, comment="of a purchase or a grant"),
    Column("job_id", UUID(as_uuid=True), comment="of a make-good or a compensation"),
    _text("reason"),
    _text("note", null=True),
    _flag("charged_back"),
    Column(
        "closed",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="set once, by the expire duty only, when nothing is available or held any more",
    ),
    PrimaryKeyConstraint("account_id", "lot_id"),
    _of_account(),
    CheckConstraint("source IN ('subscription', 'topup', 'grant')", name="source"),
    CheckConstraint(f"granted {CREDITS} AND granted > 0", name="granted"),
    CheckConstraint(
        "available >= 0 AND held >= 0 AND spent >= 0 AND expired >= 0 AND revoked >= 0", name="no_bucket_below_zero"
    ),
    CheckConstraint("granted = available + held + spent + expired + revoked", name="buckets_sum"),
    CheckConstraint("NOT closed OR (available = 0 AND held = 0)", name="closed_is_empty"),
    CheckConstraint("(source = 'subscription') = (cycle_starts_at IS NOT NULL)", name="subscription_has_cycle"),
    _finite("expires_at"),
    postgresql_with=ROOMY,
)
Index("lots_open", lots.c.account_id, postgresql_where=text("NOT closed"))
Index("lots_expiring", lots.c.expires_at, postgresql_where=text("NOT closed AND expires_at IS NOT NULL"))
Index(
    "lots_make_good",
    lots.c.account_id,
    lots.c.job_id,
    unique=True,
    postgresql_where=text("reason = 'make_good'"),
)
#: Without those that have none: an index of all lots that begins with their account is chosen in place of their key.
Index(
    "lots_reference",
    lots.c.account_id,
    lots.c.source,
    lots.c.reference,
    unique=True,
    postgresql_where=text("reference IS NOT NULL"),
)

reservations = Table(
    "reservations",
    metadata,
    _account(),
    _job(),
    _credits("amount"),
    _text("state"),
    _credits("charged", default="0"),
    Column(
        "draw_lots", ARRAY(BigInteger), nullable=False, comment="in draw order; the view `draws` shows them as rows"
    ),
    Column("draw_amounts", ARRAY(BigInteger), nullable=False),
    _time("reserved_at"),
    _time("settled_at", null=True),
    _text("reason", null=True),
    # A job's id grows with its age, so that new rows go to the end of the index: an insert 2.4 instead of 5.0 µs.
    PrimaryKeyConstraint("job_id", "account_id"),
    CheckConstraint("state IN ('held', 'committed', 'refunded')", name="state"),
    CheckConstraint(f"amount {CREDITS}", name="amount"),
    CheckConstraint("charged BETWEEN 0 AND amount", name="charged"),
    CheckConstraint("state = 'committed' OR charged = 0", name="only_commits_charge"),
    CheckConstraint("(state = 'held') = (settled_at IS NULL)", name="settled"),
    CheckConstraint("cardinality(draw_lots) = cardinality(draw_amounts)", name="draws"),
    postgresql_with=ROOMY,
)

journal = Table(
    "journal",
    metadata,
    _account(),
    Column("seq", BigInteger, nullable=False, server_default=journal_seq.next_value()),
    _time("at"),
    Column("lot_id", BigInteger, nullable=False),
    Column("move", Text, nullable=False),
    _credits("amount"),
    Column("job_id", UUID(as_uuid=True)),
    _text("reason"),
    _text("actor"),
    PrimaryKeyConstraint("account_id", "seq", "at"),
    CheckConstraint("move IN ('grant', 'reserve', 'commit', 'refund', 'expire', 'revoke')", name="move"),
    CheckConstraint(f"amount {CREDITS} AND amount > 0", name="amount"),
    postgresql_partition_by="RANGE (at)",
)

#: Months of the journal that are over: closed once each lot has its checkpoint, later maybe detached.
journal_months = Table(
    "journal_months",
    metadata,
    _time("starts_at"),
    _time("ends_at"),
    Column(
        "closed_to",
        Text,
        nullable=False,
        server_default=text("''"),
        comment="the last account whose checkpoints of this month are written",
    ),
    Column("entries", BigInteger, nullable=False, server_default=text("0"), comment="that its checkpoints stand for"),
    Column("closed_at", DateTime(timezone=True), comment="since when its checkpoints are whole"),
    _time("detached_at", null=True),
    PrimaryKeyConstraint("starts_at"),
    CheckConstraint("detached_at IS NULL OR closed_at IS NOT NULL", name="closed_before_detached"),
)

#: What the entries of one lot in one month sum up to. Append-only, as they are.
checkpoints = Table(
    "checkpoints",
    metadata,
    _account(),
    Column("lot_id", BigInteger, nullable=False),
    Column("month", DateTime(timezone=True), nullable=False, comment="when it began, by UTC"),
    *(_credits(name) for name in ("entries", "granted", "reserved", "committed", "refunded", "expired", "revoked")),
    Column("debt_paid", BigInteger, nullable=False, comment="of what was revoked"),
    _time("reserved_last", null=True),
    _time("expired_first", null=True),
    PrimaryKeyConstraint("account_id", "lot_id", "month"),
)

carried_draws = Table(
    "carried_draws",
    metadata,
    _account(),
    _job(),
    Column("lot_id", BigInteger, nullable=False),
    _time("month"),
    Column("amount", BigInteger, nullable=False, comment="reserved by then and not yet settled when the month ended"),
    PrimaryKeyConstraint("account_id", "job_id", "lot_id", "month"),
)
Index("carried_draws_month", carried_draws.c.month)

purchases = Table(
    "purchases",
    metadata,
    _account(),
    Column("reference", Text, nullable=False, comment="also of its lot"),
    _credits("credits"),
    _text("pack", null=True),
    _text("price_shown", null=True),
    _time("at"),
    _text("actor"),
    _time("charged_back_at", null=True),
    PrimaryKeyConstraint("account_id", "reference"),
    _of_account(),
    CheckConstraint(f"credits {CREDITS} AND credits > 0", name="credits"),
)

debts = Table(
    "debts",
    metadata,
    _account(),
    Column("seq", BigInteger, nullable=False, server_default=journal_seq.next_value()),
    Column("amount", BigInteger, nullable=False, comment="+ owed, - paid"),
    _text("cause"),
    Column("lot_id", BigInteger),
    _text("reference", null=True),
    _time("at"),
    _text("actor"),
    PrimaryKeyConstraint("account_id", "seq"),
    _of_account(),
    CheckConstraint("amount <> 0 AND amount BETWEEN -1000000000000 AND 1000000000000", name="amount"),
)

# --- prices ----------------------------------------------------------------------------------------------------


def _book(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("book_id", Integer, Identity(always=False), nullable=False),
        Column("document", Text, nullable=False, comment="the TOML as it was applied"),
        Column("digest", Text, nullable=False, comment="sha256 of the document, hex"),
        _time("effective_at"),
        _text("author"),
        _text("note"),
        _time("created_at"),
        _time("withdrawn_at", null=True),
        _text("withdrawn_by", null=True),
        _text("withdrawn_note", null=True),
        Column("reverts_to", Integer, comment="the book whose document this one repeats"),
        Column("forced", Text, comment="why it was applied without a rehearsal"),
        PrimaryKeyConstraint("book_id"),
        CheckConstraint("withdrawn_by IS NULL OR withdrawn_at IS NOT NULL", name="withdrawn"),
        Index(f"{name}_standing", "effective_at", unique=True, postgresql_where=text("withdrawn_at IS NULL")),
    )


price_books = _book("price_books")
plan_books = _book("plan_books")

rehearsals = Table(
    "rehearsals",
    metadata,
    Column("rehearsal_id", Integer, Identity(always=False), nullable=False),
    Column("digest", Text, nullable=False, comment="of the document that was tried out"),
    Column("against", Integer, nullable=False, comment="the book in force then"),
    _time("since"),
    _time("until"),
    _time("at"),
    _text("actor"),
    _json("outcome"),
    PrimaryKeyConstraint("rehearsal_id"),
    Index("rehearsals_digest", "digest", "rehearsal_id"),
)

# --- jobs ------------------------------------------------------------------------------------------------------

jobs = Table(
    "jobs",
    metadata,
    _account(),
    _job(),
    _text("idempotency_key"),
    Column("body_hash", LargeBinary, nullable=False),
    _text("kind"),
    _text("queue"),
    _text("state"),
    _json("request"),
    _json("inputs"),
    _json("metadata"),
    _credits("quoted"),
    Column("book_id", Integer, nullable=False),
    _text("plan", null=True),
    Column("priority", SmallInteger, nullable=False, server_default=text("0"), comment="higher goes first"),
    _text("on_insufficient"),
    _credits("max_credits", null=True),
    _time("run_at", null=True),
    _time("ends_by"),
    Column("retry_of", UUID(as_uuid=True)),
    _text("actor"),
    _text("traceparent", null=True),
    _time("created_at"),
    Column("failures_max", SmallInteger, nullable=False),
    # From here on claim and settle write.
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="counts only; the token fences"),
    Column("failures", SmallInteger, nullable=False, server_default=text("0")),
    _time("started_at", null=True),
    _time("ended_at", null=True),
    _text("reason", null=True),
    _text("message", null=True),
    _credits("charged", null=True),
    _flag("partial"),
    _json("outputs", null=True),
    PrimaryKeyConstraint("account_id", "job_id"),
    UniqueConstraint("account_id", "idempotency_key"),
    _of_account(),
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
    _finite("run_at", "ends_by"),
    postgresql_with=ROOMY,
)
Index("jobs_job_id", jobs.c.job_id)
Index("jobs_retry_of", jobs.c.account_id, jobs.c.retry_of, postgresql_where=text("retry_of IS NOT NULL"))

due = Table(
    "due",
    metadata,
    _account(),
    _job(),
    _text("queue"),
    _text("kind"),
    Column("priority", SmallInteger, nullable=False, comment="higher goes first"),
    Column("turn", BigInteger, nullable=False, server_default=text("0")),
    _time("not_before"),
    _time("ends_by"),
    Column("hinted_at", DateTime(timezone=True), comment="the hint mark: since when a hint may be under way"),
    _time("hint_again_at", null=True),
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
    _finite("not_before", "ends_by"),
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
    _text("queue"),
    Column("priority", SmallInteger, nullable=False),
    Column("turn", BigInteger, nullable=False, comment="the highest that was dispatched"),
    PrimaryKeyConstraint("queue", "priority"),
    postgresql_with={"fillfactor": "50"},
)

#: Unlogged: written by every submit, and worth no flush. After a crash it is empty, and `due` tells the last turns.
turns = Table(
    "turns",
    metadata,
    _account(),
    _text("queue"),
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
    _account(),
    _job(),
    Column("token", UUID(as_uuid=True), nullable=False, comment="made by the worker before the claim: who may settle"),
    _text("queue"),
    _text("kind"),
    _text("worker_id"),
    _time("started_at"),
    _time("lease_until"),
    _time("ends_by"),
    Column("attempt", Integer, nullable=False),
    _time("cancel_asked_at", null=True),
    _text("cancel_reason", null=True),
    Column("progress", Float, nullable=False, server_default=text("0")),
    _text("stage", null=True),
    _time("progress_at", null=True),
    _json("engine_state", null=True),
    PrimaryKeyConstraint("account_id", "job_id"),
    CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
    _finite("lease_until", "ends_by"),
    postgresql_with={"fillfactor": "50"},
)

parked = Table(
    "parked",
    metadata,
    _account(),
    _job(),
    _text("queue"),
    _text("kind"),
    _time("parked_at"),
    _credits("needed"),
    _time("ends_by"),
    PrimaryKeyConstraint("account_id", "job_id"),
    CheckConstraint(f"needed {CREDITS}", name="needed"),
    _finite("ends_by"),
)
Index("parked_ends_by", parked.c.ends_by)

#: What an account was told once: a lot that expires soon, a top-up that is frozen.
told = Table(
    "told",
    metadata,
    _account(),
    _text("what"),
    _text("subject"),
    _time("at"),
    PrimaryKeyConstraint("account_id", "what", "subject"),
)

#: Why a job was refused for want of credits, as it was said then.
refusals = Table(
    "refusals",
    metadata,
    _account(),
    _job(),
    _json("body"),
    PrimaryKeyConstraint("account_id", "job_id"),
)

attempts = Table(
    "attempts",
    metadata,
    _account(),
    _job(),
    Column("attempt", Integer, nullable=False),
    Column("token", UUID(as_uuid=True), nullable=False, comment="tells whether a settle with a lost answer was ours"),
    _text("worker_id"),
    _time("started_at"),
    _time("ended_at"),
    _text("ending"),
    _text("message", null=True),
    _json("usage", null=True),
    _json("engine_state", null=True),
    PrimaryKeyConstraint("job_id", "account_id", "attempt"),  # as that of reservations
    CheckConstraint("attempt > 0", name="attempt"),
)

artifacts = Table(
    "artifacts",
    metadata,
    _account(),
    Column("artifact_id", UUID(as_uuid=True), nullable=False),
    _text("name"),
    _text("media_type"),
    _text("storage_key"),
    Column("sha256", LargeBinary, nullable=False),
    Column("frames", BigInteger, nullable=False),
    Column("sample_rate", Integer, nullable=False),
    Column("channels", SmallInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    _time("created_at"),
    Column("job_id", UUID(as_uuid=True), comment="of an output"),
    Column("token", UUID(as_uuid=True)),
    _text("actor"),
    PrimaryKeyConstraint("account_id", "artifact_id"),
    _of_account(),
    CheckConstraint("frames > 0 AND sample_rate > 0 AND channels > 0 AND bytes > 0", name="measured"),
    CheckConstraint("length(sha256) = 32", name="sha256"),
)
Index("artifacts_job", artifacts.c.account_id, artifacts.c.job_id, postgresql_where=text("job_id IS NOT NULL"))
Index("artifacts_artifact_id", artifacts.c.artifact_id)

events = Table(
    "events",
    metadata,
    _account(),
    Column("seq", BigInteger, nullable=False, server_default=event_seq.next_value()),
    _time("at"),
    _text("what"),
    Column("job_id", UUID(as_uuid=True)),
    _text("state", null=True),
    _text("kind", null=True),
    _text("queue", null=True),
    _text("reason", null=True),
    _credits("charged", null=True),
    _json("body", null=True),
    PrimaryKeyConstraint("account_id", "seq", "at"),
    postgresql_partition_by="RANGE (at)",
)
Index("events_ended", events.c.at, events.c.state, events.c.kind, postgresql_where=text("what = 'ended'"))

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    _text("url"),
    Column("account_id", Text, comment="only of this account; null: of all"),
    Column("events", ARRAY(Text), nullable=False, comment="only these; empty: all"),
    _time("created_at"),
    _text("actor"),
    Column(
        "closed_at",
        DateTime(timezone=True),
        comment="when its owner answered 410: it wants nothing any more",
    ),
    PrimaryKeyConstraint("webhook_id"),
)

#: Accounts whose words and sounds were taken out of all that is kept.
erasures = Table(
    "erasures",
    metadata,
    _account(),
    Column(
        "at",
        DateTime(timezone=True),
        nullable=False,
        comment="of the last one: what ended before it says nothing of anybody any more",
    ),
    _text("actor"),
    _text("reason"),
    PrimaryKeyConstraint("account_id"),
)

#: Apart, so that whoever shows or logs an endpoint can't show this.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    _text("secret"),
    PrimaryKeyConstraint("webhook_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    _account(),
    Column("seq", BigInteger, nullable=False),
    Column("webhook_id", UUID(as_uuid=True), nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, comment="the event's"),
    _text("what"),
    Column("job_id", UUID(as_uuid=True)),
    _text("state"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column(
        "next_at",
        DateTime(timezone=True),
        nullable=False,
        comment="when it is tried again, or when whoever sends it now is given up",
    ),
    Column("token", UUID(as_uuid=True), comment="who sends it: only that one may say how it went"),
    _time("ended_at", null=True),
    Column("last_status", Integer),
    _text("last_error", null=True),
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

# --- the machinery ---------------------------------------------------------------------------------------------

processes = Table(
    "processes",
    metadata,
    _text("process_id"),
    _text("process"),
    _text("host"),
    Column("pid", Integer, nullable=False),
    _text("version"),
    _time("started_at"),
    _time("seen_at"),
    PrimaryKeyConstraint("process_id"),
    CheckConstraint("process IN ('scheduler', 'api')", name="process"),
    postgresql_with={"fillfactor": "50"},
)

workers = Table(
    "workers",
    metadata,
    _text("worker_id"),
    _text("host"),
    Column("pid", Integer, nullable=False),
    _text("version"),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    _time("started_at"),
    _time("seen_at"),
    _flag("draining"),
    _time("stopped_at", null=True),
    _text("drain_asked_by", null=True),
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
    _flag("paused"),
    Column("running_max", Integer),
    _text("reason", null=True),
    _time("at"),
    _text("actor"),
    PrimaryKeyConstraint("scope", "name"),
    CheckConstraint("scope IN ('queue', 'kind')", name="scope"),
    CheckConstraint("running_max > 0", name="running_max"),
)

#: Who may call the HTTP API. Only a hash of the key itself is kept: a copy of this table opens nothing.
api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", UUID(as_uuid=True), nullable=False),
    Column("prefix", Text, nullable=False, comment="the key's visible beginning: how people name it"),
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the whole key"),
    _text("role"),
    _text("label"),
    Column("account_prefix", Text, comment="only these accounts, by whole segments; null: all"),
    Column("account_id", Text, comment="of a customer's token: its one account"),
    _time("created_at"),
    _text("actor"),
    _time("expires_at", null=True),
    _time("revoked_at", null=True),
    Column("changed_by", Text, comment="who revoked or rotated it"),
    _time("last_used_at", null=True),
    Column("replaces", UUID(as_uuid=True), comment="the key that this one was rotated from"),
    Column("minted_by", UUID(as_uuid=True), comment="of a customer's token: the key that minted it, whose end ends it"),
    PrimaryKeyConstraint("key_id"),
    UniqueConstraint("hash"),
    CheckConstraint("length(hash) = 32", name="hash"),
    CheckConstraint("role IN ('pipeline', 'billing', 'ops', 'product', 'admin', 'viewer', 'customer')", name="role"),
    CheckConstraint("(role = 'customer') = (account_id IS NOT NULL)", name="customer_has_account"),
    CheckConstraint("role <> 'customer' OR expires_at IS NOT NULL", name="customer_expires"),
    CheckConstraint("account_prefix IS NULL OR account_id IS NULL", name="bound_once"),
    _finite("expires_at"),
    postgresql_with={"fillfactor": "70"},
)
Index("api_keys_prefix", api_keys.c.prefix)

#: People in front of the dashboard. A session ends with its key, or after a working day.
sessions = Table(
    "sessions",
    metadata,
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the cookie's secret"),
    Column("key_id", UUID(as_uuid=True), nullable=False),
    _time("created_at"),
    _time("expires_at"),
    PrimaryKeyConstraint("hash"),
    CheckConstraint("length(hash) = 32", name="hash"),
)
Index("sessions_expires_at", sessions.c.expires_at)

#: What a request made that has no reference of its own, so that the same request makes it once.
creations = Table(
    "creations",
    metadata,
    Column("key_id", UUID(as_uuid=True), nullable=False, comment="the key that asked"),
    _text("what"),
    Column("reference", Text, nullable=False, comment="its idempotency key"),
    Column("body_hash", LargeBinary, nullable=False),
    Column("made", Text, nullable=False, comment="what came of it: an id"),
    Column("salt", LargeBinary, nullable=False, comment="opens nothing without the secret of the key that asked"),
    _time("at"),
    PrimaryKeyConstraint("key_id", "what", "reference"),
    CheckConstraint("length(body_hash) = 32 AND length(salt) = 32", name="hashes"),
)
Index("creations_at", creations.c.at)

#: Every change that a person or a key made, with the row before and after. Written by triggers, in the transaction of
#: the change itself, so that no code can forget it; jobs tell their own story in `events`.
audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", BigInteger, Identity(always=True), nullable=False),
    _time("at"),
    _text("actor"),
    Column("what", Text, nullable=False, comment="the table and what was done: controls.update"),
    Column("subject", Text, nullable=False, comment="which row: an account, a queue, a key"),
    _json("before", null=True),
    _json("after", null=True),
    PrimaryKeyConstraint("entry_id"),
)
Index("audit_log_subject", audit_log.c.subject, audit_log.c.entry_id)

#: Voices that a conversion may name: by what right, and who may. Never deleted: jobs name them.
voices = Table(
    "voices",
    metadata,
    _text("name"),
    Column("account_id", Text, nullable=False, comment="whose the clip is"),
    Column("artifact_id", UUID(as_uuid=True), nullable=False, comment="a clip of the voice alone"),
    Column("licence", Text, nullable=False, comment="by what right it is used"),
    Column("consent", Text, nullable=False, comment="who agreed to it, and where that is kept"),
    _json("statistics"),
    Column("plans", ARRAY(Text), comment="only for these plans; null beside null accounts: for all"),
    Column("accounts", ARRAY(Text), comment="only for these accounts"),
    _time("created_at"),
    _text("actor"),
    _time("removed_at", null=True),
    Column("changed_by", Text, comment="who removed it"),
    PrimaryKeyConstraint("name"),
    ForeignKeyConstraint(["account_id", "artifact_id"], ["artifacts.account_id", "artifacts.artifact_id"]),
    CheckConstraint("licence <> '' AND consent <> ''", name="rights"),
)

duty_runs = Table(
    "duty_runs",
    metadata,
    _text("duty"),
    _time("ran_at"),
    _json("body", null=True),
    PrimaryKeyConstraint("duty"),
    postgresql_with={"fillfactor": "50"},
)
