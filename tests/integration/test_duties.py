"""The scheduler's duties on real books: an account that is held or broken holds up nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic

from structlog.testing import capture_logs

from config.settings import Settings, load
from tests.acceptance.stage import until
from tests.integration.books import Store, opened
from tests.servers import Database
from worker.duties.alive import Alive
from worker.duties.dispatch import Dispatch
from worker.duties.expire import Expire
from worker.duties.reap import Reap
from worker.duties.wake import Wake
from worker.queue.hints import HintSender
from worker.scheduler import Duty, Scheduler
from worker.sign_of_life import SignOfLife
from worker.store.reads_figures import FigureReads
from worker.store.reads_overview import OverviewReads
from worker.store.upkeep import Upkeep
from worker.web.dashboard.figures import figures_of
from worker.web.dashboard.live import Live

#: Of the scheduler and of the workers.
LEASE_SECONDS = 1.0
#: Until a job is queued again after its lease lapsed. Far less than the 3 s for which a lock is waited for.
REAPED_SECONDS = 1.5


@asynccontextmanager
async def held(database: Database, account_id: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Another session holds the account, until what this yields is called."""
    async with database.connection() as connection:
        await connection.execute("BEGIN")
        await connection.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR UPDATE", account_id)
        yield lambda: connection.execute("ROLLBACK")


