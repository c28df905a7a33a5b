"""The event loop of a worker process, on a thread of its own, where dramatiq's async actors and the slots run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final, Generic, TypeVar

import structlog
import uvloop
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread

T = TypeVar("T")

#: Seconds for the loop's thread to start on a machine that is busy, and to end.
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class LoopThread(EventLoopThread):
    """dramatiq's event loop thread, with uvloop, and never in the way of the process's end."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger(__name__))
        self.loop.close()
        self.loop = uvloop.new_event_loop()
        # As it comes it is none: a process whose loop hangs would hang too.
        self.daemon = True

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        """Stop the loop and wait, for a bounded time."""
        if self.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.join(STOP_SECONDS)


@contextmanager
def running_loop() -> Iterator[LoopThread]:
    """The loop, known to dramatiq's async actors while the block runs.

    Instead of dramatiq's AsyncIO middleware: what fails here is raised, where a hook's error is swallowed and a
    worker without a loop goes on to throw away every hint.
    """
    thread = LoopThread()
    thread.start(timeout=START_SECONDS)
    set_event_loop_thread(thread)
    try:
        yield thread
    finally:
        set_event_loop_thread(None)
        thread.stop()


class Hosted(Generic[T]):
    """An async context manager held open on the loop by one task, which both enters and leaves it."""

    def __init__(
        self,
        loop: LoopThread,
        manager: AbstractAsyncContextManager[T],
        *,
        on_entered: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """Both callbacks come from the loop's thread; `on_end` whatever ended it."""
        self._loop = loop
        self._on_entered = on_entered
        self._leave = asyncio.Event()
        self._entering: asyncio.Task[None] | None = None
        self._value: Future[T] = Future()
        self._task = loop.submit(self._hold(manager))
        self._task.add_done_callback(lambda _: on_end())

    def value(self) -> T:
        """What the manager gave, or raise what it raised, once it was entered or has ended."""
        return self._value.result(0)

    def close(self, seconds: float) -> None:
        """Leave it and wait, at most that long. What that raises is logged: nobody could do anything about it."""
        self._loop.loop.call_soon_threadsafe(self._end)
        try:
            self._task.result(seconds)
        except TimeoutError:
            log.error("services not closed in time", seconds=seconds)
        except CancelledError:
            log.info("services closed before they were ready")
        except Exception:
            log.exception("services failed")

    def _end(self) -> None:
        self._leave.set()
        if self._entering is not None and not self._value.done():
            self._entering.cancel()

    async def _hold(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._entering = asyncio.current_task()
        try:
            async with manager as value:
                self._value.set_result(value)
                self._on_entered()
                await self._leave.wait()
        except Exception as error:
            if self._value.done():
                raise
            self._value.set_exception(error)
