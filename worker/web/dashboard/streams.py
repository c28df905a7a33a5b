"""Streams that keep a page's figures moving: parts of pages as server-sent events, from the look shared by all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from worker.credits.states import ENDED
from worker.store.errors import StoreError
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.doors import job_id_of
from worker.web.dashboard.live import Live, Look
from worker.web.dashboard.overview import overview_part, plots_part
from worker.web.dashboard.session import SignedOut, Visitor, visitor_of
from worker.web.dashboard.workers import workers_part

#: Streams of one process. Further ones are told to come again.
STREAMS_MAX = 2000
#: Looks between two sendings of the plots, which show minutes.
PLOTS_EVERY = 10
#: Seconds after which a stream asks again whether its session is open.
LOOK_SECONDS = 10.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def overview(request: Request, visitor: Visitor) -> Response:
    """The overview's figures."""
    return _stream(request, overview_events)


async def workers(request: Request, visitor: Visitor) -> Response:
    """The workers' figures."""
    return _stream(request, workers_events)


async def job(request: Request, visitor: Visitor) -> Response:
    """One job's progress, until it has ended."""
    job_id = job_id_of(request.path_params["job"])
    return _stream(request, lambda live: job_events(live, job_id))


def event(text: str, name: str | None = None) -> bytes:
    """One server-sent event."""
    lines = [f"data: {line}" for line in text.splitlines() or [""]]
    return "\n".join([*([f"event: {name}"] if name else []), *lines, "", ""]).encode()


def _stream(request: Request, events: Callable[[Live], AsyncGenerator[bytes]]) -> Response:
    board = board_of(request)
    if board.live.viewers >= STREAMS_MAX:
        return Response(status_code=503, headers={"retry-after": "30"})
    shown = _while_signed_in(request, events(board.live))
    return StreamingResponse(shown, media_type="text/event-stream", headers=_HEADERS)


async def _while_signed_in(request: Request, events: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    """What is shown, until the session is over or its key is revoked: asked again every ten seconds."""
    asked_at = monotonic()
    async with aclosing(events):
        async for line in events:
            if monotonic() - asked_at >= LOOK_SECONDS:
                asked_at = monotonic()
                try:
                    await visitor_of(request)
                except SignedOut:
                    return
                except StoreError:
                    pass  # nobody can say now, and nobody is cut off
            yield line


async def _parts(
    live: Live, name: str, make: Callable[[Look], str], seldom: Callable[[Look], str] | None = None
) -> AsyncGenerator[bytes]:
    async with aclosing(live.looks_from()) as looks:
        async for look in looks:
            yield live.part(name, look, lambda look: event(make(look)).decode())
            if seldom is not None and look.number % PLOTS_EVERY == 0:
                yield live.part("plots", look, lambda look: event(seldom(look), "plots").decode())


def overview_events(live: Live) -> AsyncGenerator[bytes]:
    """What moves on the overview, with each look; now and then what its plots show."""
    return _parts(live, "overview", overview_part, plots_part)


def workers_events(live: Live) -> AsyncGenerator[bytes]:
    """What moves on the page of workers, with each look."""
    return _parts(live, "workers", workers_part)


async def job_events(live: Live, job_id: UUID) -> AsyncGenerator[bytes]:
    """One job whenever it has changed; `moved` where the whole page is another one now. Ends with the job."""
    shown = None
    async with aclosing(live.looks_from(job_id)) as looks:
        async for look in looks:
            glance = look.glance(job_id)
            if glance is None or glance == shown:
                continue
            before, shown = shown, glance
            if before is not None and (before.state, before.attempts) != (glance.state, glance.attempts):
                yield event(glance.state, "moved")
            yield event(frame.render("job_live.html", glance=glance))
            if glance.state in ENDED:
                return