@asynccontextmanager
async def scheduled(*duties: Duty) -> AsyncIterator[None]:
    """A scheduler runs these."""
    running = asyncio.create_task(Scheduler(duties).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


def short_times() -> Settings:
    return load(
        {},
        environment="test",
        lease_seconds=LEASE_SECONDS,
        renew_seconds=0.2,
        idle_transaction_seconds=0.5,
        reap_tick_seconds=0.05,
        expire_tick_seconds=0.05,
        hint_repeat_seconds=0.1,
    )


async def test_a_redis_that_is_away_shows_beside_a_living_scheduler(database: Database, redis_url: str) -> None:
    """Given Redis stops answering, then the scheduler's sign stays young, and since when no hint went out is told.

    On the overview it is told in words.
    """
    settings = short_times()
    async with opened(database) as store:
        figures = FigureReads(store.engine)

        async def told(dispatch: Dispatch) -> tuple[float, float]:
            await dispatch.run()
            await Alive(Upkeep(store.engine), dispatch, a_sign(figures), settings).run()
            seen = await figures.figures()
            assert seen.dispatch_seconds is not None
            assert seen.hints_seconds is not None
            return seen.dispatch_seconds, seen.hints_seconds

        async def words() -> str:
            return " ".join(figures_of(await Live(OverviewReads(store.engine)).latest()).warnings)

        reached = HintSender(redis_url, "duties")
        try:
            sign, hints = await told(Dispatch(store.dispatching, reached, settings))
        finally:
            await reached.close()
        assert max(sign, hints) < 30
        assert "Redis" not in await words()
        await database.advance(timedelta(minutes=2))
        away = HintSender("redis://127.0.0.1:1/0", "duties")
        try:
            sign, hints = await told(Dispatch(store.dispatching, away, settings))
        finally:
            await away.close()
        assert sign < 30
        assert 120 <= hints < 150
        assert "No hint has reached Redis for 2 min" in await words()


async def test_a_scheduler_that_never_reached_redis_is_told_of(database: Database) -> None:
    """On books that are new: since the oldest living scheduler was started."""
    async with opened(database) as store:
        figures = FigureReads(store.engine)
        assert (await figures.figures()).hints_seconds is None
        await a_sign(figures).give()
        await database.advance(timedelta(minutes=2))
        await a_sign(figures).give()
        seen = (await figures.figures()).hints_seconds
        assert seen is not None
        assert 120 <= seen < 150


def a_sign(figures: FigureReads) -> SignOfLife:
    return SignOfLife(figures, "s1", "scheduler", "1", 10.0)


async def an_overdue_job(store: Store, account_id: str) -> None:
    """Queued in an account of its own, and past its `ends_by`."""
    await store.queued(await store.account(account_id, 100), job_seconds=1800)
    await store.database.advance(timedelta(hours=1))


async def assert_reaped_in_time(store: Store, account_id: str) -> None:
    """A job whose worker is never heard of again is queued again soon after its lease has lapsed."""
    job_id = await store.queued(await store.account(account_id, 100))
    claimed_at = monotonic()
    await store.claim(account_id, job_id, lease=LEASE_SECONDS)
    async with scheduled(Reap(store.leases, store.operations, short_times())):
        await until(
            lambda: store.value("SELECT state = 'queued' FROM jobs WHERE job_id = $1", job_id),
            "queued again",
            LEASE_SECONDS + REAPED_SECONDS,
        )
    assert monotonic() - claimed_at >= LEASE_SECONDS


async def test_a_held_account_holds_up_nobody_elses_reaping(database: Database) -> None:
    """Given an overdue job in an account that is held all the time, then others are reaped as if it were not there."""
    async with opened(database) as store:
        await an_overdue_job(store, "held")
        async with held(database, "held"):
            await assert_reaped_in_time(store, "bob")


async def test_a_broken_account_holds_up_nobody_elses_reaping(database: Database) -> None:
    """Given an overdue job whose page can't be read, then others are reaped, and nobody waits a lease for it."""
    async with opened(database) as store:
        await an_overdue_job(store, "broken")
    async with database.connection(as_owner=True) as owner:
        await owner.execute(
            "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
            "SELECT document, 'other', effective_at + interval '1 second', author, note, created_at FROM price_books"
        )
        await owner.execute("UPDATE price_books SET document = '[' WHERE book_id = (SELECT book_id FROM jobs LIMIT 1)")
    async with opened(database) as store:
        with capture_logs() as logs:
            await assert_reaped_in_time(store, "bob")
    assert [("reap", "broken")] == [(one["duty"], one["account_id"]) for one in logs if one["log_level"] == "error"]


async def test_a_held_account_is_reaped_once_it_is_let_go(database: Database) -> None:
    """It was only late itself."""
    async with opened(database) as store:
        await an_overdue_job(store, "held")
        reap = Reap(store.leases, store.operations, short_times())
        async with held(database, "held") as let_go, scheduled(reap):
            await until(lambda: store.operations.figures.alone, "waits for the account")
            await let_go()
            await until(lambda: store.value("SELECT ended_at IS NOT NULL FROM jobs"), "ended", 2)


async def test_a_held_account_holds_up_nobody_elses_expiry(database: Database) -> None:
    """Given expired lots of several accounts, one of them held, then all others are closed meanwhile, and it after."""
    async with opened(database) as store:
        for account_id in ("ada", "bob", "held"):
            await store.account(account_id)
        for account_id in ("bob", "held"):
            await a_lot_for_an_hour(store, account_id)
        await database.advance(timedelta(hours=2))
        expire = Expire(Upkeep(store.engine), store.operations, short_times())
        async with held(database, "held") as let_go, scheduled(expire):
            await until(lambda: is_closed(store, "bob"), "bob's is closed")
            await a_lot_for_an_hour(store, "ada")
            await database.advance(timedelta(hours=2))
            await until(lambda: is_closed(store, "ada"), "ada's is closed in a later look", 2)
            assert not await is_closed(store, "held")
            await let_go()
            await until(lambda: is_closed(store, "held"), "closed once it was let go", 2)


async def test_a_held_account_holds_up_nobody_elses_waiting_jobs(database: Database) -> None:
    """Given waiting jobs whose credits came unseen, one in a held account, then the others are queued meanwhile."""
    async with opened(database) as store:
        for account_id in ("ada", "bob", "held"):
            await a_waiting_job(store, account_id)
        for account_id in ("bob", "held"):
            await credits_come_unseen(database, account_id)
        wake = Wake(Upkeep(store.engine), store.dispatching, store.operations, short_times())
        async with held(database, "held") as let_go, scheduled(wake):
            await until(lambda: is_queued(store, "bob"), "bob's is queued")
            await credits_come_unseen(database, "ada")
            await until(lambda: is_queued(store, "ada"), "ada's is queued in a later look", 2)
            assert not await is_queued(store, "held")
            await let_go()
            await until(lambda: is_queued(store, "held"), "queued once it was let go", 2)


async def test_a_look_at_waiting_accounts_goes_on_where_the_last_one_ended(database: Database) -> None:
    """However many wait in vain, those behind them are looked at too."""
    async with opened(database) as store:
        for account_id in ("ada", "bob", "cleo"):
            await a_waiting_job(store, account_id)
        upkeep = Upkeep(store.engine)
        assert ["ada", "bob"] == await upkeep.accounts_waiting("", 2)
        assert ["cleo"] == await upkeep.accounts_waiting("bob", 2)


async def test_expiry_is_written_once(database: Database) -> None:
    """Given twenty looks at once, from two schedulers, then one entry says what expired, and nothing is complained."""
    async with opened(database) as one, opened(database) as other:
        await one.account("ada")
        await a_lot_for_an_hour(one, "ada")
        await database.advance(timedelta(hours=2))
        duties = [Expire(Upkeep(store.engine), store.operations, short_times()) for store in (one, other)]
        with capture_logs() as logs:
            await asyncio.gather(*(duty.run() for duty in duties * 10))
            await one.operations.close()
            await other.operations.close()
        assert [("expire", 100)] == [
            tuple(row) for row in await one.fetch("SELECT move, amount FROM journal WHERE move <> 'grant'")
        ]
        assert await is_closed(one, "ada")
        assert [] == logs


async def a_lot_for_an_hour(store: Store, account_id: str) -> None:
    """100 credits."""
    expires_at = await store.value("SELECT fermata_now() + interval '1 hour'")
    await store.accounts.grant(account_id, 100, f"{account_id}'s", "test", expires_at=expires_at)


async def is_closed(store: Store, account_id: str) -> bool:
    """Whether all its lots are."""
    return bool(await store.value("SELECT bool_and(closed) FROM lots WHERE account_id = $1", account_id))


async def a_waiting_job(store: Store, account_id: str) -> None:
    """Of an account that can't pay it."""
    await store.account(account_id, 1)
    await store.claim(account_id, await store.queued(account_id, 10, on_insufficient="wait"))


async def credits_come_unseen(database: Database, account_id: str) -> None:
    """Behind the back of those who wake waiting jobs."""
    async with database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE lots SET granted = 10, available = 10 WHERE account_id = $1", account_id)


async def is_queued(store: Store, account_id: str) -> bool:
    """Whether its job is."""
    return bool(await store.value("SELECT state = 'queued' FROM jobs WHERE account_id = $1", account_id))
