"""Two deployments, by mistake, on one Redis and namespace: real databases, one Valkey, the dispatch duty of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import redis
from structlog.testing import capture_logs

from config.settings import load
from tests.integration.books import Store, opened
from tests.servers import Database, Servers, fresh_database
from worker.duties import dispatch as duty
from worker.duties.dispatch import Dispatch
from worker.queue.hints import HintSender
from worker.queue.inspection import QueueInspector
from worker.store.workers import WorkerCard, Workers

QUEUE = "generation"
NAMESPACE = "fermata"
KEY = f"{NAMESPACE}:__epoch__"


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at a stranger's namespace at once."""
    monkeypatch.setattr(duty, "_FOREIGN_WAIT_SECONDS", 0.0)


@asynccontextmanager
async def deployed(database: Database, redis_url: str) -> AsyncIterator[tuple[Store, Dispatch]]:
    """A deployment with a worker of many slots and one queued job."""
    async with opened(database) as store:
        card = WorkerCard("w1", "host", 1, "1", (QUEUE,), 16)
        await Workers(store.engine).here(card)
        await store.queued(await store.account("ada", 100))
        sender = HintSender(redis_url, NAMESPACE)
        yield store, Dispatch(store.dispatching, sender, load({}, environment="test"))
        await sender.close()


async def hinted(store: Store) -> int:
    """Jobs with a mark."""
    return int(await store.value("SELECT count(*) FROM due WHERE hinted_at IS NOT NULL"))


async def test_the_second_deployment_sends_nothing_and_says_why(
    servers: Servers, database: Database, redis_url: str, client: redis.Redis
) -> None:
    """Given one that dispatches, then another marks and sends nothing, names key and owner, and disturbs nobody."""
    async with fresh_database(servers) as another, deployed(database, redis_url) as (first, dispatch):
        await dispatch.run()
        assert 1 == await hinted(first)
        async with deployed(another, redis_url) as (second, late):
            with capture_logs() as logs:
                await late.run()
                await late.run()
            assert 0 == await hinted(second)
            ours, theirs = await first.dispatching.deployment(), await second.dispatching.deployment()
            assert ours != theirs
            said = [log for log in logs if log["log_level"] == "error"]
            assert 2 == len(said)
            assert (
                f"{KEY} in Redis belongs to deployment {ours}, which lives, and not to this one, {theirs}"
                in (said[0]["error"])
            )
        with capture_logs() as logs:
            await dispatch.run()
        assert ([], 1, 1) == (logs, await hinted(first), client.llen(f"{NAMESPACE}:{QUEUE}"))


async def test_the_namespace_of_one_that_is_gone_is_taken_over(
    servers: Servers, database: Database, redis_url: str, client: redis.Redis
) -> None:
    """Given an owner of whom nothing is heard, then the other one has it once the mark has ended, and not before."""
    async with fresh_database(servers) as another:
        async with deployed(another, redis_url) as (_, gone):
            await gone.run()
        async with deployed(database, redis_url) as (store, dispatch):
            with capture_logs() as logs:
                await dispatch.run()
            assert (["error"], 0) == ([log["log_level"] for log in logs], await hinted(store))
            client.pexpire(KEY, timedelta(0))
            await dispatch.run()
            assert (1, (await store.dispatching.deployment()).encode()) == (await hinted(store), client.get(KEY))


@pytest.mark.parametrize(
    "how",
    [
        *("flushed", "restarted scheduler", "an older version's mark"),
        *("a mark that lasts for a day", "its own for a day", "no mark at all in its place"),
    ],
)
async def test_one_deployment_alone_is_never_refused(
    database: Database, redis_url: str, client: redis.Redis, how: str
) -> None:
    """Whatever it finds was its own, and what was marked is hinted again where Redis had lost the hint."""
    async with deployed(database, redis_url) as (store, dispatch):
        await dispatch.run()
        match how:
            case "flushed":
                client.flushdb()
            case "restarted scheduler":
                dispatch = Dispatch(store.dispatching, dispatch.sender, dispatch.settings)
            case "a mark that lasts for a day":  # somebody forged it, or the server's clock was set back
                client.flushdb()
                client.set(KEY, "1.6", ex=86_400)
            case "no mark at all in its place":
                client.flushdb()
                client.rpush(KEY, "1.6")
                client.pexpire(KEY, 30_000)
            case "its own for a day":
                client.expire(KEY, 86_400)
            case _:
                client.flushdb()
                client.set(KEY, "0190-an-older-versions")
        with capture_logs() as logs:
            await dispatch.run()
        assert [] == [log for log in logs if log["log_level"] == "error"]
        assert 1 == client.llen(f"{NAMESPACE}:{QUEUE}")
        assert 0 < client.pttl(KEY) <= 60_000


async def test_every_process_of_a_deployment_knows_it_by_one_name(database: Database, redis_url: str) -> None:
    """Whichever role it is connected as; `doctor` reads the same from Redis."""
    async with opened(database) as store, deployed(database, redis_url) as (_, dispatch):
        await dispatch.run()
        inspector = QueueInspector(redis_url, NAMESPACE)
        epoch = (await inspector.server()).epoch
        await inspector.close()
        assert epoch is not None
        assert (KEY, await store.dispatching.deployment()) == (epoch.key, epoch.deployment)
        assert 0 < epoch.seconds <= 60
        async with opened(Database(database.name, database.worker_url, database.owner_url)) as worker:
            assert epoch.deployment == await worker.dispatching.deployment()
