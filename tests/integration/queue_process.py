"""A worker process for the tests: `python -m tests.integration.queue_process URL [name=value]…`.

Its jobs run `job_seconds`. It prints a line for whatever happens: `ready`, `claimed ID`, `ended ID`,
`handed back ID`, `unhinted N`, `closed`. Its log goes to stderr, so that no two threads share a line.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import structlog

from tests.integration.queue_support import NAMESPACE, QUEUE
from worker.actors import declare
from worker.queue import process
from worker.queue.broker import make_broker
from worker.queue.hints import Pair
from worker.queue.process import run_worker_process
from worker.slots import HAND_BACK, Claimed, Slots


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201  (what the test reads)


class TellingServices:
    def __init__(self, slots: Slots, options: dict[str, str]) -> None:
        self.slots = slots
        self.runner = self
        self._job_seconds = float(options.get("job_seconds", "0"))
        self._hand_back_seconds = float(options.get("hand_back_seconds", "0"))

    async def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> None:
        claimed()
        tell(f"claimed {job_id}")
        try:
            await asyncio.sleep(self._job_seconds)
        except asyncio.CancelledError as error:
            await asyncio.sleep(self._hand_back_seconds)
            tell(f"handed back {job_id}" if error.args == (HAND_BACK,) else f"cancelled {job_id}")
        else:
            tell(f"ended {job_id}")

    async def fitting(self, pairs: Sequence[Pair]) -> list[Pair]:
        return list(pairs)

    async def unhint(self, pairs: Sequence[Pair]) -> None:
        tell(f"unhinted {len(pairs)}")


def main(redis_url: str, *settings: str) -> int:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    options = dict(setting.split("=") for setting in settings)

    @asynccontextmanager
    async def services(slots: Slots) -> AsyncIterator[TellingServices]:
        if options.get("boot") == "fails":
            raise ConnectionError("the ledger is away")
        if options.get("boot") == "hangs":
            tell("booting")
            await asyncio.sleep(3600)
        if options.get("executor") == "hangs":
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        tell("ready")
        yield TellingServices(slots, options)
        tell("closed")

    if options.get("executor") == "hangs":
        process.CLOSE_SECONDS = process.EXIT_SECONDS = 0.5  # type: ignore[misc]
    broker = make_broker(redis_url, namespace=NAMESPACE, worker=True)
    return run_worker_process(
        broker,
        services=services,
        declare=lambda made: declare(broker, [QUEUE], made),
        slots=Slots(int(options.get("slots", "2"))),
        threads=2,
        drain_seconds=float(options.get("drain_seconds", "20")),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
