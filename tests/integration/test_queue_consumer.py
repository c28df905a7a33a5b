"""Taking hints: at once, never more than there is room for, through every outage, whatever else lies in the queue."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from structlog.testing import capture_logs

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
from worker.queue.broker import make_broker
from worker.queue.hints import ACTOR_NAME, Pair
from worker.queue.inspection import QueueDepth, QueueInspector
from worker.queue.layout import MESSAGE_BYTES_MAX, QUARANTINE_BYTES_MAX, QUARANTINE_MAX
from worker.slots import Claimed


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def a_message(**changes: Any) -> dict[str, Any]:
    """A message as dramatiq writes it, with one job; `changes` replace fields, None removes one."""
    fields = {
        "queue_name": QUEUE,
        "actor_name": ACTOR_NAME,
        "args": [[["acme", str(uuid4())]]],
        "kwargs": {},
        "options": {"redis_message_id": str(uuid4())},
        "message_id": str(uuid4()),
        "message_timestamp": 1_700_000_000_000,
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def raw(**changes: Any) -> bytes:
    return json.dumps(a_message(**changes)).encode()


def push_hint(redis_url: str) -> UUID:
    """A good hint, written as a plain producer would, without a wake token."""
    job_id, redis_id = uuid4(), str(uuid4())
    push_raw(redis_url, raw(args=[[["acme", str(job_id)]]], options={"redis_message_id": redis_id}), redis_id=redis_id)
    return job_id


A_JOB = ["acme", str(UUID(int=7))]

#: What a stranger, a bug or an attacker may leave in a queue, and the reason it is put aside for.
MALFORMED: dict[str, tuple[bytes, str]] = {
    "M1 not JSON": (b"}{", "malformed"),
    "M1 empty JSON string": (b'""', "malformed"),
    "M2 no object": (b"[1, 2, 3]", "malformed"),
    "M3 a field missing": (raw(queue_name=None), "malformed"),
    "M4 a field more": (raw(priority=1), "malformed"),
    "M5 args no list": (raw(args="x"), "malformed"),
    "M6 unknown actor": (raw(actor_name="fermata.other"), "unknown_actor"),
    "M7 kwargs": (raw(kwargs={"job_id": 7}), "malformed"),
    "M7 SQL for a job": (raw(args=[[["acme", "1; DROP TABLE jobs"]]]), "malformed"),
    "M7 no jobs": (raw(args=[[]]), "malformed"),
    "M7 17 jobs": (raw(args=[[A_JOB] * 17]), "malformed"),
    "M7 two arguments": (raw(args=[[A_JOB], [A_JOB]]), "malformed"),
    "M7 no pair": (raw(args=[[["acme"]]]), "malformed"),
    "M7 a number for an account": (raw(args=[[[7, A_JOB[1]]]]), "malformed"),
    "M7 NUL in an account": (raw(args=[[["a\0b", A_JOB[1]]]]), "malformed"),
    "M7 a name that no account has": (raw(args=[[["", A_JOB[1]]]]), "malformed"),
    "M7 a long account": (raw(args=[[["x" * 129, A_JOB[1]]]]), "malformed"),
    "M7 a good job beside": (raw(args=[[A_JOB, ["a b", A_JOB[1]]]]), "malformed"),
    "M8 another version": (raw(version=2), "malformed"),
    "M9 pickle": (pickle.dumps(a_message()), "malformed"),
    "M10 NaN": (raw(message_timestamp=float("nan")), "malformed"),
    "M10 deep nesting": (b'{"args":' + b"[" * 60_000, "malformed"),
    "M10 deep nesting in options": (
        raw(options="X").replace(b'"X"', b"[" * 30_000 + b"]" * 30_000),
        "malformed",
    ),
    "M10 10 MB": (raw(options={"x": "y" * 10_000_000}), "oversized"),
    "M10 an id of a message too long": (raw(message_id="x" * 65), "malformed"),
    "not UTF-8": (raw().replace(b"acme", b"\xff\xfe\xfd\xfc"), "malformed"),
}


@pytest.mark.parametrize(("bad", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_stranger_in_the_queue_is_put_aside_and_its_neighbours_run(
    redis_url: str, bad: bytes, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """M1–M10: quarantined with its first bytes and counted; the messages fetched with it run; no contents logged."""
    before = push_hint(redis_url)
    push_raw(redis_url, bad)
    after = push_hint(redis_url)

    with running_worker(redis_url) as services:
        until(lambda: len(services.ran) == 2)
    inspector = QueueInspector(redis_url, NAMESPACE)
    quarantine = await inspector.quarantine(newest=5)
    depths = await inspector.depths([QUEUE])
    await inspector.close()

    assert set(services.ran) == {before, after}
    assert quarantine.ever == {reason: 1}
    (entry,) = quarantine.newest
    assert (entry.reason, entry.queue, entry.length_bytes) == (reason, QUEUE, len(bad))
    assert entry.head == bad[:QUARANTINE_BYTES_MAX]
    assert depths == [QueueDepth(QUEUE, ready=0, in_flight=0, dead=0)]
    assert "DROP TABLE" not in "".join(capfd.readouterr())


OPTIONS: dict[str, dict[str, Any]] = {
    "retries": {"max_retries": 10**9, "min_backoff": 1},
    "limits": {"time_limit": 1, "max_age": 1},
    "errors": {"throws": "ValueError", "on_retry_exhausted": ACTOR_NAME},
    "pipes": {"pipe_target": {"actor_name": ACTOR_NAME}, "on_success": ACTOR_NAME},
    "far": {"eta": 10**18},
    "negative": {"eta": -1},
    "no number": {"eta": "x"},
    "another's id": {"redis_message_id": "somebody-else"},
    "none": {},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_a_message_are_not_obeyed(redis_url: str, options: dict[str, Any]) -> None:
    """M11: a hint is looked at now and once, whatever it says about delays, retries and callbacks."""
    job_id = uuid4()
    push_raw(redis_url, raw(args=[[["acme", str(job_id)]]], options=options))
    with running_worker(redis_url) as services:
        until(lambda: services.ran == [job_id])


def test_a_thousand_copies_of_a_message_are_a_thousand_looks(redis_url: str) -> None:
    """M13, M17: copies and replays reach the row, which drops them; none blocks the queue."""
    copy = raw()
    for _ in range(1000):
        push_raw(redis_url, copy)
    with running_worker(redis_url) as services:
        until(lambda: len(services.ran) == 1000, seconds=20)


def test_a_message_of_another_queue_is_handed_on(redis_url: str) -> None:
    """M14: the row decides where a job belongs. In plain dramatiq such a message ends the thread that meets it."""
    job_ids = [uuid4() for _ in range(20)]
    for job_id in job_ids:
        push_raw(redis_url, raw(queue_name="stems", args=[[["acme", str(job_id)]]]))
    with running_worker(redis_url, threads=2) as services:
        until(lambda: sorted(services.ran) == sorted(job_ids))


async def test_ids_without_a_message_and_messages_without_an_id_harm_nobody(
    redis_url: str, client: redis.Redis
) -> None:
    """M15: a bare id is dropped and counted; a body that no list names is never looked at."""
    client.rpush(READY, *(f"bare-{number}" for number in range(250)))
    client.hset(f"{READY}.msgs", "unlisted", raw())
    job_id = push_hint(redis_url)

    with running_worker(redis_url) as services:
        until(lambda: services.ran == [job_id])
    inspector = QueueInspector(redis_url, NAMESPACE)

    assert (await inspector.quarantine()).ever == {"bodiless": 250}
    assert await inspector.depths([QUEUE]) == [QueueDepth(QUEUE, ready=0, in_flight=1, dead=0)]
    await inspector.close()


async def test_the_quarantine_is_bounded(redis_url: str) -> None:
    """A flood of rubbish keeps the newest, counts all, and fills no memory."""
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    for number in range(QUARANTINE_MAX + 5):
        broker.quarantine(QUEUE, "malformed", b"%d" % number)
    inspector = QueueInspector(redis_url, NAMESPACE)

    quarantine = await inspector.quarantine(newest=1)

    assert (quarantine.kept, quarantine.ever) == (QUARANTINE_MAX, {"malformed": QUARANTINE_MAX + 5})
    assert quarantine.newest[0].head == b"%d" % (QUARANTINE_MAX + 4)
    await inspector.close()


def test_an_idle_worker_picks_a_hint_up_at_once(redis_url: str) -> None:
    """No polling: the sender wakes it. 2 ms is what an idle machine shows; 50 ms leaves room for a busy one."""
    latencies = []
    with running_worker(redis_url, wait_seconds=1) as services:
        for pair in some_pairs(20):
            until(lambda: services.slots.busy == 0)
            sent_at = time.perf_counter()
            send(redis_url, [pair])
            until(partial(services.picked_up_at.__contains__, pair[1]))
            latencies.append(services.picked_up_at[pair[1]] - sent_at)

    assert statistics.median(latencies) < 0.05


def test_sixteen_jobs_a_hint_all_run_once(redis_url: str) -> None:
    """Two workers share a queue: every job is offered exactly once, none is left over."""
    pairs = some_pairs(2000)
    with running_worker(redis_url) as services:
        send(redis_url, pairs)
        until(lambda: len(services.ran) == 2000, seconds=30)
    assert sorted(services.ran) == sorted(job_id for _, job_id in pairs)
    assert services.unhinted == []


def test_a_full_process_leaves_the_hints_to_others_and_fetches_when_a_slot_frees(
    redis_url: str, client: redis.Redis
) -> None:
    """What it can't run stays in Redis, where another worker takes it at once."""
    running, later = some_pairs(1), some_pairs(5)
    with running_worker(redis_url, slots=1) as services:
        services.hold.set()
        send(redis_url, running)
        until(lambda: services.slots.busy == 1)
        send(redis_url, later, per_message=1)

        with pytest.raises(AssertionError):
            until(lambda: client.llen(READY) != 5, seconds=1.5)

        services.hold.clear()
        freed_at = time.monotonic()
        until(lambda: len(services.ran) == 6)
        assert time.monotonic() - freed_at < 0.5


