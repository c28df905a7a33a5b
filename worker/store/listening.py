"""LISTEN: wake-ups from PostgreSQL on a connection of its own. A lost one costs a tick, never a job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import asyncpg
import structlog

from worker.store.driver import GONE

log = structlog.get_logger(__name__)

#: Seconds between tries to have a connection again.
_RETRY_SECONDS = 1.0
#: Seconds between looks at whether the connection still lives.
_CHECK_SECONDS = 10.0


async def listen(
    database_url: str, channels: Mapping[str, Callable[[str], None]], check_seconds: float = _CHECK_SECONDS
) -> None:
    """Call each channel's function with every notification's payload, until cancelled; reconnects for ever.

    After a reconnect every function is called with "": something may have been missed.
    """
    dsn = database_url.replace("postgresql+asyncpg://", "postgresql://", 1)
    while True:
        with suppress(*GONE):
            await _listen_once(dsn, channels, check_seconds)
        await asyncio.sleep(_RETRY_SECONDS)


async def _listen_once(dsn: str, channels: Mapping[str, Callable[[str], None]], check_seconds: float) -> None:
    connection = await asyncpg.connect(dsn, timeout=5, command_timeout=5)
    cut = asyncio.Event()
    connection.add_termination_listener(lambda _: cut.set())
    try:
        for channel, wake in channels.items():
            await connection.add_listener(channel, lambda *told, wake=wake: wake(str(told[-1])))
        for wake in channels.values():
            wake("")
        while not connection.is_closed():
            # A connection that was cut says so at once; one that is silent is asked.
            with suppress(TimeoutError):
                async with asyncio.timeout(check_seconds):
                    await cut.wait()
            await connection.execute("SELECT 1")
    finally:
        with suppress(*GONE):
            await connection.close(timeout=2)
