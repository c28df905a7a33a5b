"""What ten million entries and a million jobs cost, beside the same with a hundredth of both."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import psutil
import uuid_utils.compat as uuids

from benchmarks.aged import MONTHS, Size, past_made
from benchmarks.crew import Desk
from benchmarks.report import Figure
from benchmarks.server import measured_servers
from benchmarks.stock import Asked
from config.settings import Settings
from worker.boot import opened_store
from worker.credits.operations import Claim, Claimed, Settle
from worker.credits.outcomes import Ending
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.store.audit import audit
from worker.store.pruning import Pruning
from worker.store.reads import Reads
from worker.store.reads_overview import OverviewReads

LARGE = Size(entries=10_000_000, jobs=1_000_000, accounts=20_000)
SMALL = Size(entries=100_000, jobs=10_000, accounts=200)
#: What should be flat may take so much longer in the large database.
FLAT_MAX = 1.5
#: Entries a second of an audit that takes the word of checkpoints.
AUDIT_RATE_MIN = 200_000
#: Claims and settles that are measured one by one, and looks.
_PAIRS, _LOOKS, _BALANCES, _SAMPLE_SECONDS = 1_500, 15, 150, 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """One database, in seconds and megabytes."""

    reserve_p50: float
    reserve_p99: float
    settle_p99: float
    look: float
    balance: float
    full: float
    since: float
    #: Of the server processes that audit, beside what all share, at their peak.
    audit_mb: float
    entries: int
    read_since: int
    close: float
    pruned_per_s: float
    made: float
    gigabytes: float


def measured() -> list[Figure]:
    """Both, the small one first."""
    found = []
    for size in (SMALL, LARGE):
        with measured_servers() as servers:
            found.append(asyncio.run(_measured(servers, size)))
    small, large = found
    rate = large.entries / large.since
    pruned = large.pruned_per_s / small.pruned_per_s
    return [
        _flat("growth_reserve_p50_ms", 1000 * large.reserve_p50, 1000 * small.reserve_p50),
        _flat("growth_reserve_p99_ms", 1000 * large.reserve_p99, 1000 * small.reserve_p99),
        _flat("growth_settle_p99_ms", 1000 * large.settle_p99, 1000 * small.settle_p99),
        _flat("growth_look_ms", 1000 * large.look, 1000 * small.look),
        _flat("growth_balance_ms", 1000 * large.balance, 1000 * small.balance),
        Figure(
            "growth_audit_since_per_s",
            rate,
            "entries/s",
            AUDIT_RATE_MIN,
            rate / AUDIT_RATE_MIN,
            f"{large.entries:,} entries in {large.since:.1f} s, of which {large.read_since:,} were read",
        ),
        Figure(
            "growth_audit_full_per_s",
            large.entries / large.full,
            "entries/s",
            small.entries / small.full,
            None,
            f"all read, and each checkpoint held against them: {large.full:.1f} s",
        ),
        _flat("growth_audit_mb", large.audit_mb, small.audit_mb, "MB"),
        Figure(
            "growth_close_per_s",
            large.entries / large.close,
            "entries/s",
            None,
            None,
            f"checkpoints of {MONTHS - 1} months in {large.close:.1f} s",
        ),
        Figure(
            "growth_prune_jobs_per_s",
            large.pruned_per_s,
            "jobs/s",
            small.pruned_per_s,
            FLAT_MAX * pruned,
            f"with all of theirs, {pruned:.2f} × the small one; at least 1 / {FLAT_MAX}",
        ),
        Figure("growth_gb", large.gigabytes, "GB", small.gigabytes, None, f"made in {large.made:.0f} s"),
    ]


def _flat(name: str, large: float, small: float, unit: str = "ms") -> Figure:
    """Met while the large one is not above `FLAT_MAX` times the small one."""
    ratio = FLAT_MAX * small / large
    return Figure(name, large, unit, small, ratio, f"{large / small:.2f} × the small one; at most {FLAT_MAX}")


async def _measured(servers: LocalServers, size: Size) -> Measured:
    assert servers.postgres is not None
    superuser = (
        f"{dsn(servers.postgres.superuser_url).rpartition('/')[0]}/{dsn(servers.database_url).rpartition('/')[2]}"
    )
    started = time.monotonic()
    await past_made(superuser, size)
    made = time.monotonic() - started
    settings = Settings(database_url=servers.database_url, jobs_kept_days=30, journal_kept_days=60)
    reserves, settles = await _pairs(servers.database_url, size)
    async with opened_store(settings, "fermata-bench") as store:
        overview, reads, pruning = OverviewReads(store.engine), Reads(store.engine), Pruning(store.engine, settings)
        look = await _median(lambda: _ended(overview))
        balance = await _median(lambda: reads.balance("account-7"), _BALANCES)
        started = time.monotonic()
        while await pruning.close_month():
            pass
        close = time.monotonic() - started
        full, audit_mb = await _audited(superuser, store.engine, since_checkpoints=False)
        since, since_mb = await _audited(superuser, store.engine, since_checkpoints=True)
        pruned_per_s = await _pruned(pruning)
    entries, read_since, gigabytes = await _counted(superuser)
    return Measured(
        reserve_p50=statistics.median(reserves),
        reserve_p99=_p99(reserves),
        settle_p99=_p99(settles),
        look=look,
        balance=balance,
        full=full,
        since=since,
        audit_mb=max(audit_mb, since_mb),
        entries=entries,
        read_since=read_since,
        close=close,
        pruned_per_s=pruned_per_s,
        made=made,
        gigabytes=gigabytes,
    )


async def _pairs(url: str, size: Size) -> tuple[list[float], list[float]]:
    """Seconds of claims and of settles, one after the other, of accounts all over."""
    desk = Desk.opened(url)
    reserves, settles = [], []
    for number in range(_PAIRS):
        account = f"account-{1 + number * 7919 % size.accounts}"
        submitted = await desk.submits.do(Asked(account, str(uuids.uuid7())))
        started = time.perf_counter()
        claimed = await desk.operations.do(Claim(account, submitted.job_id, uuids.uuid7(), "w1", 30))
        claimed_at = time.perf_counter()
        assert isinstance(claimed, Claimed)
        await desk.operations.do(Settle(account, submitted.job_id, claimed.token, Ending.ENGINE_ERROR, claimed=claimed))
        settles.append(time.perf_counter() - claimed_at)
        reserves.append(claimed_at - started)
    await desk.close()
    return reserves, settles


async def _audited(superuser: str, engine: Any, *, since_checkpoints: bool) -> tuple[float, float]:
    """Seconds of an audit that finds nothing, and megabytes of the server process that it kept busy."""
    watching = asyncio.create_task(_peak_mb(superuser))
    started = time.monotonic()
    found = await audit(engine, since_checkpoints=since_checkpoints)
    seconds = time.monotonic() - started
    assert found.ok, found.violations[:5]
    watching.cancel()
    return seconds, await watching


async def _peak_mb(superuser: str) -> float:
    """Of the auditing process and those that help it, until cancelled."""
    connection = await asyncpg.connect(superuser)
    peak = 0.0
    try:
        while True:
            pids = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'fermata audit'")
            own = 0
            for (pid,) in pids:
                try:
                    own += psutil.Process(pid).memory_full_info().uss
                except psutil.Error:
                    continue
            peak = max(peak, own / 1024**2)
            await asyncio.sleep(_SAMPLE_SECONDS)
    except asyncio.CancelledError:
        return peak
    finally:
        await connection.close()


async def _pruned(pruning: Pruning) -> float:
    """Jobs a second over some parts; a small database may have fewer."""
    started, gone = time.monotonic(), 0
    after: datetime | None = None
    for _ in range(30):
        part = await pruning.jobs(after)
        gone, after = gone + part.gone, part.next
        if after is None:
            break
    return gone / (time.monotonic() - started)


async def _counted(superuser: str) -> tuple[int, int, float]:
    connection = await asyncpg.connect(superuser)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM journal "
            "WHERE at >= (SELECT max(ends_at) FROM journal_months)), pg_database_size(current_database()) / 1e9"
        )
        return int(row[0]), int(row[1]), float(row[2])
    finally:
        await connection.close()


async def _ended(overview: OverviewReads) -> None:
    now = await overview.clock()
    await overview.look(windows=[(now - timedelta(minutes=60), now)])


async def _median(read: Callable[[], Awaitable[Any]], times: int = _LOOKS) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await read()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[round(0.99 * len(seconds)) - 1]


if __name__ == "__main__":  # one small database alone, to try the statements out
    with measured_servers() as servers:
        factor = int(os.environ.get("GROWTH_PART", "100"))
        part = Size(LARGE.entries // factor, LARGE.jobs // factor, LARGE.accounts // factor)
        print(asyncio.run(_measured(servers, part)))
