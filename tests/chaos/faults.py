"""What the adversary can do, each by its name. Each counts itself, and measures how long recovery took where it can."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import redis

from tests.acceptance.stage import put_prices_in_force
from tests.chaos import kinds
from tests.chaos.theatre import APIS, PATIENT_SECONDS, SCHEDULERS, WORKERS, Theatre
from tests.integration.proxy import Fault as Loss
from tests.integration.proxy import Wire
from worker.queue.hints import HintSender, encode
from worker.queue.layout import SEND, WAKE_TOKENS_MAX, Keys

Fault = Callable[[Theatre, random.Random], Coroutine[Any, Any, None]]
#: Longer than a lease of this deployment.
BEYOND_A_LEASE_SECONDS = 3.0
#: How long a server stays away, unless a profile says otherwise.
AWAY_SECONDS = 3.0

# --- processes

_RECOVERY = {
    "queued again": "SELECT EXISTS (SELECT FROM attempts WHERE job_id = $1 AND attempt >= $2)",
    "running again": "SELECT attempt > $2 OR ended_at IS NOT NULL FROM jobs WHERE job_id = $1",
}


async def kill_worker(theatre: Theatre, dice: random.Random) -> None:
    """kill -9; measures until all that it ran runs again, or has ended."""
    await kill_a_worker_of(theatre, WORKERS)


async def kill_a_worker_of(theatre: Theatre, names: Sequence[str]) -> None:
    """The same, of one of these."""
    await _kill(theatre, await _busiest(theatre, names))


async def _kill(theatre: Theatre, name: str) -> None:
    process = theatre.cast[name]
    running = await _running_in(theatre, process.pid)
    theatre.kill(process)
    killed = monotonic()
    theatre.chronicle.fault("kill -9 of a worker", f"{name} with {len(running)} jobs")
    await asyncio.gather(*(_recovered(theatre, job_id, attempt, killed) for job_id, attempt in running))


async def _recovered(theatre: Theatre, job_id: UUID, attempt: int, killed: float) -> None:
    """Until it is queued again, which is the reaper's doing, and until it runs again, which needs a free slot too.

    An account with a plan has few of those, and its own backlog before them: there only the first counts.
    """
    account = await theatre.value("SELECT account_id FROM jobs WHERE job_id = $1", job_id)
    for what, sql in list(_RECOVERY.items())[: 1 if account in SUBSCRIBED else 2]:
        try:
            await theatre.until(sql, job_id, attempt)
        except TimeoutError as error:
            due = await theatre.ask("SELECT d.*, fermata_now() AS now FROM due AS d WHERE job_id = $1", job_id)
            stands = [dict(row) for row in due]
            theatre.chronicle.violated(f"a job of {account} whose worker was killed is not {what}: {error}; {stands}")
            return
        theatre.chronicle.recoveries[f"kill -9 of a worker → its job is {what}"].append(monotonic() - killed)


async def _busiest(theatre: Theatre, names: Sequence[str] = WORKERS) -> str:
    """One of these workers that runs something, if there is one."""
    rows = await theatre.ask("SELECT worker_id FROM live GROUP BY worker_id ORDER BY count(*) DESC")
    by_pid = {str(theatre.cast[name].pid): name for name in names}
    for (worker_id,) in rows:
        if (name := by_pid.get(worker_id.split("-")[-2])) is not None:
            return name
    return names[0]


async def _running_in(theatre: Theatre, pid: int) -> list[tuple[UUID, int]]:
    rows = await theatre.ask("SELECT job_id, attempt FROM live WHERE worker_id LIKE '%-' || $1 || '-%'", str(pid))
    return [(row["job_id"], row["attempt"]) for row in rows]


async def freeze_worker(theatre: Theatre, dice: random.Random) -> None:
    """SIGSTOP of one that runs something, for longer than its lease; then on it goes."""
    await _freeze(theatre, await _busiest(theatre))


async def freeze(theatre: Theatre, dice: random.Random, among: Sequence[str]) -> None:
    await _freeze(theatre, dice.choice(among))


async def _freeze(theatre: Theatre, name: str) -> None:
    process = theatre.cast[name]
    process.freeze()
    theatre.chronicle.fault(f"SIGSTOP of {_a(name)} beyond a lease", name)
    await asyncio.sleep(BEYOND_A_LEASE_SECONDS)
    process.thaw()


async def term(theatre: Theatre, dice: random.Random, among: Sequence[str]) -> None:
    """A deploy: it drains, then another takes its place."""
    name = dice.choice(among)
    theatre.chronicle.fault(f"SIGTERM of {_a(name)}", name)
    theatre.tell_to_go(theatre.cast[name])


async def kill(theatre: Theatre, dice: random.Random, among: Sequence[str]) -> None:
    name = dice.choice(among)
    theatre.kill(theatre.cast[name])
    theatre.chronicle.fault(f"kill -9 of {_a(name)}", name)


def _a(name: str) -> str:
    return {"worker": "a worker", "scheduler": "a scheduler", "api": "an API"}[name.partition("-")[0]]


async def worker_with_a_wrong_clock(theatre: Theatre, dice: random.Random) -> None:
    """A worker whose clock is hours ahead or behind; it stays until something else ends it."""
    offset = dice.choice(("+2h", "-2h", "+400d"))
    if theatre.enter_with_another_clock(WORKERS[2], offset):
        theatre.chronicle.fault("a worker with a wrong clock", offset)
    else:
        theatre.chronicle.left_undone("a worker with a wrong clock", "Debian's libfaketime is not installed")


# --- Redis


async def flush(theatre: Theatre, dice: random.Random) -> None:
    """FLUSHALL; measures until the first hint is sent again."""
    async with theatre.redis_lock:
        async with theatre.redis as straight:
            await straight.flushall()
        at = await theatre.value("SELECT fermata_now()")
        theatre.chronicle.fault("FLUSHALL")
        # There may be nothing to hint: then any job that starts shows that hints come.
        took = await theatre.until(
            "SELECT EXISTS (SELECT FROM due WHERE hinted_at > $1) OR EXISTS (SELECT FROM live WHERE started_at > $1) "
            "OR NOT EXISTS (SELECT FROM due WHERE not_before < $1 AND waits_for IS NULL)",
            at,
        )
        theatre.chronicle.recoveries["FLUSHALL → first hint"].append(took)


async def restart_redis(theatre: Theatre, dice: random.Random) -> None:
    """kill -9 and up again, with what its append-only file has."""
    async with theatre.redis_lock:
        theatre.valkey.kill()
        theatre.chronicle.fault("Redis killed and started again")
        theatre.valkey.launch()
        await _until(theatre.valkey.is_ready)


async def redis_away(theatre: Theatre, dice: random.Random) -> None:
    async with theatre.redis_lock:
        theatre.valkey.kill()
        theatre.chronicle.fault("Redis away", f"{AWAY_SECONDS:g} s")
        await asyncio.sleep(AWAY_SECONDS)
        theatre.valkey.launch()
        await _until(theatre.valkey.is_ready)


async def fill_redis(theatre: Theatre, dice: random.Random) -> None:
    """maxmemory is reached, for a while."""
    async with theatre.redis_lock, theatre.redis as straight:
        theatre.chronicle.fault("Redis full")
        await straight.config_set("maxmemory", 1)
        await asyncio.sleep(2)
        await straight.config_set("maxmemory", 0)


async def freeze_redis(theatre: Theatre, dice: random.Random) -> None:
    async with theatre.redis_lock:
        pid = theatre.valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        theatre.chronicle.fault("Redis frozen")
        await asyncio.sleep(AWAY_SECONDS)
        os.kill(pid, signal.SIGCONT)


async def redis_in_the_dark(theatre: Theatre, dice: random.Random) -> None:
    theatre.chronicle.fault("black hole before Redis")
    await _dark(theatre.to_redis)


async def slow_redis(theatre: Theatre, dice: random.Random) -> None:
    theatre.chronicle.fault("Redis 100 ms away")
    await _slow(theatre.to_redis)


async def bad_hints(theatre: Theatre, dice: random.Random) -> None:
    """Hints doubled, out of order, late, of nobody's jobs, under another's account; and what is no hint at all."""
    async with theatre.redis_lock:
        known = [(row["account_id"], row["job_id"]) for row in await theatre.ask(
            "SELECT account_id, job_id FROM jobs ORDER BY (ended_at IS NULL) DESC, job_id DESC LIMIT 40"
        )]  # fmt: skip
        dice.shuffle(known)
        forged = [("nobody", uuid4()), ("ada", uuid4()), *((known[0][0], job) for _, job in known[:4])]
        keys = Keys(theatre.stage.settings.namespace)
        try:
            sender = HintSender(theatre.valkey.url(), keys.namespace)
            for pairs in (known, known, forged):
                for queue in ("null", "timed", "gated"):
                    await sender.send({queue: pairs}, per_message=dice.randint(1, 16))
            await sender.close()
            async with theatre.redis as straight:
                names = keys.queue("timed")
                _, good = encode("timed", known[:2])
                rubbish = [
                    b"\x80\x04pickled",
                    b"{}",
                    b"[" * 4000,
                    b"null",
                    good[:-9],
                    good.replace(b"fermata.run", b"else"),
                ]
                for number, body in enumerate(rubbish):
                    await straight.hset(names.messages, f"rubbish-{number}-{uuid4()}", body)
                    await straight.eval(  # as a producer would send it
                        SEND, 3, names.ready, names.messages, names.wake, WAKE_TOKENS_MAX, 1, str(uuid4()), body
                    )
                await straight.rpush(names.ready, "an id without a message")
        except (redis.RedisError, OSError) as error:
            theatre.chronicle.left_undone("bad hints", f"Redis was out of reach ({type(error).__name__})")
            return
        theatre.chronicle.fault("hints doubled, reordered, late", str(2 * 3 * len(known)))
        theatre.chronicle.fault("hints forged", str(3 * len(forged)))
        theatre.chronicle.fault("hints malformed", str(len(rubbish) + 1))


# --- PostgreSQL


async def cut_connections(theatre: Theatre, dice: random.Random) -> None:
    """pg_terminate_backend of all of ours."""
    async with theatre.postgres_lock:
        rows = await theatre.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND usename = current_user AND application_name LIKE 'fermata-%'"
        )
        cut = rows[0][0] + await theatre.stage.cut("application_name LIKE 'fermata-%'")
        theatre.chronicle.fault("all PostgreSQL backends terminated", str(cut))


async def restart_postgres(theatre: Theatre, dice: random.Random) -> None:
    """An immediate shutdown, then recovery; measures until the first commit of ours."""
    await _postgres_away(theatre, 0.0, "PostgreSQL restarted at once (immediate)")


async def postgres_away(theatre: Theatre, dice: random.Random) -> None:
    await _postgres_away(theatre, AWAY_SECONDS, "PostgreSQL away")


async def postgres_away_for_two_minutes(theatre: Theatre, dice: random.Random) -> None:
    await _postgres_away(theatre, 120.0, "PostgreSQL away for 2 minutes")


async def _postgres_away(theatre: Theatre, seconds: float, name: str) -> None:
    async with theatre.postgres_lock:
        at = await theatre.value("SELECT fermata_now()")
        pid = theatre.postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        theatre.chronicle.fault(name)
        await _until(lambda: theatre.postgres.pid is None)
        await asyncio.sleep(seconds)
        back = monotonic()
        theatre.postgres.launch()
        while not theatre.postgres.is_ready():
            if theatre.postgres.pid is None:  # a child of the killed one still holds something
                theatre.postgres.launch()
            await asyncio.sleep(0.02)
        await theatre.until(
            "SELECT EXISTS (SELECT FROM jobs WHERE created_at > $1) OR EXISTS (SELECT FROM journal WHERE at > $1)", at
        )
        theatre.chronicle.recoveries["PostgreSQL started again → first commit"].append(monotonic() - back)


async def postgres_in_the_dark(theatre: Theatre, dice: random.Random) -> None:
    theatre.chronicle.fault("black hole before PostgreSQL")
    await _dark(theatre.to_postgres)


async def slow_postgres(theatre: Theatre, dice: random.Random) -> None:
    theatre.chronicle.fault("PostgreSQL 50 ms away")
    await _slow(theatre.to_postgres, 0.05)


async def lose_a_commit(theatre: Theatre, dice: random.Random) -> None:
    """The COMMIT never arrives."""
    await _lose(theatre, "lose_commit", "a COMMIT lost")


async def lose_an_answer(theatre: Theatre, dice: random.Random) -> None:
    """The COMMIT arrives, its answer does not."""
    await _lose(theatre, "lose_answer", "the answer of a COMMIT lost")


async def _lose(theatre: Theatre, fault: Loss, name: str) -> None:
    before = theatre.to_postgres.lost
    theatre.to_postgres.lose(fault)
    await _until(lambda: theatre.to_postgres.lost > before)
    theatre.chronicle.fault(name)


# --- time, prices, what people do


async def jump_an_hour(theatre: Theatre, dice: random.Random) -> None:
    """The database's clock is set ahead: every lease has lapsed."""
    await _jump(theatre, timedelta(hours=1))
    theatre.chronicle.fault("the database's clock an hour ahead")


