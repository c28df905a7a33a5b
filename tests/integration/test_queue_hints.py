"""Sending hints: on the wire, in bulk, and when Redis does not want them."""

from __future__ import annotations

import json
import pickle
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.queue_support import (
    NAMESPACE,
    QUEUE,
    READY,
    bodies,
    own_valkey,
    plain_broker,
    running_worker,
    some_pairs,
    until,
)
from worker.credits.lots import ACCOUNT_ID
from worker.queue import connection
from worker.queue.broker import make_broker
from worker.queue.connection import QueueUnavailable
from worker.queue.hints import ACTOR_NAME, ForeignNamespace, HintSender, decode, encode
from worker.queue.layout import MESSAGE_BYTES_MAX, WAKE_TOKENS_MAX


@pytest.fixture
async def sender(redis_url: str) -> AsyncIterator[HintSender]:
    sender = HintSender(redis_url, NAMESPACE)
    yield sender
    await sender.close()


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


async def test_jobs_are_packed_into_as_few_messages_as_asked(sender: HintSender, client: redis.Redis) -> None:
    """33 jobs at 16 a message are 3 messages; each queue has its own."""
    pairs = some_pairs(33)

    assert await sender.send({QUEUE: pairs, "stems": pairs[:2]}, 16) == 4

    assert client.llen(READY) == 3
    assert client.llen(f"{NAMESPACE}:stems") == 1
    hints = [decode(body) for body in bodies(client)]
    assert [pair for hint in hints if hint for pair in hint.pairs] == pairs


async def test_nothing_to_send_is_no_message(sender: HintSender, client: redis.Redis) -> None:
    """A quiet tick costs Redis nothing."""
    assert await sender.send({QUEUE: []}) == 0
    assert client.dbsize() == 0


async def test_a_large_batch_goes_in_several_calls(sender: HintSender, client: redis.Redis) -> None:
    """More messages than one script call may hold all arrive, in order."""
    pairs = some_pairs(1300)

    assert await sender.send({QUEUE: pairs}, 1) == 1300

    assert [json.loads(body)["args"][0][0][1] for body in bodies(client)] == [str(job_id) for _, job_id in pairs]


@pytest.mark.parametrize("per_message", [0, 17, -1])
async def test_a_hint_holds_one_to_sixteen_jobs(sender: HintSender, per_message: int) -> None:
    """More would be quarantined by every worker."""
    with pytest.raises(ValueError, match="1 to 16"):
        await sender.send({QUEUE: some_pairs(1)}, per_message)


async def test_a_plain_dramatiq_worker_understands_a_hint(sender: HintSender, redis_url: str) -> None:
    """The wire format is dramatiq's own: its consumer decodes it, and its ack removes it."""
    pairs = some_pairs(2)
    await sender.send({QUEUE: pairs})
    plain = plain_broker(redis_url)
    consumer = plain.consume(QUEUE, timeout=1)

    message = next(consumer)
    consumer.ack(message)

    assert message.actor_name == ACTOR_NAME
    assert message.args == ([["acme", str(job_id)] for _, job_id in pairs],)
    assert plain.do_qsize(QUEUE) == 0


def test_a_plain_dramatiq_producer_reaches_our_worker(redis_url: str) -> None:
    """What dramatiq's own broker enqueues is a hint like any other, if somewhat slower to be noticed."""
    (pair,) = some_pairs(1)
    plain = plain_broker(redis_url)
    message: dramatiq.Message[None] = dramatiq.Message(
        queue_name=QUEUE, actor_name=ACTOR_NAME, args=([[pair[0], str(pair[1])]],), kwargs={}, options={}
    )
    with running_worker(redis_url) as services:
        plain.enqueue(message)
        until(lambda: services.ran == [pair[1]])


async def test_wake_tokens_are_bounded_and_go_when_the_queue_is_empty(
    sender: HintSender, client: redis.Redis, redis_url: str
) -> None:
    """Tokens that nobody waited for neither pile up nor keep idle workers busy later."""
    for _ in range(3):
        await sender.send({QUEUE: some_pairs(50)}, 1)
    assert client.llen(f"{READY}.wake") == WAKE_TOKENS_MAX

    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    assert len(broker.take(QUEUE, 1000)) == 150

    assert client.keys("*") == []


EPOCH_KEY = f"{NAMESPACE}:__epoch__"


async def test_the_epoch_tells_a_flush(sender: HintSender, client: redis.Redis) -> None:
    """The dispatcher's mark is gone when the hints are."""
    assert not await sender.epoch_stands("1.5")
    await sender.set_epoch("1.5")
    assert await sender.epoch_stands("1.5")

    client.flushdb()

    assert not await sender.epoch_stands("1.5")


async def test_the_epoch_is_kept_alive_by_asking_and_ends_by_itself(sender: HintSender, client: redis.Redis) -> None:
    """Whoever is heard of no more loses the namespace after a minute."""
    await sender.set_epoch("1.5")
    assert 59_000 < client.pttl(EPOCH_KEY) <= 60_000
    client.pexpire(EPOCH_KEY, 29_000)
    assert await sender.epoch_stands("1.5")
    assert 59_000 < client.pttl(EPOCH_KEY) <= 60_000


