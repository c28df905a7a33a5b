"""What dramatiq and the Redis client do that we rely on, or work around. A failure here after an upgrade means: read
`worker/queue` again, something in it may have become wrong or needless."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
import redis
import structlog
from dramatiq.asyncio import EventLoopThread
from dramatiq.errors import DecodeError
from dramatiq.logging import get_logger

from tests.integration.queue_support import (
    NAMESPACE,
    QUEUE,
    READY,
    NotingServices,
    own_valkey,
    plain_broker,
    push_raw,
    running_worker,
    send,
    some_pairs,
    until,
)
from worker.queue import connection
from worker.queue.broker import MAINTENANCE_CHANCE, make_broker
from worker.queue.loop import LoopThread
from worker.queue.middleware import LogBinding
from worker.slots import Claimed


def a_message(**changes: Any) -> dramatiq.Message[None]:
    fields: dict[str, Any] = {"queue_name": QUEUE, "actor_name": "plain", "args": (), "kwargs": {}, "options": {}}
    return dramatiq.Message(**(fields | changes))


def test_a_hooks_error_is_swallowed_and_the_job_runs(redis_url: str) -> None:
    """So no hook of ours decides anything: a failed reserve would run the job all the same."""

    class Failing(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise RuntimeError("a hook")

    with running_worker(redis_url, middleware=[Failing()]) as services:
        send(redis_url, some_pairs(1))
        until(lambda: len(services.ran) == 1)


def test_dramatiqs_keys_are_where_we_look_for_them(redis_url: str) -> None:
    """`layout` names them; another layout would make every hint invisible."""
    plain = plain_broker(redis_url)
    plain.enqueue(a_message())
    plain.enqueue(a_message())
    with redis.Redis.from_url(redis_url) as client:
        assert sorted(client.keys("*")) == [
            f"{NAMESPACE}:__heartbeats__".encode(),
            READY.encode(),
            f"{READY}.msgs".encode(),
        ]
        consumer = plain.consume(QUEUE, prefetch=1, timeout=1)
        consumer.nack(next(consumer))
        assert client.zcard(f"{READY}.XQ") == 1
        next(consumer)
        assert client.keys(f"{NAMESPACE}:__acks__.{plain.broker_id}.{QUEUE}")


def test_a_malformed_message_strands_those_fetched_with_it(redis_url: str) -> None:
    """dramatiq's own consumer raises and forgets the rest of its batch: why ours decodes by itself."""
    plain = plain_broker(redis_url)
    push_raw(redis_url, b"no JSON")
    for _ in range(3):
        plain.enqueue(a_message())
    consumer = plain.consume(QUEUE, prefetch=4, timeout=1)

    with pytest.raises(DecodeError):
        next(consumer)

    again = plain.consume(QUEUE, prefetch=4, timeout=1)  # as its thread does after an error
    assert next(again) is None
    assert plain.do_qsize(QUEUE) > 0


def test_a_full_server_refuses_even_to_take_and_acknowledge() -> None:
    """dramatiq's script writes a heartbeat first: at maxmemory nothing of it drains, where ours does."""
    with own_valkey() as server, redis.Redis.from_url(server.url()) as client:
        plain = plain_broker(server.url())
        plain.enqueue(a_message())
        client.config_set("maxmemory", "1")
        with pytest.raises(redis.OutOfMemoryError):
            plain.do_fetch(QUEUE, 1)

        ours = make_broker(server.url(), namespace=NAMESPACE, worker=True)
        assert len(ours.take(QUEUE, 1)) == 1
        ours.close()


def test_a_message_of_an_unknown_queue_ends_the_thread_that_runs_it(redis_url: str) -> None:
    """dramatiq acknowledges to the queue that a message names: why our consumer sets it to the one it lay in."""
    broker = plain_broker(redis_url)
    ran = threading.Event()
    dramatiq.actor(ran.set, broker=broker, actor_name="plain", queue_name=QUEUE)  # type: ignore[call-overload]
    ended: list[object] = []
    before, threading.excepthook = threading.excepthook, lambda caught: ended.append(caught.exc_value)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    try:
        push_raw(redis_url, a_message(queue_name="elsewhere").encode())
        until(lambda: ended)
        assert ran.is_set()
        assert [type(error) for error in ended] == [KeyError]
    finally:
        worker.stop(timeout=1000)
        threading.excepthook = before


def test_an_actors_name_can_be_declared_once(redis_url: str) -> None:
    """So one actor serves all queues of a process."""
    broker = plain_broker(redis_url)
    dramatiq.actor(lambda: None, broker=broker, actor_name="twice", queue_name="one")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="already registered"):
        dramatiq.actor(lambda: None, broker=broker, actor_name="twice", queue_name="two")  # type: ignore[call-overload]


def test_dramatiqs_loop_thread_would_keep_a_process_alive() -> None:
    """Its thread is no daemon, so an early exit hangs for ever; ours is one."""
    theirs = EventLoopThread(get_logger("test"))  # type: ignore[no-untyped-call]
    ours = LoopThread()
    try:
        assert (theirs.daemon, ours.daemon) == (False, True)
    finally:
        theirs.loop.close()
        ours.loop.close()


def test_our_broker_hooks_nothing_that_retries_or_limits(redis_url: str) -> None:
    """Retries, delays and limits are rows and SQL: none of dramatiq's middlewares is loaded."""
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    assert [type(middleware) for middleware in broker.middleware] == [LogBinding]
    assert broker.maintenance_chance == MAINTENANCE_CHANCE
    broker.declare_queue(QUEUE)
    assert broker.get_declared_delay_queues() == set()


def test_a_timeout_of_the_redis_client_is_no_connection_error() -> None:
    """dramatiq takes only the latter for a lost connection; we surface both as `away`."""
    assert not issubclass(redis.TimeoutError, redis.ConnectionError)
    for error in (redis.TimeoutError(), redis.ConnectionError(), redis.BusyLoadingError()):
        with pytest.raises(connection.QueueUnavailable, match="away"), connection.surfacing():
            raise error


async def test_our_clients_never_repeat_a_command_by_themselves() -> None:
    """`Redis(host=…)` retries ten times: a silent server would cost a minute a command."""
    url = "redis://127.0.0.1:1/0"
    for pool in (connection.connect(url).connection_pool, connection.connect_async(url).connection_pool):
        options = pool.connection_kwargs
        assert options["retry"].get_retries() == 0
        assert options["socket_timeout"] == connection.ANSWER_SECONDS
        assert options["socket_connect_timeout"] == connection.CONNECT_SECONDS


def test_what_a_job_logs_names_its_hint(redis_url: str) -> None:
    """What a hook binds on dramatiq's thread reaches the actor on the loop, and the job's task."""
    bound: list[dict[str, Any]] = []

    class Looking(NotingServices):
        async def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> None:
            bound.append(structlog.contextvars.get_contextvars())
            await super().run(account_id, job_id, claimed)

    with running_worker(redis_url, services=Looking) as services:
        send(redis_url, some_pairs(1))
        until(lambda: len(services.ran) == 1)

    assert bound[0]["queue"] == QUEUE
    assert UUID(bound[0]["hint"]) != uuid4()