async def jump_a_month(theatre: Theatre, dice: random.Random) -> None:
    """Every cycle has ended, every unfinished job is past its time."""
    await _jump(theatre, timedelta(days=31))
    theatre.chronicle.fault("the database's clock a month ahead")


async def _jump(theatre: Theatre, ahead: timedelta) -> None:
    async with theatre.clock_lock:
        before = theatre.ahead_seconds[0]
        after = before + ahead.total_seconds()
        theatre.ahead_seconds = before, after
        await _straight(lambda: theatre.stage.database.advance(ahead))
        theatre.ahead_seconds = after, after


async def end_cycles(theatre: Theatre, dice: random.Random) -> None:
    for account in SUBSCRIBED:
        await _straight(partial(theatre.stage.end_cycle, account))
    theatre.chronicle.fault("cycles ended", str(len(SUBSCRIBED)))


async def end_lives(theatre: Theatre, dice: random.Random) -> None:
    """Too late for all that has not begun."""
    await _straight(theatre.stage.end_lives)
    theatre.chronicle.fault("jobs past their end", "all that waited")


async def change_prices(theatre: Theatre, dice: random.Random) -> None:
    base = str(dice.choice((10, 11, 13)))
    more = kinds.PRICES.replace("10", base)
    await _straight(lambda: put_prices_in_force(theatre.stage.database, more, null=base, failing=base))
    theatre.chronicle.fault("prices changed", f"to {base}")


