"""Tables of price books and plan books, and of how a draft was tried out."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Identity, Index, Integer, PrimaryKeyConstraint, Table, Text, text

from worker.store.tables_columns import document, instant, metadata, words


def _book(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("book_id", Integer, Identity(always=False), nullable=False),
        Column("document", Text, nullable=False, comment="the TOML as it was applied"),
        Column("digest", Text, nullable=False, comment="sha256 of the document, hex"),
        instant("effective_at"),
        words("author"),
        words("note"),
        instant("created_at"),
        instant("withdrawn_at", null=True),
        words("withdrawn_by", null=True),
        words("withdrawn_note", null=True),
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
    instant("since"),
    instant("until"),
    instant("at"),
    words("actor"),
    document("outcome"),
    PrimaryKeyConstraint("rehearsal_id"),
    Index("rehearsals_digest", "digest", "rehearsal_id"),
)
