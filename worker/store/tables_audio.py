"""Tables of audio: what lies in the store, and voices that may be named."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from worker.store.tables_columns import account_id, document, instant, metadata, of_account, words

artifacts = Table(
    "artifacts",
    metadata,
    account_id(),
    Column("artifact_id", UUID(as_uuid=True), nullable=False),
    words("name"),
    words("media_type"),
    words("storage_key"),
    Column("sha256", LargeBinary, nullable=False),
    Column("frames", BigInteger, nullable=False),
    Column("sample_rate", Integer, nullable=False),
    Column("channels", SmallInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    instant("created_at"),
    Column("job_id", UUID(as_uuid=True), comment="of an output"),
    Column("token", UUID(as_uuid=True)),
    words("actor"),
    PrimaryKeyConstraint("account_id", "artifact_id"),
    of_account(),
    CheckConstraint("frames > 0 AND sample_rate > 0 AND channels > 0 AND bytes > 0", name="measured"),
    CheckConstraint("length(sha256) = 32", name="sha256"),
)
Index("artifacts_job", artifacts.c.account_id, artifacts.c.job_id, postgresql_where=text("job_id IS NOT NULL"))
Index("artifacts_artifact_id", artifacts.c.artifact_id)

#: Voices that a conversion may name: by what right, and who may. Never deleted: jobs name them.
voices = Table(
    "voices",
    metadata,
    words("name"),
    Column("account_id", Text, nullable=False, comment="whose the clip is"),
    Column("artifact_id", UUID(as_uuid=True), nullable=False, comment="a clip of the voice alone"),
    Column("licence", Text, nullable=False, comment="by what right it is used"),
    Column("consent", Text, nullable=False, comment="who agreed to it, and where that is kept"),
    document("statistics"),
    Column("plans", ARRAY(Text), comment="only for these plans; null beside null accounts: for all"),
    Column("accounts", ARRAY(Text), comment="only for these accounts"),
    instant("created_at"),
    words("actor"),
    instant("removed_at", null=True),
    Column("changed_by", Text, comment="who removed it"),
    PrimaryKeyConstraint("name"),
    ForeignKeyConstraint(["account_id", "artifact_id"], ["artifacts.account_id", "artifacts.artifact_id"]),
    CheckConstraint("licence <> '' AND consent <> ''", name="rights"),
)
Index("voices_artifact", voices.c.account_id, voices.c.artifact_id)
