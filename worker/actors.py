"""The dramatiq actor: a hint in, its jobs into free slots."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol
from uuid import UUID

import dramatiq
import structlog

from worker.queue.hints import ACTOR_NAME, Pair
from worker.slots import Claimed, Slots

log = structlog.get_logger(__name__)


class Runner(Protocol):
    """The story of one job: claim, run, settle."""

    def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> Awaitable[None]:
        """Run the job to its settled end. Calls `claimed` once it is ours; returns early when the claim is dropped.

        Cancelled with `worker.slots.HAND_BACK` as the reason it puts the job back in the queue.
        """


class Services(Protocol):
    """What the composition root gives to the actor."""

    @property
    def slots(self) -> Slots: ...

    @property
    def runner(self) -> Runner: ...

    def fitting(self, pairs: Sequence[Pair]) -> Awaitable[list[Pair]]:
        """The jobs that this process can run; the others are left to those who can."""

    def unhint(self, pairs: Sequence[Pair]) -> Awaitable[None]:
        """Clear the hint marks of these jobs in one statement, so that dispatch sends them elsewhere at once."""


def declare(broker: dramatiq.Broker, queues: Sequence[str], services: Services) -> dramatiq.Actor[[list[Pair]], None]:
    """Declare the queues and the one actor that serves them all. The consumer has checked what reaches it."""
    for queue in queues:
        broker.declare_queue(queue)

    @dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queues[0])
    async def run(pairs: list[Pair]) -> None:
        try:
            fitting = await services.fitting(pairs)
            left_over = await services.slots.offer(fitting, services.runner.run)
            if left_over:
                await services.unhint(left_over)
        except Exception:
            # The jobs' marks stay: dispatch sends another hint when they have grown old.
            log.exception("hint dropped", jobs=len(pairs))

    return run
