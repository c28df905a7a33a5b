"""`/v1/jobs`: ask for a job, look at it, stop it, try it again, see what it cost."""

from __future__ import annotations

from hashlib import sha256
from time import monotonic
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from worker.client import JobRequest
from worker.credits.lots import CREDITS_MAX
from worker.credits.operations import AlreadyEnded, CancelAsked, TryAgain
from worker.credits.states import ENDED, JobState
from worker.store.compensations import Compensated
from worker.store.errors import LedgerUnavailable, Refused, UnknownAccount
from worker.store.json_values import problem_of_json
from worker.store.reads_job_lists import JobsPage
from worker.store.reads_jobs import JobShown
from worker.store.reads_receipts import Receipt
from worker.store.submits import Submitted
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX
from worker.web.access import Caller, May, allowed, check_job, still_open
from worker.web.answers import answer
from worker.web.fields import (
    AccountId,
    AccountQuery,
    After,
    Body,
    Credits,
    IdempotencyKey,
    Instant,
    JobId,
    Limit,
    Line,
    OwnKey,
    printable,
    whole,
)
from worker.web.problems import Problem, document, responses, said
from worker.web.services import Services, services_of
from worker.web.strict_json import VALUES_MAX, StrictRoute

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

#: Jobs in one batch, and the bytes they may take together.
BATCH_MAX, BATCH_BYTES_MAX = 1_000, 8 * 1024**2
#: Characters of a batch's key that stand in its items' keys, whose `/` and place need the rest of 255.
_BATCH_KEY_MAX = 240
_REASON_MAX = NOTE_LENGTH_MAX - ACTOR_LENGTH_MAX - len(" ()")

_EXAMPLE: dict[str, Any] = {
    "account": "ada",
    "kind": "generation",
    "params": {"prompt": "warm lofi piano", "seconds_max": 60},
    "max_credits": 40,
    "metadata": {"song": "42"},
}


class SubmitBody(Body):
    """A job. What it costs at most is told at once and never rises."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    account: AccountId
    kind: str = Field(min_length=1, max_length=64, description="What sort of job: `generation`, `stem_split`, …")
    params: dict[str, Any] = Field(default_factory=dict, description="What to make; the fields of the kind.")
    inputs: dict[str, str] = Field(default_factory=dict, description="Artifacts by the kind's input names.")
    on_insufficient: Literal["refuse", "wait"] = Field(
        "refuse", description="If the account can't pay: turn it down, or let it wait for credits."
    )
    max_credits: int | None = Field(None, ge=0, le=CREDITS_MAX, description="Turn it down if the quote is above this.")
    run_at: Instant | None = Field(None, description="Not before this time.")
    ends_by: Instant | None = Field(None, description="Ended by this time at the latest; by default in a day.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Yours; kept with the job, found by it.")

    def asked(self, key: str) -> JobRequest:
        """As the client takes it."""
        return JobRequest(
            account_id=self.account,
            kind=self.kind,
            params=self.params,
            inputs=self.inputs,
            key=key,
            on_insufficient=self.on_insufficient,
            max_credits=self.max_credits,
            run_at=self.run_at,
            ends_by=self.ends_by,
            metadata=self.metadata,
            check_credits=True,
        )


class BatchItem(SubmitBody):
    """A job of a batch."""

    key: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="Its own idempotency key, printable ASCII. Default: the batch's, `/` and its place.",
    )


def _or_why_not(given: object, validate: ValidatorFunctionWrapHandler) -> object:
    """The item, or what is wrong with it, as a submit of its own would be told."""
    if (problem := problem_of_json(given, VALUES_MAX)) is not None:
        return Problem(422, f"the job {problem}")
    try:
        return validate(given)
    except ValidationError as error:
        return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])


class BatchBody(Body):
    """Several jobs, each answered for itself: a bad one harms no other."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"jobs": [_EXAMPLE]}]})

    # Also an exception, in the place of an item that is none.
    jobs: list[Annotated[BatchItem, WrapValidator(_or_why_not)]] = Field(min_length=1, max_length=BATCH_MAX)


class SubmitAnswer(BaseModel):
    """A job that is stored. `quoted`: the most that it will cost; `replayed`: it was there already, by its key.

    `position`: about so many jobs stand in its queue, this one among them, as counted in the last second.
    """

    id: UUID
    account: str
    kind: str
    state: JobState
    quoted: int
    book: int
    replayed: bool
    key: str
    position: int | None = None


class BatchResult(BaseModel):
    """One item's answer: `job`, or `problem` with its code."""

    job: SubmitAnswer | None = None
    problem: dict[str, Any] | None = None


