"""One worker process, from its start to exit code 0: no master, no children of its own, its own signal handling.

dramatiq's command line would fork a worker below a master: one process more, children that outlive a killed master,
a second SIGTERM that hangs beside an event loop, hooks whose errors are swallowed. Its `Worker` needs none of that.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

import dramatiq
import structlog

from worker.queue.broker import HintBroker
from worker.queue.loop import Hosted, LoopThread, running_loop
from worker.slots import Slots

T = TypeVar("T")

#: Seconds for the services to be ready: pools, listeners, a look at the schema.
BOOT_SECONDS: Final = 60.0

#: Seconds for dramatiq's threads to end. They wait for a second at most unless a server is silent.
STOP_SECONDS: Final = 5.0

#: Seconds for the services to close.
CLOSE_SECONDS: Final = 10.0

#: Seconds that the interpreter gets to end after all that.
EXIT_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class Event(Enum):
    """What the main thread waits for."""

    READY = auto()  # the services are open
    ENDED = auto()  # the services did not open
    SIGNAL = auto()  # SIGTERM, SIGINT or SIGHUP
    DRAINED = auto()


def run_worker_process(
    broker: HintBroker,
    *,
    services: Callable[[Slots], AbstractAsyncContextManager[T]],
    declare: Callable[[T], object],
    slots: Slots,
    threads: int,
    drain_seconds: float,
) -> int:
    """Take hints until a signal comes, then leave in order; returns the exit code. Main thread only.

    `services` is entered and left on the event loop; `declare` gets what it gives and declares the actor. What
    either raises is raised here. The first signal lets the running jobs end for `drain_seconds` and then hands
    them back; any later one hands them back at once. The process ends soon after, even if somebody's thread hangs.
    """
    events: SimpleQueue[Event] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # SimpleQueue.put may interrupt itself; an Event or a Lock might deadlock here. The handlers stay: a late
        # signal must not turn an orderly end into a killed one.
        signal.signal(number, lambda *_: events.put(Event.SIGNAL))
    with running_loop() as loop:
        hosted = Hosted(
            loop,
            services(slots),
            on_entered=lambda: events.put(Event.READY),
            on_end=lambda: events.put(Event.ENDED),
        )
        try:
            first = _next(events, BOOT_SECONDS)
            if first is Event.SIGNAL:
                return _leaving(0)
            declare(hosted.value())
            _serve(broker, loop, events, slots, threads, drain_seconds)
            return _leaving(0)
        finally:
            hosted.close(CLOSE_SECONDS)
            broker.close()


def _serve(
    broker: HintBroker,
    loop: LoopThread,
    events: SimpleQueue[Event],
    slots: Slots,
    threads: int,
    drain_seconds: float,
) -> None:
    broker.intake = slots
    worker = dramatiq.Worker(broker, worker_threads=threads)
    worker.queue_prefetch = threads
    worker.start()
    log.info("worker started", queues=sorted(broker.get_declared_queues()), slots=slots.count, threads=threads)
    try:
        events.get()  # the first signal
        log.info("worker draining", running=slots.busy, seconds=drain_seconds)
        _drain(loop, events, slots, drain_seconds)
    finally:
        worker.stop(timeout=int(STOP_SECONDS * 1000))
        log.info("worker stopped")


def _drain(loop: LoopThread, events: SimpleQueue[Event], slots: Slots, drain_seconds: float) -> None:
    """Wait until no job runs here any more; bounded by `Slots.drain`."""
    drained = loop.submit(slots.drain(drain_seconds))
    drained.add_done_callback(lambda _: events.put(Event.DRAINED))
    while (event := events.get()) is not Event.DRAINED:
        if event is Event.SIGNAL:
            loop.loop.call_soon_threadsafe(slots.hand_back_all)
    if abandoned := drained.result():
        log.error("jobs abandoned, their leases will lapse", jobs=abandoned)


def _next(events: SimpleQueue[Event], seconds: float) -> Event:
    try:
        return events.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"the services were not ready within {seconds:.0f} s") from None


def _leaving(code: int) -> int:
    """Make sure that the process ends, with this code: Python itself waits without limit for executors' threads."""
    end = threading.Timer(CLOSE_SECONDS + EXIT_SECONDS, os._exit, (code,))
    end.daemon = True
    end.start()
    return code
