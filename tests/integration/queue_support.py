"""What the tests of `worker.queue` share: services that only note what happens, a worker in this process, a server
of their own that they may kill."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID, uuid4

import dramatiq
import redis
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.redis import RedisBroker

from tests.servers import scratch_folder
from worker.actors import declare
from worker.local.valkey import EmbeddedValkey
from worker.queue import consumer
from worker.queue.broker import make_broker
from worker.queue.hints import HintSender, Pair
from worker.queue.loop import running_loop
from worker.slots import Claimed, Slots

NAMESPACE = "test"
QUEUE = "generation"
MESSAGES = f"{NAMESPACE}:{QUEUE}.msgs"
READY = f"{NAMESPACE}:{QUEUE}"


class NotingServices:
    """Services whose jobs end at once, or when `hold` is lifted, and that remember what they saw."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.runner = self
        self.ran: list[UUID] = []
        self.picked_up_at: dict[UUID, float] = {}
        self.unhinted: list[Pair] = []
        #: While set, jobs run on after their claim.
        self.hold = threading.Event()

    async def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> None:
        self.picked_up_at[job_id] = time.perf_counter()
        self.ran.append(job_id)
        claimed()
        while self.hold.is_set():  # noqa: ASYNC110  (lifted by another thread)
            await asyncio.sleep(0.005)

    async def fitting(self, pairs: Sequence[Pair]) -> list[Pair]:
        return list(pairs)

    async def unhint(self, pairs: Sequence[Pair]) -> None:
        self.unhinted += pairs

    def close_slots(self) -> None:
        """From the test's thread, as a leaving process does."""
        loop_thread = get_event_loop_thread()
        assert loop_thread is not None
        loop_thread.loop.call_soon_threadsafe(self.slots.close)


@contextmanager
def running_worker(
    redis_url: str,
    *,
    slots: int = 8,
    threads: int = 4,
    queues: Sequence[str] = (QUEUE,),
    services: type[NotingServices] = NotingServices,
    middleware: Sequence[dramatiq.Middleware] = (),
    wait_seconds: float = 0.1,
) -> Iterator[NotingServices]:
    """dramatiq's worker with our broker, on real threads and a real loop, in this process.

    `wait_seconds` is how long idle threads wait, 1 s in production: the shorter, the sooner a test is over.
    """
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    for further in middleware:
        broker.add_middleware(further)
    broker.intake = the_slots = Slots(slots)
    noting = services(the_slots)
    with patch.object(consumer, "WAIT_SECONDS", wait_seconds), running_loop() as loop:
        declare(broker, queues, noting)
        worker = dramatiq.Worker(broker, worker_threads=threads, worker_timeout=int(wait_seconds * 1000))
        worker.queue_prefetch = threads
        worker.start()
        try:
            yield noting
        finally:
            noting.hold.clear()
            loop.submit(the_slots.drain(5)).result(10)
            worker.stop(timeout=5000)
    broker.close()


@contextmanager
def own_valkey(options: Mapping[str, str] | None = None) -> Iterator[EmbeddedValkey]:
    """A server of this test alone."""
    with scratch_folder() as folder:
        server = EmbeddedValkey(folder / "valkey", options=options)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def send(redis_url: str, pairs: Sequence[Pair], *, queue: str = QUEUE, per_message: int = 16) -> int:
    """Send hints from a test without a loop of its own."""

    async def sending() -> int:
        sender = HintSender(redis_url, NAMESPACE)
        try:
            return await sender.send({queue: pairs}, per_message)
        finally:
            await sender.close()

    return asyncio.run(sending())


def plain_broker(redis_url: str) -> Any:
    """dramatiq's own broker on the same keys."""
    return RedisBroker(  # type: ignore[no-untyped-call]  # it has no annotations
        client=redis.Redis.from_url(redis_url), namespace=NAMESPACE, middleware=[]
    )


def bodies(client: redis.Redis) -> list[bytes]:
    """The messages that are ready, oldest first."""
    return cast(list[bytes], client.hmget(MESSAGES, cast(list[str], client.lrange(READY, 0, -1))))


def push_raw(redis_url: str, raw: bytes, *, redis_id: str | None = None, queue: str = QUEUE) -> str:
    """Put any bytes where a message lies."""
    redis_id = redis_id or str(uuid4())
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{NAMESPACE}:{queue}.msgs", redis_id, raw)
        client.rpush(f"{NAMESPACE}:{queue}", redis_id)
    return redis_id


def some_pairs(count: int) -> list[Pair]:
    return [("acme", uuid4()) for _ in range(count)]


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
