"""What metrics tell of the books: every figure with the value that the rows say, seen to move."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.integration.api_support import an_api
from tests.integration.books import ACTOR, Store, opened
from tests.servers import Database
from tests.unit.test_metrics import told
from worker.metrics import Metrics
from worker.store.ops import Controls, Scope
from worker.store.reads_figures import FigureReads
from worker.store.upkeep import Upkeep
from worker.store.workers import WorkerCard, Workers

BOOKS = "fermata_books_"


async def figures(store: Store) -> dict[str, float]:
    """What a process tells of the books after one look, without the prefix of their names."""
    metrics = Metrics("scheduler")
    watch = metrics.watch_books(FigureReads(store.engine))
    looking = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(20):
            while (samples := told(metrics)).get(f"{BOOKS}up") != 1.0:  # noqa: ASYNC110  a look has no event
                await asyncio.sleep(0.01)
    finally:
        looking.cancel()
    return {name.removeprefix(BOOKS): value for name, value in samples.items() if name.startswith(BOOKS)}


async def test_queues_are_told_as_they_stand(database: Database) -> None:
    """Depth by what keeps a job from running, age of the oldest, slots, a pause; each changes with its rows."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.account("poor", 5)
        await store.account("paused", 100)
        await store.queued("ada")
        await database.advance(timedelta(minutes=2))
        await store.queued("ada", run_at=datetime.now(UTC) + timedelta(hours=2))
        parked = await store.queued("poor", on_insufficient="wait")
        await store.claim("poor", parked)
        claimed = await store.running("ada")
        blocked = await store.queued("paused")
        controls = Controls(store.engine, {"generation"})
        await controls.pause(Scope.ACCOUNT, "paused", "fraud", ACTOR)
        await store.claim("paused", blocked)
        await Workers(store.engine).here(WorkerCard("w1", "host", 1, "1", ("generation",), 4))
        before = await figures(store)
        expected = {
            "jobs{queue=generation,where=later}": 1,
            "jobs{queue=generation,where=blocked}": 1,
            "jobs{queue=generation,where=parked}": 1,
            "jobs{queue=generation,where=running}": 1,
            "jobs{queue=generation,where=ready}": 1,
            "slots{queue=generation}": 4,
            "paused{queue=generation}": 0,
            "credits_held": 10,
            "processes{process=worker}": 1,
        }
        assert expected == {name: before.get(name) for name in expected}
        assert 120 <= before["oldest_seconds{queue=generation}"] < 180
        await store.settle("ada", claimed)
        await controls.pause(Scope.QUEUE, "generation", "maintenance", ACTOR)
        after = await figures(store)
        moved = {
            "jobs{queue=generation,where=running}": 0,
            "jobs{queue=generation,where=ready}": 0,
            "jobs{queue=generation,where=blocked}": 2,
            "oldest_seconds{queue=generation}": 0,
            "paused{queue=generation}": 1,
            "credits_held": 0,
        }
        assert moved == {name: after[name] for name in moved}


async def test_expired_credits_audits_and_signs_of_life_are_told(database: Database) -> None:
    """Credits that expired and nobody wrote off yet, what the last audit found and when, who gave a sign and when."""
    async with opened(database) as store:
        await store.account("ada", 70, expires_at=datetime.now(UTC) + timedelta(minutes=30))
        reads, upkeep = FigureReads(store.engine), Upkeep(store.engine)
        fresh = await figures(store)
        assert not {"dispatch_age_seconds", "audit_age_seconds"} & fresh.keys()
        assert (0, 0, 0) == tuple(
            fresh[name] for name in ("credits_expired_unwritten", "ledger_imbalance", "processes{process=scheduler}")
        )
        await reads.here("s1", "scheduler", "host", 1, "1")
        await reads.here("a1", "api", "host", 2, "1")
        await reads.here("a2", "api", "host", 3, "1")
        await upkeep.note("scheduler", {})
        await upkeep.note("audit", {"count": 3})
        alive = await figures(store)
        assert (1, 2, 3) == tuple(
            alive[name] for name in ("processes{process=scheduler}", "processes{process=api}", "audit_violations")
        )
        assert 0 <= alive["dispatch_age_seconds"] < 60
        await database.advance(timedelta(hours=1))
        late = await figures(store)
        assert (70, 0, 0) == tuple(
            late[name]
            for name in ("credits_expired_unwritten", "processes{process=scheduler}", "processes{process=api}")
        )
        assert 3600 <= late["dispatch_age_seconds"] < 3660
        assert 3600 <= late["audit_age_seconds"] < 3660


async def test_a_wrong_ledger_is_told_by_how_much(database: Database) -> None:
    """What lots hold, less what reservations do: made wrong behind the books' back, for they never would."""
    async with opened(database) as store:
        await store.account("ada", 100)
        await store.running("ada", 10)
        assert 0 == (await figures(store))["ledger_imbalance"]
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE lots SET held = held + 7, available = available - 7")
        assert 7 == (await figures(store))["ledger_imbalance"]
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE lots SET held = held - 7, available = available + 7")


async def test_an_api_tells_of_room_and_of_its_event_loop(database: Database, tmp_path: Path) -> None:
    """Bytes that are free where audio is worked on; how late its loop was, once it was kept waiting."""
    async with an_api(database, tmp_path) as api:

        async def samples() -> dict[str, float]:
            return told(api.services.metrics)

        free = (await samples())["fermata_artifact_free_bytes"]
        assert 0.9 < free / shutil.disk_usage(tmp_path).free < 1.1
        late = "fermata_event_loop_lag_seconds_bucket{le=0.1}"
        count = "fermata_event_loop_lag_seconds_count"
        async with asyncio.timeout(20):
            while not (await samples())[count]:  # noqa: ASYNC110  a measurement has no event
                await asyncio.sleep(0.02)
        ends = datetime.now(UTC) + timedelta(seconds=1.3)
        while datetime.now(UTC) < ends:  # holds up the loop, on purpose, past the next measurement
            pass
        async with asyncio.timeout(20):
            while (told_now := await samples())[count] <= told_now[late]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
