"""Dispatch over a big backlog: what a look costs with 500,000 jobs queued by 1,000 accounts of three plans.

Beside a look over 2,000 jobs on the same server in the same minute: the ratio says whether the backlog costs anything.
"""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter

import asyncpg

from benchmarks.report import Figure, figure_of
from config.settings import load
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.store.database import make_engine
from worker.store.dispatching import Dispatching

BACKLOG, LITTLE, ACCOUNTS, PLANS = 500_000, 2_000, 1_000, 3
#: Jobs a look has room for, and looks a round.
ROOM, LOOKS = 64, 30


def measured(servers: LocalServers, rounds: int) -> list[Figure]:
    """Looks over the big queue against looks over the small one, taken in turn."""
    return asyncio.run(_measured(servers, rounds))


async def _measured(servers: LocalServers, rounds: int) -> list[Figure]:
    owner = await asyncpg.connect(dsn(servers.owner_database_url))
    engine = make_engine(load({}, database_url=servers.database_url), name="benchmark")
    try:
        for queue, jobs in (("big", BACKLOG), ("small", LITTLE * rounds)):
            await owner.execute(_FILL, queue, jobs, ACCOUNTS, PLANS)
        await owner.execute("ANALYZE due")
        dispatching = Dispatching(engine)
        pairs = []
        for _ in range(rounds):
            big, small = [], []
            for _ in range(LOOKS):
                small.append(await _look(dispatching, "small"))
                big.append(await _look(dispatching, "big"))
            pairs.append((median(big), median(small)))
    finally:
        await engine.dispose()
        await owner.close()
    batches = f"{ROOM} of {BACKLOG:,} queued jobs, {ACCOUNTS:,} accounts, {PLANS} priorities"
    figure = figure_of("dispatch_backlog", "ms a look", pairs, against=f"a look over {LITTLE:,} jobs", batches=batches)
    return [figure]


async def _look(dispatching: Dispatching, queue: str) -> float:
    """Milliseconds of one look, its COMMIT included."""
    started = perf_counter()
    marked = await dispatching.mark(queue, ROOM, 15.0)
    assert len(marked.pairs) == ROOM, f"{len(marked.pairs)} jobs marked"
    return 1000 * (perf_counter() - started)


_FILL = """
    INSERT INTO due (account_id, job_id, queue, kind, priority, turn, since, not_before, ends_by)
    SELECT 'a' || n % $3, gen_random_uuid(), $1, 'k', n % $3 % $4, n / $3, now(), now(), now() + interval '1 day'
    FROM generate_series(1, CAST($2 AS integer)) AS n
"""
