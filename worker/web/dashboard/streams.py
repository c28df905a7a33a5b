"""Streams that keep a page's figures moving: parts of pages as server-sent events, from the look shared by all."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from worker.credits.states import ENDED
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.doors import job_id_of
from worker.web.dashboard.live import Live, Look, Welcome, everybody
from worker.web.dashboard.overview import overview_part, plots_part, queue_part, switches_of
from worker.web.dashboard.session import COOKIE, Visitor
from worker.web.dashboard.workers import alive_ones, workers_part

#: Streams of one process. Further ones are told to come again.
STREAMS_MAX = 2000
#: Looks between two sendings of the plots, which show minutes.
PLOTS_EVERY = 10
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def overview(request: Request, visitor: Visitor) -> Response:
    """The overview's figures."""
    return _stream(request, overview_events)


async def workers(request: Request, visitor: Visitor) -> Response:
    """The workers' figures."""
    return _stream(request, workers_events)


async def queue(request: Request, visitor: Visitor) -> Response:
    """One queue's figures."""
    name = request.path_params["queue"]
    return _stream(request, lambda live, welcome: queue_events(live, name, welcome))


async def job(request: Request, visitor: Visitor) -> Response:
    """One job's progress, until it has ended."""
    job_id = job_id_of(request.path_params["job"])
    return _stream(request, lambda live, welcome: job_events(live, job_id, welcome))


def event(text: str, name: str | None = None) -> bytes:
    """One server-sent event."""
    lines = [f"data: {line}" for line in text.splitlines() or [""]]
    return "\n".join([*([f"event: {name}"] if name else []), *lines, "", ""]).encode()


def _stream(request: Request, events: Callable[[Live, Welcome], AsyncGenerator[bytes]]) -> Response:
    board = board_of(request)
    if board.live.viewers >= STREAMS_MAX:
        return Response(status_code=503, headers={"retry-after": "30"})

    async def shown() -> AsyncIterator[bytes]:
        """Until the session is over or its key is revoked."""
        with board.guests.staying(request.cookies[COOKIE]) as welcome:
            async with aclosing(events(board.live, welcome)) as lines:
                async for line in lines:
                    yield line

    return StreamingResponse(shown(), media_type="text/event-stream", headers=_HEADERS)


async def _parts(
    live: Live,
    welcome: Welcome,
    name: str,
    make: Callable[[Look], str],
    seldom: Callable[[Look], str] | None = None,
) -> AsyncGenerator[bytes]:
    async with aclosing(live.looks_from(welcome=welcome)) as looks:
        async for look in looks:
            yield live.part(name, look, lambda look: event(make(look)).decode())
            if seldom is not None and look.number % PLOTS_EVERY == 0:
                yield live.part("plots", look, lambda look: event(seldom(look), "plots").decode())


def overview_events(live: Live, welcome: Welcome = everybody) -> AsyncGenerator[bytes]:
    """What moves on the overview, with each look; now and then what its plots show."""
    return _parts(live, welcome, "overview", overview_part, plots_part)


async def workers_events(live: Live, welcome: Welcome = everybody) -> AsyncGenerator[bytes]:
    """What moves on the page of workers, with each look; `moved` once others can be drained."""
    async with aclosing(live.looks_from(welcome=welcome, in_hand=True)) as looks:
        alive = None
        async for look in looks:
            if look.now.in_hand is None:
                continue
            if alive not in (None, alive_ones(look)):
                yield event("", "moved")
            alive = alive_ones(look)
            yield live.part("workers", look, lambda look: event(workers_part(look)).decode())


async def queue_events(live: Live, name: str, welcome: Welcome = everybody) -> AsyncGenerator[bytes]:
    """What moves on a queue's page, with each look; `moved` once somebody has paused, limited or resumed it."""
    async with aclosing(live.looks_from(welcome=welcome)) as looks:
        switches = None
        async for look in looks:
            if switches not in (None, switches_of(look, name)):
                yield event("", "moved")
            switches = switches_of(look, name)
            yield live.part(f"queue {name}", look, lambda look: event(queue_part(look, name)).decode())


async def job_events(live: Live, job_id: UUID, welcome: Welcome = everybody) -> AsyncGenerator[bytes]:
    """One job whenever it has changed; `moved` where the whole page is another one now. Ends with the job."""
    shown = None
    async with aclosing(live.looks_from(job_id, welcome)) as looks:
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
