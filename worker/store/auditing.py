"""An audit whose verdict is kept: the command, the dashboard and metrics tell of one and the same last run."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.audit import Audit, audit
from worker.store.reads_receipts import QuotedUsage, no_usage
from worker.store.upkeep import Upkeep

#: Violations that are kept with the verdict; one is bad enough.
_KEPT_MAX = 50


async def audited(
    engine: AsyncEngine, actor: str, *, since_checkpoints: bool = False, quoted_usage: QuotedUsage = no_usage
) -> Audit:
    """Re-derive every promise from the database and note what was found, and by whom.

    Raises `StoreError` also where only the note could not be written: then nobody else heard of the verdict.
    """
    found = await audit(engine, since_checkpoints=since_checkpoints, quoted_usage=quoted_usage)
    verdict = {
        "ok": found.ok,
        "lots": found.lots,
        "entries": found.entries,
        "violations": [asdict(one) for one in found.violations[:_KEPT_MAX]],
        "count": len(found.violations),
        "by": actor,
    }
    await Upkeep(engine).note("audit", verdict)
    return found