async def test_another_deployments_epoch_is_refused_by_name_and_left_alone(
    sender: HintSender, client: redis.Redis
) -> None:
    """It says which key, whose, who asks, and what to do; neither asking nor taking makes it live longer."""
    client.set(EPOCH_KEY, "1.6", px=20_000)
    for ask in (sender.epoch_stands, sender.set_epoch):
        with pytest.raises(ForeignNamespace) as refused:
            await ask("1.5")
        assert (
            f"{EPOCH_KEY} in Redis belongs to deployment 1.6, which lives, and not to this one, 1.5: give one of "
            in (str(refused.value))
        )
        assert "FERMATA_NAMESPACE" in str(refused.value)
    assert b"1.6" == client.get(EPOCH_KEY)
    assert client.pttl(EPOCH_KEY) <= 20_000


async def test_an_epoch_that_never_ends_is_nobodys(sender: HintSender, client: redis.Redis) -> None:
    """Older versions left such a one: it must not lock anybody out for ever."""
    client.set(EPOCH_KEY, "an older version's")
    assert not await sender.epoch_stands("1.5")
    await sender.set_epoch("1.5")
    assert await sender.epoch_stands("1.5")
    assert client.pttl(EPOCH_KEY) > 0


async def test_scripts_survive_a_server_that_forgot_them(sender: HintSender, client: redis.Redis) -> None:
    """A restarted server knows no scripts; they are loaded again without a failed call."""
    await sender.send({QUEUE: some_pairs(1)})
    client.script_flush()
    assert await sender.send({QUEUE: some_pairs(1)}) == 1


async def test_a_dead_server_is_surfaced_and_the_next_send_after_it_is_back_succeeds() -> None:
    """`away` while it is away, at once; no stale connection afterwards."""
    with own_valkey() as server:
        sender = HintSender(server.url(), NAMESPACE)
        await sender.send({QUEUE: some_pairs(1)})

        server.kill()
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(QueueUnavailable) as unavailable:
                await sender.send({QUEUE: some_pairs(1)})
            assert unavailable.value.reason == "away"
        assert time.monotonic() - started < 1

        server.start()
        assert await sender.send({QUEUE: some_pairs(1)}) == 1
        await sender.close()


async def test_a_silent_server_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that accepts and never answers is `away` after the answer's time, not for ever."""
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender = HintSender(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", NAMESPACE)
        started = time.monotonic()
        with pytest.raises(QueueUnavailable, match="away"):
            await sender.epoch_stands("x")
        assert time.monotonic() - started < 2


async def test_a_full_server_refuses_a_batch_as_a_whole() -> None:
    """Producers get no leave to go past maxmemory; what they tried leaves no trace."""
    with own_valkey() as server, redis.Redis.from_url(server.url()) as client:
        sender = HintSender(server.url(), NAMESPACE)
        client.config_set("maxmemory", "1")

        with pytest.raises(QueueUnavailable, match="full"):
            await sender.send({QUEUE: some_pairs(64)})
        with pytest.raises(QueueUnavailable, match="full"):
            await sender.set_epoch("x")
        assert not await sender.epoch_stands("x")

        assert client.dbsize() == 0
        client.config_set("maxmemory", "0")
        assert await sender.send({QUEUE: some_pairs(64)}) == 4
        await sender.close()


async def test_a_refusal_is_no_redis_error(sender: HintSender, client: redis.Redis) -> None:
    """Whatever the server says no to leaves this package as our own error."""
    client.set(READY, "not a list")
    with pytest.raises(QueueUnavailable, match="refused"):
        await sender.send({QUEUE: some_pairs(1)})


def test_another_encoder_is_refused(redis_url: str) -> None:
    """A pickle encoder would run what it is sent: nothing starts with one."""
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        with pytest.raises(RuntimeError, match="JSONEncoder"):
            HintSender(redis_url, NAMESPACE)
        with pytest.raises(RuntimeError, match="JSONEncoder"):
            make_broker(redis_url, namespace=NAMESPACE, worker=True)
    finally:
        dramatiq.set_encoder(before)


@given(st.lists(st.tuples(st.from_regex(ACCOUNT_ID, fullmatch=True), st.uuids()), min_size=1, max_size=16))
def test_whatever_is_sent_is_read_back(pairs: list[tuple[str, UUID]]) -> None:
    """Any account id survives the wire, below the limit of a message."""
    _, body = encode(QUEUE, pairs)
    hint = decode(body)
    assert hint is not None
    assert hint.pairs == pairs
    assert len(body) < MESSAGE_BYTES_MAX / 2


@given(st.binary(max_size=200) | st.from_regex(rb'\{"args":\[.{0,80}\]\}'))
def test_no_bytes_make_decoding_fail(raw: bytes) -> None:
    """Strangers' bytes are None, never an exception."""
    assert decode(raw) is None


def test_pickled_bytes_are_not_run() -> None:
    """Decoding never unpickles."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("unpickled",)

    assert decode(pickle.dumps(Bomb())) is None


def test_ids_in_redis_are_unique_even_for_the_same_jobs() -> None:
    """The same hint twice is two messages: taking one leaves the other."""
    pairs = [("acme", uuid4())]
    assert encode(QUEUE, pairs)[0] != encode(QUEUE, pairs)[0]