class BatchAnswer(BaseModel):
    """As many results as there were items, in their order."""

    results: list[BatchResult]
    taken: int
    turned_down: int


class CancelBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "changed my mind"}]})

    reason: str = Field(
        "cancelled by request", min_length=1, max_length=_REASON_MAX, description="For the customer and the books."
    )


class CompensateBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"amount": 5, "reason": "a click in the second chorus"}]})

    amount: Credits
    reason: Line = Field(description="Why, for the customer and the books.")


class CancelAnswer(BaseModel):
    """`cancel_asked`: it runs, its worker stops it within seconds, unless it finishes first."""

    id: UUID
    account: str
    state: JobState
    cancel_asked: bool
    already_ended: bool


Submitter = Annotated[Caller, allowed(May.SUBMIT)]
Looker = Annotated[Caller, allowed(May.LOOK_AT_JOBS)]
Canceller = Annotated[Caller, allowed(May.CANCEL)]


@router.post(
    "", status_code=202, response_model=SubmitAnswer, responses=responses(400, 402, 404, 408, 409, 413, 415, 422)
)
async def submit(request: Request, caller: Submitter, body: SubmitBody, key: IdempotencyKey) -> Response:
    """Ask for a job.

    It is stored once this answers, whatever happens to any process afterwards. The same key with the same body is
    answered again; turned down (402, 409, 422), nothing is stored and the key is not used up.
    """
    caller.check(body.account)
    done = await services_of(request).client.submit(body.asked(key), caller.actor)
    return answer(await _stored(request, done, key), 202, {"Location": f"/v1/jobs/{done.job_id}"})


@router.post("/batch", status_code=207, response_model=BatchAnswer, responses=responses(400, 408, 413, 415, 422))
async def submit_batch(request: Request, caller: Submitter, body: BatchBody, key: IdempotencyKey) -> Response:
    """Ask for up to 1,000 jobs at once. Sent again with the same key it is the same jobs."""
    asked = [_item_asked(item, key, place) for place, item in enumerate(body.jobs)]
    mine = [one for one in asked if isinstance(one, JobRequest) and caller.covers(one.account_id)]
    done = await services_of(request).client.submit_many(mine, caller.actor)
    stored = [one for one in done if isinstance(one, Submitted)]
    answers, positions = iter(done), iter(await services_of(request).depths.positions(stored))
    request_id = request.scope["state"]["request_id"]
    results = []
    for one in asked:
        if isinstance(one, Exception):
            results.append({"problem": document(said(one), request_id)})
            continue
        told = next(answers) if caller.covers(one.account_id) else UnknownAccount(one.account_id)
        if isinstance(told, Submitted):
            results.append({"job": {**told.shown(str(one.key)), "position": next(positions)}})
        else:
            results.append({"problem": document(said(told), request_id)})
    taken = sum("job" in result for result in results)
    return answer({"results": results, "taken": taken, "turned_down": len(results) - taken}, 207)


@router.get("", response_model=JobsPage, responses=responses(404, 422))
async def jobs(
    request: Request,
    caller: Looker,
    account: AccountQuery = None,
    state: Annotated[str | None, Query(max_length=16, description="queued, running, waiting, succeeded, …")] = None,
    kind: Annotated[
        str | None, AfterValidator(printable), Query(max_length=64, description="Of this kind only.")
    ] = None,
    created_from: Annotated[Instant | None, Query(description="Submitted at this time or later.")] = None,
    created_before: Annotated[Instant | None, Query(description="Submitted before this time.")] = None,
    metadata: Annotated[
        list[str] | None, Query(max_length=8, description="`name=value` of the metadata; with an account only.")
    ] = None,
    key: Annotated[
        str | None,
        AfterValidator(printable),
        Query(min_length=1, max_length=255, description="The one with this idempotency key; with an account only."),
    ] = None,
    limit: Limit = 50,
    after: After = None,
) -> Response:
    """Jobs, the newest first. A key that is bound to accounts names one of them."""
    whose = account or caller.key.account
    if whose is not None:
        caller.check(whose)
    elif caller.bound:
        raise Refused("account", "must be given: this key may know of some accounts only")
    page = await services_of(request).reads.jobs(
        whose,
        state,
        kind,
        limit,
        after,
        created_from=created_from,
        created_before=created_before,
        metadata=_pairs(metadata or []),
        key=key,
    )
    return answer(page)


