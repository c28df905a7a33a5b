"""Ends a process whose event loop stands still: its leases lapse, and the hints that it goes on taking are lost."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

#: The waits that a loop's silence is made of. A process that was frozen for a while finds one of them over, not all.
LOOKS: Final = 10

#: As of a background task that died: gone, loudly, and to be started again.
EXIT_CODE: Final = 70

log = structlog.get_logger(__name__)


@contextmanager
def watched(loop: asyncio.AbstractEventLoop, seconds: float) -> Iterator[None]:
    """End the process if the loop does not answer for so long while the block runs.

    An engine that blocks the loop, or a loop that has died, can't be helped from inside it.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(loop, seconds, over), name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(loop: asyncio.AbstractEventLoop, seconds: float, over: threading.Event) -> None:
    pause = seconds / LOOKS
    while not over.wait(pause):
        answered = threading.Event()
        try:
            loop.call_soon_threadsafe(answered.set)
        except RuntimeError:
            return  # closed in good order
        if not any(answered.wait(pause) or over.is_set() for _ in range(LOOKS)):
            log.critical("the event loop stands still, ending the process", seconds=seconds)
            os._exit(EXIT_CODE)
