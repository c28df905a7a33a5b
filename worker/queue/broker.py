"""Our dramatiq broker: its actors, threads and wire format, with a consumer of our own and nothing that retries."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, Protocol

import redis
import structlog
from dramatiq.broker import Consumer
from dramatiq.brokers.redis import RedisBroker

from worker.queue.connection import connect, surfacing
from worker.queue.consumer import HintConsumer
from worker.queue.hints import Pair, encode, require_json_encoder, script_call
from worker.queue.layout import (
    MESSAGE_BYTES_MAX,
    QUARANTINE,
    QUARANTINE_BYTES_MAX,
    QUARANTINE_MAX,
    SEND,
    TAKE,
    Keys,
)
from worker.queue.middleware import LogBinding

#: Of a million dramatiq commands, how many also tidy up after plain dramatiq workers that died. Its own default
#: of 1,000 took 12 minutes on average.
MAINTENANCE_CHANCE: Final = 50_000

log = structlog.get_logger(__name__)


class Intake(Protocol):
    """What decides whether this process takes hints: its slots."""

    #: Set exactly while `free` is above zero.
    freed: threading.Event

    @property
    def free(self) -> int: ...


class _AlwaysOpen:
    """For a broker without slots: dramatiq's prefetch alone bounds what is taken."""

    free: Final = 1_000_000

    def __init__(self) -> None:
        self.freed = threading.Event()
        self.freed.set()


class HintBroker(RedisBroker):
    """Takes hints for good (see `layout`), keeps strangers out of the queue, and has no delayed messages."""

    def __init__(self, client: redis.Redis, *, namespace: str, worker: bool) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # dramatiq's Redis broker has no annotations
            client=client,
            namespace=namespace,
            # All of it: no Retries, Callbacks, Pipelines, TimeLimit, AgeLimit, Prometheus. The rows do their work.
            middleware=[LogBinding()] if worker else [],
            maintenance_chance=MAINTENANCE_CHANCE,
        )
        self.keys = Keys(namespace)
        self.intake: Intake = _AlwaysOpen()
        self._worker = worker
        self._take = client.register_script(TAKE)
        self._quarantine = client.register_script(QUARANTINE)
        self._send = client.register_script(SEND)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue without the delayed one beside it, whose consumer would poll for nothing."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """A consumer that waits for a wake-up instead of sleeping. Its waits are its own: `timeout` is not used."""
        if not self._worker:
            raise RuntimeError("this broker was made for sending")
        return HintConsumer(self, queue_name, prefetch)

    def take(self, queue_name: str, count: int) -> list[bytes]:
        """Remove and return up to `count` messages."""
        names = self.keys.queue(queue_name)
        with surfacing():
            messages, without, too_long = self._take(
                keys=[names.ready, names.messages, names.wake, self.keys.quarantine, self.keys.quarantined],
                args=[count, queue_name, MESSAGE_BYTES_MAX, QUARANTINE_BYTES_MAX, QUARANTINE_MAX],
            )
        if without or too_long:
            log.warning("messages dropped", queue=queue_name, bodiless=without, oversized=too_long)
        taken: list[bytes] = messages
        return taken

    def wait_for_wake(self, queue_name: str, seconds: float) -> None:
        """Return when a sender wakes this queue, or after `seconds`."""
        with surfacing():
            self.client.blpop([self.keys.queue(queue_name).wake], timeout=seconds)

    def quarantine(self, queue_name: str, reason: str, raw: bytes) -> None:
        """Put a message aside for people to look at. Its contents are not logged: nobody knows what they are."""
        log.warning("message quarantined", queue=queue_name, reason=reason, bytes=len(raw))
        with surfacing():
            self._quarantine(
                keys=[self.keys.quarantine, self.keys.quarantined],
                args=[queue_name, reason, len(raw), raw[:QUARANTINE_BYTES_MAX], QUARANTINE_MAX],
            )

    def give_back(self, queue_name: str, hints: Sequence[Sequence[Pair]]) -> None:
        """Queue hints again that this process took and won't look at."""
        keys, args = script_call(self.keys, [(queue_name, *encode(queue_name, pairs)) for pairs in hints])
        with surfacing():
            self._send(keys=keys, args=args)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def make_broker(redis_url: str, *, namespace: str, worker: bool) -> HintBroker:
    """The broker of a process. Connects on first use. `worker`: whether it consumes."""
    require_json_encoder()
    return HintBroker(connect(redis_url), namespace=namespace, worker=worker)