@router.get("/{job}", response_model=JobShown, responses=responses(404))
async def job(
    request: Request,
    caller: Looker,
    job: JobId,
    wait: Annotated[
        int, BeforeValidator(whole), Query(ge=0, le=60, description="Answer when it has ended, or after so long.")
    ] = 0,
) -> Response:
    """One job as it stands: its state, what it waits for, how far it is, what it made and what it cost."""
    found = await shown(request, caller, job)
    if wait and found.state not in ENDED:
        await _ended_or_waited(services_of(request), caller, job, wait)
        found = await shown(request, caller, job)
    return answer(found)


@router.post(
    "/{job}/cancel", status_code=200, response_model=CancelAnswer, responses=responses(400, 404, 409, 413, 415, 422)
)
async def cancel(request: Request, caller: Canceller, job: JobId, body: CancelBody | None = None) -> Response:
    """End a queued or waiting job, or ask a running one to stop. Nothing is charged. 409 if it had ended before."""
    services = services_of(request)
    before = await shown(request, caller, job)
    reason = (body or CancelBody()).reason
    done = await services.client.cancel(before.account, job, reason, caller.actor)
    if isinstance(done, TryAgain):
        raise LedgerUnavailable("the job's row is held")
    if isinstance(done, AlreadyEnded):
        raise Problem(409, f"it had ended before: {done.state}", "already_ended", state=done.state)
    state = JobState.RUNNING if isinstance(done, CancelAsked) else getattr(done, "state", before.state)
    asked = {"state": state, "cancel_asked": isinstance(done, CancelAsked)}
    return answer({"id": job, "account": before.account, "already_ended": False, **asked})


@router.post("/{job}/retry", status_code=202, response_model=SubmitAnswer, responses=responses(400, 402, 404, 409, 422))
async def retry(request: Request, caller: Submitter, job: JobId, key: OwnKey = None) -> Response:
    """Ask for an ended job's request again: a new job with a fresh quote. By default once, however often asked."""
    await shown(request, caller, job)
    done = await services_of(request).client.retry(job, caller.actor, key, check_credits=True)
    return answer(await _stored(request, done, key or f"retry:{job}"), 202, {"Location": f"/v1/jobs/{done.job_id}"})


@router.get("/{job}/receipt", response_model=Receipt, responses=responses(404))
async def receipt(request: Request, caller: Looker, job: JobId) -> Response:
    """Why it cost what it did: which lots paid, by which rules, what was measured, why the rest came back."""
    await check_job(services_of(request), caller, job)
    return answer(await services_of(request).reads.receipt(job))


@router.post(
    "/{job}/compensate", status_code=201, response_model=Compensated, responses=responses(400, 404, 409, 413, 415, 422)
)
async def compensate(
    request: Request,
    caller: Annotated[Caller, allowed(May.COMPENSATE)],
    job: JobId,
    body: CompensateBody,
    key: IdempotencyKey,
) -> Response:
    """Give credits for an ended job, once a key, in total at most what it was charged. Its charge stays as it is."""
    found = await shown(request, caller, job)
    done = await services_of(request).compensations.compensate(
        found.account, job, body.amount, key, body.reason, caller.actor
    )
    return answer(done, 200 if done.replayed else 201)


async def _ended_or_waited(services: Services, caller: Caller, job_id: UUID, seconds: int) -> None:
    until = monotonic() + seconds
    with services.watcher.following(job_id, caller.key) as follower:
        while (left := until - monotonic()) > 0 and await follower.news(left):
            if services.watcher.closed or (await services.following.pulses([job_id]))[job_id].state in ENDED:
                break
    await still_open(services, caller)


async def shown(request: Request, caller: Caller, job_id: UUID) -> JobShown:
    """The job, if the caller may know of it. Raises `UnknownJob`, after the same look for whichever reason."""
    await check_job(services_of(request), caller, job_id)
    return await services_of(request).reads.job(job_id)


def _item_asked(item: BatchItem | Exception, batch: str, place: int) -> JobRequest | Exception:
    return item if isinstance(item, Exception) else item.asked(item.key or _key_of(batch, place))


def _key_of(batch: str, place: int) -> str:
    """The key of a batch's item. A long one goes in by its sum: two batches never share an item for how they begin."""
    if len(batch) > _BATCH_KEY_MAX:
        batch = f"{batch[: _BATCH_KEY_MAX - 65]}#{sha256(batch.encode()).hexdigest()}"
    return f"{batch}/{place}"


async def _stored(request: Request, done: Submitted, key: str) -> dict[str, Any]:
    [position] = await services_of(request).depths.positions([done])
    return {**done.shown(key), "position": position}


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = dict(one.partition("=")[::2] for one in given)
    if not all(pairs) or any("\0" in one or "=" not in one for one in given):
        raise Refused("metadata", "must be written name=value")
    return pairs
