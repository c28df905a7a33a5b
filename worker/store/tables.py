"""The schema as values. Migrations build it; a test builds it both ways and compares the two catalogues.

Rules of this schema:
- `account_id` stands in every key of the ledger's and the jobs' tables: every money decision concerns one account.
- No index, as key or predicate, holds a column that claim or settle changes on jobs, lots or reservations, so
  those updates stay heap-only. What duties look for stands in the narrow tables `due`, `live` and `parked`.
- The tables that claim and settle write carry no foreign keys (each would cost a look-up a row); they share
  composite keys, every writer holds the account's lock, and `audit` checks the references.
- Credits are whole, bigint, at most 10^12 a value.

Each area's tables stand in a file of their own; `metadata` has all of them once this one is imported.
"""

from worker.store import (
    tables_accounts,
    tables_audio,
    tables_books,
    tables_events,
    tables_jobs,
    tables_keys,
    tables_ledger,
    tables_operating,
)
from worker.store.tables_columns import metadata

__all__ = [
    "metadata",
    "tables_accounts",
    "tables_audio",
    "tables_books",
    "tables_events",
    "tables_jobs",
    "tables_keys",
    "tables_ledger",
    "tables_operating",
]
