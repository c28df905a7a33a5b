"""The consumer of one queue, on its own thread: waits for hints without polling, and for slots without fetching."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import structlog
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy

from worker.queue.connection import QueueUnavailable
from worker.queue.hints import decode

if TYPE_CHECKING:
    from worker.queue.broker import HintBroker

#: Seconds of the longest wait. dramatiq looks between two waits whether the process is stopping.
WAIT_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class HintConsumer(Consumer):
    """Hands hints to dramatiq's threads, never more than there are threads for and slots free.

    It outlives every outage of Redis: `__next__` raises nothing.
    """

    def __init__(self, broker: HintBroker, queue_name: str, prefetch: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._taken: deque[MessageProxy] = deque()
        #: Identities, not message ids: the same message may come twice, also at once.
        self._held: set[int] = set()
        self._thread_freed = threading.Event()
        self._away: str | None = None

    def __next__(self) -> MessageProxy | None:
        """The next hint, or None after a wait of about a second at most."""
        if not self._taken:
            self._refill()
        if not self._taken:
            return None
        message = self._taken.popleft()
        self._held.add(id(message))
        return message

    def ack(self, message: MessageProxy) -> None:
        """A thread is done with the hint. Redis forgot it when it was taken."""
        self._held.discard(id(message))
        self._thread_freed.set()

    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give back what a stopping process took and did not look at. When Redis is away dispatch sends it again."""
        hints = [message.args[0] for message in messages]
        if not hints:
            return
        try:
            self._broker.give_back(self._queue_name, hints)
        except QueueUnavailable as error:
            log.warning("hints not given back", queue=self._queue_name, hints=len(hints), reason=error.reason)

    def close(self) -> None:
        """Give back what dramatiq has not seen yet."""
        waiting, self._taken = self._taken, deque()
        self.requeue(waiting)

    def _refill(self) -> None:
        threads_free = self._prefetch - len(self._held)
        count = min(threads_free, self._broker.intake.free)
        if count > 0:
            self._fetch(count)
        elif threads_free > 0:
            self._broker.intake.freed.wait(WAIT_SECONDS)
        else:
            self._wait_for_thread()

    def _fetch(self, count: int) -> None:
        """Take what is there; when nothing is, wait until a sender wakes us."""
        try:
            for raw in self._broker.take(self._queue_name, count):
                self._accept(raw)
            if not self._taken:
                self._broker.wait_for_wake(self._queue_name, WAIT_SECONDS)
        except QueueUnavailable as error:
            self._unavailable(error)
        else:
            self._available()

    def _accept(self, raw: bytes) -> None:
        """Turn bytes into a message of ours: only ids and names pass, and the queue is the one it lay in."""
        hint = decode(raw)
        if hint is None or hint.actor_name not in self._broker.actors:
            self._quarantine("malformed" if hint is None else "unknown_actor", raw)
            return
        message: Message[None] = Message(
            queue_name=self._queue_name,
            actor_name=hint.actor_name,
            args=(hint.pairs,),
            kwargs={},
            options={},
            message_id=hint.message_id,
            message_timestamp=hint.sent_at_milliseconds,
        )
        self._taken.append(MessageProxy(message))

    def _quarantine(self, reason: str, raw: bytes) -> None:
        try:
            self._broker.quarantine(self._queue_name, reason, raw)
        except QueueUnavailable as error:
            log.warning("message lost on its way to quarantine", queue=self._queue_name, reason=error.reason)

    def _wait_for_thread(self) -> None:
        self._thread_freed.clear()
        if len(self._held) >= self._prefetch:
            self._thread_freed.wait(WAIT_SECONDS)

    def _unavailable(self, error: QueueUnavailable) -> None:
        if self._away != error.reason:
            log.error("queue unavailable", queue=self._queue_name, reason=error.reason, error=repr(error.__cause__))
            self._away = error.reason
        time.sleep(WAIT_SECONDS)

    def _available(self) -> None:
        if self._away is not None:
            log.info("queue available again", queue=self._queue_name)
            self._away = None
