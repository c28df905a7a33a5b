"""Credits as sold: 100,000 cycles that end in the same minute, and an account with a long past."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, perf_counter

import asyncpg
import uuid_utils.compat as uuids

from benchmarks.crew import Desk, together
from benchmarks.ledger import Hold, Spend
from benchmarks.report import Figure
from benchmarks.stock import ACTOR, PRICE, JobKey, accounts_made, drift, jobs_queued
from config.settings import load
from worker.credits.operations import Claim, Claimed, Settle
from worker.credits.outcomes import Ending
from worker.duties.cycles import Cycles
from worker.local.roles import dsn
from worker.store.upkeep import Upkeep

#: Accounts whose cycles end at once, and others that go on reserving meanwhile.
DUE = 100_000
RESERVING = 2_000
#: Reserves a second, and lanes that share them: a busy product, not a full machine.
PACE, LANES = 100.0, 10
USUAL_SECONDS = 15.0
#: The long past: closed lots, and the pairs of reserve and commit that emptied each.
CLOSED_LOTS, PAIRS_A_LOT = 10_000, 50
CLAIMS_A_ROUND = 1_500


async def turn_or_reserve(desk: Desk, part: tuple[str, str]) -> int:
    """One process's part: `turn` all cycles as a scheduler does, or `reserve`, for a time or until all are turned."""
    what, told = part
    if what == "turn":
        return await _turn(desk)
    async with asyncio.timeout(1_000):
        return await _reserve(desk, Path(told), until_turned=what == "reserve until turned")


async def _turn(desk: Desk) -> int:
    duty = Cycles(Upkeep(desk.engine), desk.operations, load({}))
    while True:
        if not await _are_due(desk):
            return DUE
        # As the scheduler waits: soon again while there are more.
        await asyncio.sleep(min(0.1, await duty.run()))


async def _are_due(desk: Desk) -> bool:
    return bool(await Upkeep(desk.engine).accounts_to_turn(1))


async def _reserve(desk: Desk, told: Path, *, until_turned: bool) -> int:
    """At its pace; the milliseconds of each reserve go to the file `told`."""
    taken: list[float] = []
    going = True

    async def lane(number: int) -> None:
        place = number
        while going:
            begun = perf_counter()
            held = await desk.operations.do(Hold(f"customer-{place % RESERVING:05d}", uuids.uuid7()))
            taken.append(1000 * (perf_counter() - begun))
            await desk.operations.do(Spend(f"customer-{place % RESERVING:05d}", held, PRICE))
            place += LANES
            await asyncio.sleep(max(0.0, LANES / PACE - (perf_counter() - begun)))

    lanes = [asyncio.create_task(lane(number)) for number in range(LANES)]
    ends = monotonic() + USUAL_SECONDS
    while going:
        await asyncio.sleep(0.2)
        going = await _are_due(desk) if until_turned else monotonic() < ends
    await asyncio.gather(*lanes)
    _tell(told, taken)
    return len(taken)


async def claims(desk: Desk, part: tuple[Sequence[JobKey], str]) -> int:
    """Claim these one after the other, telling the milliseconds of each by account; settle each."""
    jobs, told = part
    taken: dict[str, list[float]] = {}
    for account_id, job_id in jobs:
        token = uuids.uuid7()
        begun = perf_counter()
        claimed = await desk.operations.do(Claim(account_id, job_id, token, "benchmark", 30.0))
        taken.setdefault(account_id, []).append(1000 * (perf_counter() - begun))
        assert isinstance(claimed, Claimed), claimed
        await desk.operations.do(Settle(account_id, job_id, token, Ending.SUCCEEDED, measured=PRICE, outputs_due=False))
    _tell(Path(told), taken)
    return len(jobs)


def measured(url: str, owner_url: str, rounds: int) -> list[Figure]:
    """Both figures, and what reserving is like meanwhile. Raises `AssertionError` if the books are not exact."""
    accounts = asyncio.run(accounts_made(url, RESERVING))
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        turns = [_turned(url, owner_url, told, number) for number in range(rounds)]
        fresh, old = accounts[0], accounts[2]  # alike but for the past: one open lot each
        asyncio.run(_statement(owner_url, _LONG_PAST, old, CLOSED_LOTS, PAIRS_A_LOT))
        pasts = [_past(url, told, fresh, old) for _ in range(rounds)]
    wrong = asyncio.run(drift(url))
    assert wrong == 0, f"{wrong} lots or reservations are wrong after the benchmark"
    return list(_figures(turns, pasts))


def _turned(url: str, owner_url: str, told: Path, number: int) -> tuple[float, float, float]:
    """Accounts turned a second; p99 of reserves usually and meanwhile, in milliseconds."""
    together(url, turn_or_reserve, [("reserve", str(told))])
    usual = _p99(json.loads(told.read_text()))
    asyncio.run(_statement(owner_url, _DUE_AT_ONCE, f"due-{number}-", DUE, ACTOR))
    done = together(url, turn_or_reserve, [("turn", ""), ("reserve until turned", str(told))])
    asyncio.run(_assert_turned(url, f"due-{number}-"))
    return DUE / done.seconds, usual, _p99(json.loads(told.read_text()))