def test_jobs_of_a_hint_that_find_no_slot_lose_their_hint_mark(redis_url: str) -> None:
    """Sixteen jobs, two slots, all long: two run, fourteen are given up for other workers after a second."""
    pairs = some_pairs(16)
    with running_worker(redis_url, slots=2) as services:
        services.hold.set()
        send(redis_url, pairs)
        until(lambda: len(services.unhinted) == 14, seconds=5)
        assert services.unhinted == pairs[2:]
        assert services.ran == [job_id for _, job_id in pairs[:2]]


def test_a_draining_process_takes_nothing_and_gives_up_what_it_holds(redis_url: str, client: redis.Redis) -> None:
    """After closing, hints stay in Redis for others; those already here lose their mark, unclaimed."""
    running, held, later = some_pairs(1), some_pairs(16), some_pairs(3)
    with running_worker(redis_url, slots=2) as services:
        services.hold.set()
        send(redis_url, running)
        until(lambda: services.slots.busy == 1)
        send(redis_url, held)
        until(lambda: services.slots.busy == 2)

        services.close_slots()
        until(lambda: services.unhinted == held[1:], seconds=2)
        send(redis_url, later)

        with pytest.raises(AssertionError):
            until(lambda: client.llen(READY) != 1, seconds=1.5)
        assert len(services.ran) == 2
    assert client.llen(READY) == 1


