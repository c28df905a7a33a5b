"""The register of worker processes: who serves which queues, with how many slots, seen when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import transaction


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """How a worker process introduces itself."""

    worker_id: str
    host: str
    pid: int
    version: str
    queues: Sequence[str]
    slots: int
    #: Tiers of its queues that it can't make: "kind/tier", "kind/" for a kind's default one.
    lacks: Sequence[str] = ()


class Workers:
    """Written by each process about itself."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def here(self, card: WorkerCard, *, draining: bool = False) -> bool:
        """Say that the process is alive. Also wakes the dispatcher: there may be room now.

        Returns whether somebody asked it to drain.
        """
        values = {
            "worker": card.worker_id,
            "host": card.host,
            "pid": card.pid,
            "version": card.version,
            "queues": list(card.queues),
            "slots": card.slots,
            "draining": draining,
            "lacks": list(card.lacks),
        }
        async with transaction(self._engine, "worker_here") as connection:
            fresh, asked = (await connection.execute(_HERE, values)).one()
            if fresh:
                await connection.execute(text("SELECT pg_notify('fermata_due', '')"))
        return bool(asked)

    async def ask_to_drain(self, worker_id: str, actor: str) -> bool:
        """Have it take no more jobs. False: no such worker is alive."""
        async with transaction(self._engine, "worker_drain") as connection:
            return bool(await connection.scalar(_ASK_TO_DRAIN, {"worker": worker_id, "actor": actor}))

    async def gone(self, worker_id: str) -> None:
        """The process ends in good order."""
        async with transaction(self._engine, "worker_gone") as connection:
            await connection.execute(_GONE, {"worker": worker_id})

    async def forget(self, older_than_seconds: float) -> int:
        """Delete the cards of processes that were not seen for so long."""
        async with transaction(self._engine, "forget_workers") as connection:
            return int((await connection.execute(_FORGET, {"seconds": older_than_seconds})).rowcount)


#: `xmax = 0`: the row is new. Its two times can't tell, the clock goes on between them.
_HERE = text("""
    INSERT INTO workers AS w (worker_id, host, pid, version, queues, slots, started_at, seen_at, draining, lacks)
    VALUES (:worker, :host, :pid, :version, CAST(:queues AS text[]), :slots, fermata_now(), fermata_now(), :draining,
            CAST(:lacks AS text[]))
    ON CONFLICT (worker_id) DO UPDATE
    SET seen_at = fermata_now(), draining = :draining
    RETURNING w.xmax = 0, w.drain_asked_by IS NOT NULL
""")

_ASK_TO_DRAIN = text("""
    UPDATE workers
    SET drain_asked_by = COALESCE(drain_asked_by, :actor)
    WHERE worker_id = :worker
      AND stopped_at IS NULL
      AND seen_at > fermata_now() - interval '1 minute'
    RETURNING 1
""")

_GONE = text("""
    UPDATE workers
    SET stopped_at = fermata_now(), draining = true
    WHERE worker_id = :worker
""")

_FORGET = text("""
    DELETE FROM workers
    WHERE seen_at < fermata_now() - make_interval(secs => :seconds)
""")
