"""Workers: every process, where it runs, what it does, and when it was last seen."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from worker.store.reads_queues import WorkerState
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.live import Look
from worker.web.dashboard.session import Visitor


async def workers(request: Request, visitor: Visitor) -> Response:
    """Every worker process in the register, and what runs on it."""
    board = board_of(request)
    look = await board.live.latest()
    running = await board.overview.running()
    return frame.page(request, visitor, "workers.html", {"look": look, "running": running, "now": look.now.now})


def alive_ones(look: Look) -> frozenset[str]:
    """Those that can be drained: buttons are a visitor's own, so no part that everybody shares has them."""
    return frozenset(one.worker for one in look.now.workers if one.state is WorkerState.ALIVE)


async def drain(request: Request, visitor: Visitor, form: Form) -> Response:
    """Let a worker finish what it has and end."""
    worker = request.path_params["worker"]
    await board_of(request).services.steering.drain_worker(worker, visitor.actor)
    return frame.go("/workers", f"{worker} takes no more jobs; it ends when those it has are done.")


def workers_part(look: Look) -> str:
    """What moves on the page of workers."""
    return frame.render("workers_live.html", look=look, running=look.now.in_hand or (), now=look.now.now)