def test_what_a_stopping_process_took_and_did_not_look_at_goes_back(redis_url: str, client: redis.Redis) -> None:
    """Closing a consumer puts its hints back in the queue, as good as new."""
    pairs = some_pairs(3)
    send(redis_url, pairs, per_message=1)
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    broker.actors[ACTOR_NAME] = object()  # type: ignore[assignment]  # only its name is looked up
    consumer = broker.consume(QUEUE, prefetch=3)
    first = next(consumer)
    assert first is not None
    assert client.llen(READY) == 0

    consumer.requeue([first])
    consumer.close()

    assert client.llen(READY) == 3
    with running_worker(redis_url) as services:
        until(lambda: sorted(services.ran) == sorted(job_id for _, job_id in pairs))


def test_a_flush_while_it_runs_loses_hints_only(redis_url: str, client: redis.Redis) -> None:
    """FLUSHALL: the worker notices nothing and takes the next hint at once, scripts and all."""
    first, second = some_pairs(1), some_pairs(1)
    with running_worker(redis_url) as services:
        send(redis_url, first)
        until(lambda: len(services.ran) == 1)

        client.flushall()
        client.script_flush()

        send(redis_url, second)
        until(lambda: len(services.ran) == 2, seconds=2)


def test_a_worker_outlives_its_server() -> None:
    """Killed and started again, Valkey has its consumer back within five seconds; two lines tell of it, not fifty."""
    with capture_logs() as lines, own_valkey() as server, running_worker(server.url()) as services:
        send(server.url(), some_pairs(1))
        until(lambda: len(services.ran) == 1)

        server.kill()
        until(lambda: any(line["event"] == "queue unavailable" for line in lines))
        server.start()
        back_at = time.monotonic()
        send(server.url(), some_pairs(1))
        until(lambda: len(services.ran) == 2)

        assert time.monotonic() - back_at < 5
        told = [line["event"] for line in lines if line["event"].startswith("queue ")]
        assert told == ["queue unavailable", "queue available again"]


