"""Overview and queues: whether music is being made, what waits and why, where credits are held; and pauses."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from worker.store.errors import Refused
from worker.store.ops import RUNNING_MAX_MAX, Scope
from worker.web.access import May
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.figures import QueueFigures, figures_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.history import DAY, HOUR, MINUTE
from worker.web.dashboard.live import Look
from worker.web.dashboard.session import Visitor

#: What a plot can show: its span, and one step of it.
PLOTS = {"hour": (HOUR, MINUTE), "day": (DAY, timedelta(minutes=15))}


async def overview(request: Request, visitor: Visitor) -> Response:
    """The page everybody starts from."""
    look = await board_of(request).live.latest()
    pauses = [
        one
        for one in await board_of(request).services.controls.pauses()
        if one.scope is not Scope.ACCOUNT or visitor.may(May.LOOK_AT_ACCOUNTS)
    ]
    return frame.page(request, visitor, "overview.html", {"figures": figures_of(look), "look": look, "pauses": pauses})


def overview_part(look: Look) -> str:
    """What moves on the overview."""
    return frame.render("overview_live.html", figures=figures_of(look), look=look)


async def plot(request: Request, visitor: Visitor) -> Response:
    """The numbers of a plot: of one queue or of all."""
    span = request.query_params.get("span", "hour")
    if span not in PLOTS:
        raise Refused("span", "must be hour or day")
    look = await board_of(request).live.latest()
    drawn = _series(look, span, request.query_params.get("queue") or None)
    return JSONResponse(drawn, headers={"cache-control": "no-store"})


def plots_part(look: Look) -> str:
    """The numbers of all plots of the overview."""
    return json.dumps({span: _series(look, span, None) for span in PLOTS}, separators=(",", ":"))


def _series(look: Look, span: str, queue: str | None) -> dict[str, Any]:
    length, step = PLOTS[span]
    steps = look.history.series(look.now.now, length, step, queue)
    end = look.now.now.replace(second=0, microsecond=0) + MINUTE
    first = end - length
    return {
        "step": step.total_seconds(),
        "at": [round((first + step * place).timestamp()) for place in range(len(steps))],
        "succeeded": [one.succeeded for one in steps],
        "failed": [one.failed for one in steps],
        "others": [one.others for one in steps],
        "charged": [one.charged for one in steps],
        "refunded": [one.refunded for one in steps],
    }


async def queue(request: Request, visitor: Visitor) -> Response:
    """One queue."""
    board = board_of(request)
    name = request.path_params["queue"]
    look = await board.live.latest()
    line = _line(look, name)
    if line is None and name not in board.services.client.kinds:
        raise Refused("queue", f"there is no queue {name[:64]!r}")
    values = {
        "name": name,
        "line": line,
        "look": look,
        "hour_is_whole": look.history.covers(look.now.now, HOUR),
        "is_kind": name in board.services.client.kinds,
        "kind_paused": name in look.now.paused_kinds,
        "pauses": await board.services.controls.pauses_of(name, name),
        "workers": [worker for worker in look.now.workers if name in worker.queues],
        "jobs": {
            state: (await board.services.reads.jobs(state=state, kind=name, limit=8)).jobs
            for state in ("running", "queued", "waiting", "failed")
        },
    }
    return frame.page(request, visitor, "queue.html", values)


def queue_part(look: Look, name: str) -> str:
    """What moves on a queue's page."""
    whole = look.history.covers(look.now.now, HOUR)
    return frame.render("queue_live.html", line=_line(look, name), look=look, hour_is_whole=whole)


def switches_of(look: Look, name: str) -> tuple[object, ...]:
    """What a queue's page has besides: its pauses and its limit, with the buttons for them."""
    line = _line(look, name)
    queue = None if line is None else (line.queue.paused, line.queue.pause_reason, line.queue.running_max)
    return queue, name in look.now.paused_kinds


def _line(look: Look, name: str) -> QueueFigures | None:
    return next((line for line in figures_of(look).queues if line.queue.queue == name), None)


async def pause(request: Request, visitor: Visitor, form: Form) -> Response:
    """Start no more of its jobs."""
    scope, name = _named(request)
    await board_of(request).services.controls.pause(scope, name, form.line("reason"), visitor.actor)
    return frame.go(f"/queues/{quote(name)}", f"The {scope} {name} is paused. What runs goes on; submits are taken.")


async def resume(request: Request, visitor: Visitor, form: Form) -> Response:
    """Start its jobs again."""
    scope, name = _named(request)
    done = await board_of(request).services.controls.resume(scope, name, visitor.actor)
    return frame.go(f"/queues/{quote(name)}", f"The {scope} {name} runs again{'' if done.changed else ', as before'}.")


async def limit(request: Request, visitor: Visitor, form: Form) -> Response:
    """Run at most so many of its jobs at a time."""
    _, name = _named(request)
    most = form.whole("running_max", 1, RUNNING_MAX_MAX) if form.text("running_max") else None
    await board_of(request).services.controls.limit(name, most, visitor.actor)
    return frame.go(f"/queues/{quote(name)}", f"At most {most:,} run at a time." if most else "The limit is gone.")


def _named(request: Request) -> tuple[Scope, str]:
    scope = request.path_params["scope"]
    if scope not in (Scope.QUEUE, Scope.KIND):
        raise Refused("scope", "must be queue or kind")
    return Scope(scope), request.path_params["name"]