#: Accounts with a plan, beside those that are given credits.
SUBSCRIBED = ("starter", "creator")


async def _dark(wire: Wire, seconds: float = AWAY_SECONDS) -> None:
    wire.lit.clear()
    await asyncio.sleep(seconds)
    wire.lit.set()


async def _slow(wire: Wire, seconds: float = 0.1) -> None:
    wire.delay_seconds = seconds
    await asyncio.sleep(AWAY_SECONDS)
    wire.delay_seconds = 0.0


async def _straight(act: Callable[[], Awaitable[object]]) -> None:
    """Do it past the proxy, once PostgreSQL is there."""
    while True:
        try:
            await act()
            return
        except (asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError, OSError):
            await asyncio.sleep(0.1)


async def _until(condition: Callable[[], object], seconds: float = PATIENT_SECONDS) -> None:
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError("the adversary waits in vain")
        await asyncio.sleep(0.02)


#: Every fault, with how often a minute it is drawn at random.
FAULTS: dict[str, tuple[Fault, float]] = {
    "kill_worker": (kill_worker, 12),
    "freeze_worker": (freeze_worker, 8),
    "term_worker": (partial(term, among=WORKERS), 4),
    "kill_scheduler": (partial(kill, among=SCHEDULERS), 4),
    "freeze_scheduler": (partial(freeze, among=SCHEDULERS), 2),
    "term_scheduler": (partial(term, among=SCHEDULERS), 2),
    "kill_api": (partial(kill, among=APIS), 3),
    "freeze_api": (partial(freeze, among=APIS), 1),
    "term_api": (partial(term, among=APIS), 2),
    "worker_with_a_wrong_clock": (worker_with_a_wrong_clock, 2),
    "flush": (flush, 4),
    "restart_redis": (restart_redis, 2),
    "redis_away": (redis_away, 1),
    "fill_redis": (fill_redis, 2),
    "freeze_redis": (freeze_redis, 1),
    "redis_in_the_dark": (redis_in_the_dark, 1),
    "slow_redis": (slow_redis, 1),
    "bad_hints": (bad_hints, 4),
    "cut_connections": (cut_connections, 8),
    "restart_postgres": (restart_postgres, 2),
    "postgres_away": (postgres_away, 1),
    "postgres_in_the_dark": (postgres_in_the_dark, 1),
    "slow_postgres": (slow_postgres, 2),
    "lose_a_commit": (lose_a_commit, 5),
    "lose_an_answer": (lose_an_answer, 6),
    "jump_an_hour": (jump_an_hour, 1),
    "end_cycles": (end_cycles, 5),
    "change_prices": (change_prices, 4),
}
#: What is only done where there is time for it.
LONG_FAULTS: dict[str, Fault] = {
    "postgres_away_for_two_minutes": postgres_away_for_two_minutes,
    "jump_a_month": jump_a_month,
}