def test_a_full_server_still_drains() -> None:
    """At maxmemory producers are refused, but what is queued runs: 50 of 50, rubbish is still put aside."""
    pairs = some_pairs(50)
    with own_valkey() as server, redis.Redis.from_url(server.url()) as client:
        send(server.url(), pairs, per_message=1)
        push_raw(server.url(), b"rubbish")
        push_raw(server.url(), b"x" * (MESSAGE_BYTES_MAX + 1))
        client.config_set("maxmemory", "1")

        with running_worker(server.url()) as services:
            until(lambda: len(services.ran) == 50)
            until(lambda: client.llen(f"{NAMESPACE}:__quarantine__") == 2)


def test_an_actor_never_raises(redis_url: str) -> None:
    """With the ledger away, a hint is dropped with a log line: the thread goes on with the next."""

    class Broken(NotingServices):
        async def unhint(self, pairs: Sequence[Pair]) -> None:
            raise ConnectionError("the ledger is away")

        async def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> None:
            await super().run(account_id, job_id, claimed)
            if account_id == "broken":
                raise RuntimeError("a bug")

    with running_worker(redis_url, slots=1, threads=1, services=Broken) as services:
        services.hold.set()
        send(redis_url, [*some_pairs(1), *some_pairs(1)])
        until(lambda: services.slots.busy == 1)
        services.hold.clear()
        send(redis_url, [("broken", uuid4())])
        send(redis_url, some_pairs(1))
        until(lambda: len(services.ran) >= 3)


def test_several_queues_share_the_slots(redis_url: str) -> None:
    """One process, one actor, any number of queues."""
    with running_worker(redis_url, queues=[QUEUE, "stems"]) as services:
        send(redis_url, some_pairs(5), queue="stems")
        send(redis_url, some_pairs(5))
        until(lambda: len(services.ran) == 10)


def test_nothing_is_left_behind_in_redis(redis_url: str, client: redis.Redis) -> None:
    """No heartbeats, no sets of acknowledgements, no dead letters, no delayed queue."""
    with running_worker(redis_url) as services:
        send(redis_url, some_pairs(100), per_message=1)
        until(lambda: len(services.ran) == 100)
    assert client.keys("*") == []


def test_a_broker_made_for_sending_consumes_nothing(redis_url: str) -> None:
    """A scheduler that starts a worker by mistake is told."""
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=False)
    with pytest.raises(RuntimeError, match="made for sending"):
        broker.consume(QUEUE)


async def test_what_a_plain_worker_holds_and_gave_up_is_reported(redis_url: str, client: redis.Redis) -> None:
    """Beside ours somebody may run dramatiq's own worker: its acknowledgements and dead letters are seen."""
    plain = plain_broker(redis_url)
    for _ in range(4):
        push_hint(redis_url)
    consumer = plain.consume(QUEUE, prefetch=2, timeout=1)
    consumer.nack(next(consumer))
    next(consumer)
    inspector = QueueInspector(redis_url, NAMESPACE)

    assert await inspector.depths([QUEUE]) == [QueueDepth(QUEUE, ready=2, in_flight=1, dead=1)]
    await inspector.close()
