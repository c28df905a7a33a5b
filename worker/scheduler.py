"""The clock: runs the duties, each in a loop of its own. Any number of schedulers may run; none leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Protocol

import structlog

from worker.store.errors import StoreError

log = structlog.get_logger(__name__)

#: Seconds to wait after a duty failed.
_FAILED_WAIT_SECONDS = 1.0


class Duty(Protocol):
    """Something to be done again and again. Harmless when done twice at once."""

    @property
    def name(self) -> str: ...

    async def run(self) -> float:
        """Do it once; returns the seconds to wait before the next time."""
        ...


class Scheduler:
    """Runs duties until cancelled. A duty that fails is tried again; the others go on."""

    def __init__(self, duties: Sequence[Duty], took: Callable[[str, float], None] = lambda duty, seconds: None) -> None:
        self._duties = duties
        self._took = took  # told of each run: the duty and the seconds it took
        self.wakes: Mapping[str, asyncio.Event] = {duty.name: asyncio.Event() for duty in duties}

    def wake(self, name: str) -> None:
        """Run this duty now, without waiting for its tick."""
        self.wakes[name].set()

    async def run(self) -> None:
        """Run all duties until cancelled."""
        async with asyncio.TaskGroup() as group:
            for duty in self._duties:
                group.create_task(self._loop(duty, self.wakes[duty.name]), name=f"duty {duty.name}")

    async def _loop(self, duty: Duty, wake: asyncio.Event) -> None:
        while True:
            wait = await self._once(duty)
            try:
                async with asyncio.timeout(wait):
                    await wake.wait()
            except TimeoutError:
                continue
            finally:
                wake.clear()

    async def _once(self, duty: Duty) -> float:
        started = monotonic()
        try:
            wait = await duty.run()
            self._took(duty.name, monotonic() - started)
            return wait
        except StoreError as error:
            log.warning("duty waits for the books", duty=duty.name, error=str(error))
        except Exception:
            log.exception("duty failed", duty=duty.name, seconds=round(monotonic() - started, 3))
        return _FAILED_WAIT_SECONDS
