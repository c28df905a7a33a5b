"""Tables of who may come in over HTTP, and of what their requests made."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, LargeBinary, PrimaryKeyConstraint, Table, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import UUID

from worker.store.tables_columns import finite, instant, metadata, words

#: Who may call the HTTP API. Only a hash of the key itself is kept: a copy of this table opens nothing.
api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", UUID(as_uuid=True), nullable=False),
    Column("prefix", Text, nullable=False, comment="the key's visible beginning: how people name it"),
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the whole key"),
    words("role"),
    words("label"),
    Column("account_prefix", Text, comment="only these accounts, by whole segments; null: all"),
    Column("account_id", Text, comment="of a customer's token: its one account"),
    instant("created_at"),
    words("actor"),
    instant("expires_at", null=True),
    instant("revoked_at", null=True),
    Column("changed_by", Text, comment="who revoked or rotated it"),
    instant("last_used_at", null=True),
    Column("replaces", UUID(as_uuid=True), comment="the key that this one was rotated from"),
    Column("minted_by", UUID(as_uuid=True), comment="of a customer's token: the key that minted it, whose end ends it"),
    PrimaryKeyConstraint("key_id"),
    UniqueConstraint("hash"),
    CheckConstraint("length(hash) = 32", name="hash"),
    CheckConstraint("role IN ('pipeline', 'billing', 'ops', 'product', 'admin', 'viewer', 'customer')", name="role"),
    CheckConstraint("(role = 'customer') = (account_id IS NOT NULL)", name="customer_has_account"),
    CheckConstraint("role <> 'customer' OR expires_at IS NOT NULL", name="customer_expires"),
    CheckConstraint("account_prefix IS NULL OR account_id IS NULL", name="bound_once"),
    finite("expires_at"),
    postgresql_with={"fillfactor": "70"},
)
Index("api_keys_prefix", api_keys.c.prefix)

#: People in front of the dashboard. A session ends with its key, or after a working day.
sessions = Table(
    "sessions",
    metadata,
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the cookie's secret"),
    Column("key_id", UUID(as_uuid=True), nullable=False),
    instant("created_at"),
    instant("expires_at"),
    PrimaryKeyConstraint("hash"),
    CheckConstraint("length(hash) = 32", name="hash"),
)
Index("sessions_expires_at", sessions.c.expires_at)

#: What a request made that has no reference of its own, so that the same request makes it once.
creations = Table(
    "creations",
    metadata,
    Column("key_id", UUID(as_uuid=True), nullable=False, comment="the key that asked"),
    words("what"),
    Column("reference", Text, nullable=False, comment="its idempotency key"),
    Column("body_hash", LargeBinary, nullable=False),
    Column("made", Text, nullable=False, comment="what came of it: an id"),
    Column("salt", LargeBinary, nullable=False, comment="opens nothing without the secret of the key that asked"),
    instant("at"),
    PrimaryKeyConstraint("key_id", "what", "reference"),
    CheckConstraint("length(body_hash) = 32 AND length(salt) = 32", name="hashes"),
)
Index("creations_at", creations.c.at)
