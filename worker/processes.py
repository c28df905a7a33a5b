"""The long-running processes of the Procfile: each from its settings to its exit code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import structlog
import uvloop

from config.settings import Settings
from worker import collector, tracing

log = structlog.get_logger(__name__)

#: dramatiq's threads only hand ids to the event loop, but each waits until its jobs are claimed: together they must
#: be able to offer all slots twice over, at up to 16 jobs a hint.
_THREADS_MIN, _THREADS_MAX, _SLOTS_PER_THREAD = 2, 16, 8


def run_worker(settings: Settings, queues: Sequence[str]) -> int:
    """Take hints of these queues (every kind's, if none are named) until a signal comes."""
    from tasks.registry import registry
    from worker.actors import declare
    from worker.boot import kinds_of_worker, opened_worker, worker_broker
    from worker.logs import configure
    from worker.queue.process import run_worker_process
    from worker.slots import Slots

    configure(settings)
    tracing.configure(settings, "worker")
    collector.calm()
    known = sorted(registry(settings.extra_kinds, settings.engines))
    served = list(queues) or known
    kinds = kinds_of_worker(settings, served)
    broker = worker_broker(settings)
    try:
        return run_worker_process(
            broker,
            services=lambda slots: opened_worker(settings, served, slots, kinds),
            declare=lambda services: declare(broker, served, services),
            slots=Slots(settings.slots),
            threads=min(_THREADS_MAX, max(_THREADS_MIN, settings.slots // _SLOTS_PER_THREAD)),
            drain_seconds=settings.drain_seconds,
        )
    finally:
        tracing.close()


def run_scheduler(settings: Settings) -> int:
    """Run the duties until a signal comes."""
    from worker.logs import configure

    configure(settings)
    tracing.configure(settings, "scheduler")
    collector.calm()
    try:
        return uvloop.run(_schedule(settings))
    finally:
        tracing.close()


async def _schedule(settings: Settings) -> int:
    from worker.boot import opened_scheduler

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    async with opened_scheduler(settings) as scheduler:
        log.info("scheduler started")
        running = asyncio.create_task(scheduler.run())
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error
    log.info("scheduler stopped")
    return 0


def run_api(settings: Settings) -> int:
    """Serve HTTP until a signal comes."""
    from worker.logs import configure
    from worker.web.app import make_app
    from worker.web.server import server_of

    configure(settings)
    tracing.configure(settings, "api")
    collector.calm()
    server = server_of(make_app(settings), settings)
    try:
        server.run()
    finally:
        tracing.close()
    return 0 if server.started else 3
