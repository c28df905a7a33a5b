"""`/v1/queues` and `/v1/workers`: what waits, who works, and the brakes."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from worker.store.errors import Refused
from worker.store.ops import RUNNING_MAX_MAX, Scope, Switched
from worker.store.reads_queues import QueueShown, WorkerShown
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountPath, Body, Line
from worker.web.problems import Problem, responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

T = TypeVar("T")

router = APIRouter(prefix="/v1", tags=["queues"], route_class=StrictRoute)

Looker = Annotated[Caller, allowed(May.LOOK_AT_QUEUES)]
Steerer = Annotated[Caller, allowed(May.STEER)]
QueueName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="The queue.")]
_CHANGES = responses(400, 404, 413, 415, 422)


class QueuesAnswer(BaseModel):
    queues: list[QueueShown]


class WorkersAnswer(BaseModel):
    workers: list[WorkerShown]


class ReasonBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "GPU maintenance"}]})

    reason: Line = Field(description="Why; shown beside the queue and in the log.")


class LimitBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"running_max": 8}]})

    running_max: int | None = Field(ge=1, le=RUNNING_MAX_MAX, description="null takes the limit away.")


class LimitAnswer(BaseModel):
    queue: str
    running_max: int | None


@router.get("/queues", response_model=QueuesAnswer, responses=responses())
async def queues(request: Request, caller: Looker) -> Response:
    """Every queue with its depth, its age, its workers and its brakes."""
    return answer({"queues": await services_of(request).reads.queues()})


@router.get("/workers", response_model=WorkersAnswer, responses=responses())
async def workers(request: Request, caller: Looker) -> Response:
    """Every worker process."""
    return answer({"workers": await services_of(request).reads.workers()})


@router.post("/queues/{queue}/pause", response_model=Switched, responses=_CHANGES)
async def pause(request: Request, caller: Steerer, queue: QueueName, body: ReasonBody) -> Response:
    """Start no more of its jobs. Those that run go on, and submits are taken."""
    controls = services_of(request).controls
    return answer(await known(controls.pause(Scope.QUEUE, queue, body.reason, caller.actor)))


@router.post("/queues/{queue}/resume", response_model=Switched, responses=_CHANGES)
async def resume(request: Request, caller: Steerer, queue: QueueName) -> Response:
    """Let its jobs run again."""
    return answer(await known(services_of(request).controls.resume(Scope.QUEUE, queue, caller.actor)))


@router.post("/queues/{queue}/limit", response_model=LimitAnswer, responses=_CHANGES)
async def limit(request: Request, caller: Steerer, queue: QueueName, body: LimitBody) -> Response:
    """Run at most so many of its jobs at a time."""
    await known(services_of(request).controls.limit(queue, body.running_max, caller.actor))
    return answer({"queue": queue, "running_max": body.running_max})


@router.post("/accounts/{account}/pause", response_model=Switched, responses=_CHANGES)
async def pause_account(request: Request, caller: Steerer, account: AccountPath, body: ReasonBody) -> Response:
    """Start no more jobs of an account."""
    caller.check(account)
    return answer(await services_of(request).controls.pause(Scope.ACCOUNT, account, body.reason, caller.actor))


@router.post("/accounts/{account}/resume", response_model=Switched, responses=_CHANGES)
async def resume_account(request: Request, caller: Steerer, account: AccountPath) -> Response:
    """Let an account's jobs run again."""
    caller.check(account)
    return answer(await services_of(request).controls.resume(Scope.ACCOUNT, account, caller.actor))


async def known(step: Awaitable[T]) -> T:
    """The step's answer. A queue or kind that nobody knows is an address where nothing is."""
    try:
        return await step
    except Refused as error:
        if error.field not in (Scope.QUEUE, Scope.KIND):
            raise
        raise Problem(404, str(error), f"unknown_{error.field}") from None