def _past(url: str, told: Path, fresh: str, old: str) -> tuple[float, float]:
    """p99 of claims of the fresh account and of the one with a long past, taken in turns."""
    jobs = [asyncio.run(jobs_queued(url, [account], CLAIMS_A_ROUND)) for account in (fresh, old)]
    together(url, claims, [([job for pair in zip(*jobs, strict=True) for job in pair], str(told))])
    taken = json.loads(told.read_text())
    return _p99(taken[fresh]), _p99(taken[old])


def _figures(turns: Sequence[tuple[float, float, float]], pasts: Sequence[tuple[float, float]]) -> Iterator[Figure]:
    yield Figure("cycle_turn", median(turned for turned, *_ in turns), "accounts/s", batches=f"{DUE:,} due at once")
    meanwhile, usual = (median(one[place] for one in turns) for place in (2, 1))
    yield Figure(
        "cycle_turn_reserve_p99",
        meanwhile,
        "ms",
        reference=2 * usual,
        ratio=median(2 * usual / meanwhile for _, usual, meanwhile in turns),
        against="twice the usual p99",
        batches=f"{PACE:g} reserves/s of other accounts",
    )
    fresh, old = (median(one[place] for one in pasts) for place in (0, 1))
    yield Figure(
        "history_ratio",
        old,
        "ms",
        reference=1.2 * fresh,
        ratio=median(1.2 * fresh / old for fresh, old in pasts),
        against="1.2 × the p99 of a fresh account",
        batches=f"{CLOSED_LOTS:,} closed lots, {CLOSED_LOTS * (1 + 2 * PAIRS_A_LOT):,} entries",
    )


def _tell(told: Path, taken: object) -> None:
    told.write_text(json.dumps(taken))


def _p99(taken: Sequence[float]) -> float:
    return quantiles(taken, n=100)[98]


async def _statement(owner_url: str, sql: str, *values: object) -> None:
    """Run it, and do at once what autovacuum would do in the midst of a round."""
    connection = await asyncpg.connect(dsn(owner_url))
    try:
        await connection.execute(sql, *values, timeout=600)
        await connection.execute("VACUUM ANALYZE", timeout=600)
    finally:
        await connection.close()


async def _assert_turned(url: str, prefix: str) -> None:
    """Each of them has its cycle and its lot, once."""
    connection = await asyncpg.connect(dsn(url))
    try:
        counted = await connection.fetchrow(_TURNED, f"{prefix}%", timeout=120)
    finally:
        await connection.close()
    assert tuple(counted) == (DUE, DUE), f"turned {tuple(counted)} of {DUE}"


_DUE_AT_ONCE = """
    WITH made AS (
        INSERT INTO accounts (account_id, created_at, plan, cycle_ends_at, look_at, running_max, actor)
        SELECT $1 || n, fermata_now(), 'creator', ends_at, ends_at, 3, $3
        FROM generate_series(1, $2) AS n
        CROSS JOIN (SELECT date_trunc('minute', fermata_now()) AS ends_at) AS at
        RETURNING account_id, cycle_ends_at
    ), anchored AS (
        INSERT INTO subscriptions (account_id, anchor, updated_at)
        SELECT account_id, (cycle_ends_at AT TIME ZONE 'UTC' - interval '1 month') AT TIME ZONE 'UTC', fermata_now()
        FROM made
        RETURNING account_id, anchor
    )
    INSERT INTO cycles (account_id, starts_at, ends_at, plan, granted_total, skipped, at)
    SELECT account_id, anchor, cycle_ends_at, 'creator', 0, true, fermata_now()
    FROM anchored
    JOIN made USING (account_id)
"""

_TURNED = """
    SELECT (SELECT count(*) FROM cycles WHERE account_id LIKE $1 AND granted_total = 1200),
           (SELECT count(*) FROM lots WHERE account_id LIKE $1 AND available = 1200)
"""

_LONG_PAST = """
    WITH emptied AS (
        INSERT INTO lots (account_id, source, granted, available, spent, created_at, reference, reason, closed)
        SELECT $1, 'topup', $3::int, 0, $3::int, fermata_now() - interval '1 year', 'past-' || n, 'purchase', true
        FROM generate_series(1, $2::int) AS n
        RETURNING lot_id, created_at
    ), told AS (
        INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor)
        SELECT $1, created_at, lot_id, 'grant', $3::int, 'purchase', 'benchmark'
        FROM emptied
    ), jobs AS MATERIALIZED (
        SELECT lot_id, created_at + n * interval '1 day' AS at, gen_random_uuid() AS job_id
        FROM emptied
        CROSS JOIN generate_series(1, $3::int) AS n
    ), held AS (
        INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at,
                                  settled_at, reason)
        SELECT $1, job_id, 1, 'committed', 1, ARRAY[lot_id], ARRAY[1], at, at, 'succeeded'
        FROM jobs
    )
    INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
    SELECT $1, at, lot_id, move, 1, job_id, 'succeeded', 'benchmark'
    FROM jobs
    CROSS JOIN unnest(ARRAY['reserve', 'commit']) AS move
"""
