"""`/v1/jobs/{id}/events`: a job's story as it happens, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from worker.store.errors import LedgerUnavailable
from worker.store.reads_following import Story
from worker.web.access import Caller, May, allowed, check_job
from worker.web.fields import JobId
from worker.web.problems import responses
from worker.web.services import Services, services_of
from worker.web.strict_json import StrictRoute
from worker.web.watching import TICK_SECONDS

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

#: Seconds after which a silent stream says that it lives.
_KEEP_ALIVE_SECONDS = 15.0
#: Seconds between looks whether the key still opens, for whoever hears nothing meanwhile.
_LOOK_SECONDS = 3.0
#: Milliseconds after which a client comes back when it was cut off.
_RETRY_MILLISECONDS = 1_000
#: What the stream sends after this long it sends on the next connection: keys expire, processes are replaced.
_STREAM_SECONDS = 3_600.0

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `queued`, `started`, `attempt_ended`, `progress` and `ended`, each with JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "The job has ended and all of it was told: there is nothing to come back for."},
}


@router.get("/{job}/events", response_class=Response, responses=responses(404, 422) | _STREAM)
async def events(
    request: Request,
    caller: Annotated[Caller, allowed(May.LOOK_AT_JOBS)],
    job: JobId,
    last: Annotated[
        str | None,
        Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,9}$", description="Go on behind this one; browsers send it."),
    ] = None,
) -> Response:
    """Follow a job to its end.

    Numbered events are never skipped, whatever process or database was restarted meanwhile: come back with the last
    number. `progress` has none: it tells how far the run is, at most once a second. The stream ends with the job.
    """
    services = services_of(request)
    await check_job(services, caller, job)
    story = await services.following.story(job)
    seen = int(last) if last is not None else -1
    if story.ended and seen >= story.events[-1].id:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    told = _told(services, caller, story, seen)
    # Whoever can't be given a place is told so, before the answer has begun.
    first = await anext(told)
    return StreamingResponse(_after(first, told), 200, headers, "text/event-stream")


def _seconds_of(caller: Caller) -> float:
    """For so long a stream may tell: what a key opened closes with it."""
    expires_at = caller.key.expires_at
    if expires_at is None:
        return _STREAM_SECONDS
    return max(0.0, min(_STREAM_SECONDS, (expires_at - datetime.now(UTC)).total_seconds()))


async def _after(first: bytes, told: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(told):
        yield first
        async for line in told:
            yield line


async def _told(services: Services, caller: Caller, story: Story, seen: int) -> AsyncGenerator[bytes]:
    until = monotonic() + _seconds_of(caller)
    with services.watcher.following(story.job, caller.key) as follower:
        yield format_sse_event(comment="a job's story", retry=_RETRY_MILLISECONDS)
        # Read again: what happened before we followed is in it, what happens from here on is news.
        current, progress = await _read(services, story), None
        while True:
            for event in current.events:
                if event.id > seen:
                    yield _written({"event": event.event, "at": event.at, **event.details}, event.event, event.id)
                    seen = event.id
            if current.ended or services.watcher.closed or monotonic() > until:
                return
            if current.progress is not None and (current.progress, current.stage) != progress:
                progress = (current.progress, current.stage)
                yield _written({"progress": current.progress, "stage": current.stage}, "progress")
            silent_since = monotonic()
            while not await follower.news(min(_LOOK_SECONDS, max(0.0, until - monotonic()))):
                if monotonic() >= until or await _is_shut(services, caller):
                    return
                if monotonic() - silent_since >= _KEEP_ALIVE_SECONDS:
                    silent_since = monotonic()
                    yield format_sse_event(comment="waiting")
            if await _is_shut(services, caller):
                return
            current = await _read(services, current)


async def _is_shut(services: Services, caller: Caller) -> bool:
    """Whether the key opens no more. While the books are away nobody can say, and nobody is cut off."""
    try:
        return await services.keyring.opening_by(caller.digest) is None
    except LedgerUnavailable:
        return False


async def _read(services: Services, known: Story) -> Story:
    """The story as it is now. While the books are away there is none, and whoever follows waits."""
    while True:
        try:
            return await services.following.story(known.job)
        except LedgerUnavailable:
            await asyncio.sleep(TICK_SECONDS)


def _written(document: dict[str, Any], event: str, number: int | None = None) -> bytes:
    data = msgspec.json.encode(document).decode()
    return format_sse_event(data_str=data, event=event, id=None if number is None else str(number))
