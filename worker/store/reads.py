"""What people and programs ask of the store: one door for the CLI, the API, the dashboard and the client.

Every read is one read-only snapshot of a handful of indexed statements, and its answer is a frozen value whose
field names are the keys of the public documents. Keys are only ever added.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.credits.subscriptions import FROZEN_LIFE
from worker.store.reads_accounts import AccountReads
from worker.store.reads_events import EventReads
from worker.store.reads_job_lists import JobListReads
from worker.store.reads_jobs import JobReads
from worker.store.reads_queues import QueueReads
from worker.store.reads_receipts import QuotedUsage, ReceiptReads, no_usage

__all__ = ["Reads"]


class Reads(AccountReads, EventReads, JobReads, JobListReads, ReceiptReads, QueueReads):
    """All reads. `quoted_usage` tells a receipt what a quote was made for; only the kinds of jobs know."""

    def __init__(
        self, engine: AsyncEngine, quoted_usage: QuotedUsage = no_usage, frozen_life: timedelta = FROZEN_LIFE
    ) -> None:
        AccountReads.__init__(self, engine, frozen_life)
        EventReads.__init__(self, engine)
        JobReads.__init__(self, engine)
        JobListReads.__init__(self, engine)
        ReceiptReads.__init__(self, engine, quoted_usage)
        QueueReads.__init__(self, engine)
