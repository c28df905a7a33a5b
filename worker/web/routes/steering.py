"""`/v1/jobs/…-many`, `/v1/jobs/{job}/force-end`, `/v1/workers/{worker}/drain`, `/v1/kinds/…`: what ops do at once."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from worker.credits.states import JobState
from worker.steering import JOBS_MAX, PERCENT_MAX, ForcedEnd, ManyDone, Wanted
from worker.store.errors import Refused
from worker.store.ops import Scope, Switched
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountId, Body, Instant, JobId
from worker.web.problems import Problem, responses
from worker.web.routes.queues import ReasonBody, Steerer, known
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1", tags=["steering"], route_class=StrictRoute)

_REASON_MAX = NOTE_LENGTH_MAX - ACTOR_LENGTH_MAX - len(" ()")
Reason = Annotated[str, Field(min_length=1, max_length=_REASON_MAX, description="Why, for customers and the books.")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
KindName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="The kind of job.")]
WorkerName = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="As `GET /v1/workers` names it.")]
Compensator = Annotated[Caller, allowed(May.COMPENSATE)]
_CHANGES = responses(400, 404, 409, 413, 415, 422)


class FilterBody(Body):
    """Which jobs are meant: all that match everything given. With `dry_run` they are only looked at."""

    account: AccountId | None = None
    kind: Name | None = None
    queue: Name | None = None
    state: JobState | None = Field(None, strict=False, description="Of those that the act can be done to.")
    ended_for: str | None = Field(None, min_length=1, max_length=64, description="Ended for this reason.")
    created_from: Instant | None = Field(None, description="Submitted at this time or later.")
    created_before: Instant | None = Field(None, description="Submitted before this time.")
    metadata: dict[Annotated[str, Field(min_length=1, max_length=255)], Annotated[str, Field(max_length=255)]] = Field(
        default_factory=dict, max_length=8, description="With these values; with an account only."
    )
    limit: int = Field(1000, ge=1, le=JOBS_MAX, description="At most so many at once.")
    after: str | None = Field(
        None, min_length=1, max_length=64, description="Go on behind this place: `next` of the portion before."
    )
    dry_run: bool = Field(False, description="Only tell what would happen to which.")

    def wanted(self, caller: Caller) -> Wanted:
        """As the act takes it. Raises `UnknownAccount` for an account of others."""
        if self.account is not None:
            caller.check(self.account)
        elif caller.bound:
            raise Refused("account", "must be given: this key may know of some accounts only")
        return Wanted(
            account=self.account,
            kind=self.kind,
            queue=self.queue,
            state=self.state,
            reason=self.ended_for,
            limit=self.limit,
            created_from=self.created_from,
            created_before=self.created_before,
            metadata=self.metadata,
            after=self.after,
        )


class CancelManyBody(FilterBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"account": "ada", "reason": "bad batch"}]})

    reason: Reason


class RetryManyBody(FilterBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"account": "ada", "state": "failed"}]})

    state: JobState | None = Field(JobState.FAILED, strict=False, description="null: cancelled and refused ones too.")


class CompensateManyBody(FilterBody):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"account": "ada", "percent": 50, "reference": "noise", "reason": "noise"}]}
    )

    percent: int = Field(ge=1, le=PERCENT_MAX, description="Of what each was charged; rounded up.")
    reference: str = Field(
        min_length=1, max_length=100, pattern=r"^\S+$", description="Yours: each job is compensated once under it."
    )
    reason: Reason


class ForceEndBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "hangs since noon"}]})

    reason: Reason


class DrainAnswer(BaseModel):
    worker: str
    drain_asked: bool


@router.post("/jobs/cancel-many", response_model=ManyDone, responses=_CHANGES)
async def cancel_many(request: Request, caller: Steerer, body: CancelManyBody) -> Response:
    """Cancel all unfinished jobs that match, each for itself."""
    steering = services_of(request).steering
    return answer(await steering.cancel_many(body.wanted(caller), body.reason, caller.actor, dry_run=body.dry_run))


@router.post("/jobs/retry-many", response_model=ManyDone, responses=_CHANGES)
async def retry_many(request: Request, caller: Steerer, body: RetryManyBody) -> Response:
    """Ask again for all unsuccessful jobs that match, each once, freshly quoted."""
    steering = services_of(request).steering
    return answer(await steering.retry_many(body.wanted(caller), caller.actor, dry_run=body.dry_run))


@router.post("/jobs/compensate-many", response_model=ManyDone, responses=_CHANGES)
async def compensate_many(request: Request, caller: Compensator, body: CompensateManyBody) -> Response:
    """Give credits for all charged jobs that match, in total at most what each was charged."""
    steering = services_of(request).steering
    return answer(
        await steering.compensate_many(
            body.wanted(caller), body.percent, body.reference, body.reason, caller.actor, dry_run=body.dry_run
        )
    )


@router.post("/jobs/{job}/force-end", response_model=ForcedEnd, responses=_CHANGES)
async def force_end(request: Request, caller: Steerer, job: JobId, body: ForceEndBody) -> Response:
    """End a running job that is stuck: it fails, its hold goes back, and whoever runs it can no longer settle it."""
    return answer(await services_of(request).steering.force_end(job, body.reason, caller.actor))


@router.post("/workers/{worker}/drain", response_model=DrainAnswer, responses=_CHANGES)
async def drain(request: Request, caller: Steerer, worker: WorkerName) -> Response:
    """Let a worker take no more jobs, finish those it has, and end. It hears of it within seconds."""
    try:
        await services_of(request).steering.drain_worker(worker, caller.actor)
    except Refused as error:
        raise Problem(404, str(error), "unknown_worker") from None
    return answer({"worker": worker, "drain_asked": True})


@router.post("/kinds/{kind}/pause", response_model=Switched, responses=_CHANGES)
async def pause_kind(request: Request, caller: Steerer, kind: KindName, body: ReasonBody) -> Response:
    """Start no more jobs of a kind. Those that run go on, and submits are taken."""
    return answer(await known(services_of(request).controls.pause(Scope.KIND, kind, body.reason, caller.actor)))


@router.post("/kinds/{kind}/resume", response_model=Switched, responses=_CHANGES)
async def resume_kind(request: Request, caller: Steerer, kind: KindName) -> Response:
    """Let its jobs run again."""
    return answer(await known(services_of(request).controls.resume(Scope.KIND, kind, caller.actor)))
