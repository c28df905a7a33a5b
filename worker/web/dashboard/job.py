"""One job: where it stands, its attempts, its receipt, its audio, and what can be done with it."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from worker.credits.operations import AlreadyEnded, CancelAsked, TryAgain
from worker.credits.states import ENDED
from worker.store.errors import LedgerUnavailable, UnknownArtifact
from worker.store.reads_artifacts import ArtifactShown
from worker.store.reads_jobs import JobShown, WaitingFor
from worker.web.dashboard import frame
from worker.web.dashboard.board import Board, board_of
from worker.web.dashboard.doors import job_id_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.session import Visitor


async def job(request: Request, visitor: Visitor) -> Response:
    """The whole story of one job."""
    board = board_of(request)
    shown = await board.services.reads.job(job_id_of(request.path_params["job"]))
    receipt = await board.services.reads.receipt(shown.id)
    controls = board.services.controls
    is_paused = shown.waiting_for is WaitingFor.PAUSED
    values = {
        "job": shown,
        "pauses": await controls.pauses_of(shown.queue, shown.kind, shown.account) if is_paused else (),
        "receipt": receipt,
        "ended": shown.state in ENDED,
        "sounds": await _sounds(board, shown),
        "now": await board.live.now(),
        # Twice the same form is one compensation; so is one whose answer was lost, and that of the page loaded anew.
        "reference": f"dashboard:{shown.id}:{len(receipt.given)}",
    }
    return frame.page(request, visitor, "job.html", values)


async def _sounds(board: Board, shown: JobShown) -> list[tuple[str, ArtifactShown]]:
    """What went in and what came out, by their names in the request."""
    named = [(f"input {name}", artifact) for name, artifact in shown.inputs.items()]
    named += [(out.name, str(out.artifact)) for out in shown.outputs]
    sounds = []
    for name, artifact in named:
        try:
            sounds.append((name, (await board.services.artifacts.place(UUID(artifact))).shown))
        except UnknownArtifact:
            continue  # deleted since; its name stands in the request all the same
    return sounds


async def cancel(request: Request, visitor: Visitor, form: Form) -> Response:
    """End it, or ask its worker to stop it."""
    board = board_of(request)
    shown = await board.services.reads.job(job_id_of(request.path_params["job"]))
    done = await board.services.client.cancel(shown.account, shown.id, form.line("reason"), visitor.actor)
    match done:
        case AlreadyEnded():
            return frame.go(f"/jobs/{shown.id}", f"Nothing was cancelled: it had ended before, {done.state}.", bad=True)
        case CancelAsked():
            return frame.go(f"/jobs/{shown.id}", "Its worker was asked to stop it, and does so within 2 s.")
        case TryAgain():
            raise LedgerUnavailable("the job's row is held")
        case _:
            return frame.go(f"/jobs/{shown.id}", "It is cancelled.")


async def retry(request: Request, visitor: Visitor, form: Form) -> Response:
    """A new job with the same request."""
    board = board_of(request)
    job_id = job_id_of(request.path_params["job"])
    made = await board.services.steering.retry(job_id, form.line("reason"), visitor.actor)
    said = "It was tried again before: this is that job." if made.replayed else "This is the new job."
    return frame.go(f"/jobs/{made.job_id}", said)


async def force_end(request: Request, visitor: Visitor, form: Form) -> Response:
    """End a stuck job: its hold is refunded, its token is void."""
    job_id = job_id_of(request.path_params["job"])
    done = await board_of(request).services.steering.force_end(job_id, form.line("reason"), visitor.actor)
    return frame.go(f"/jobs/{job_id}", f"It ended {done.state}; {done.refunded:,} credits that it held are back.")


async def compensate(request: Request, visitor: Visitor, form: Form) -> Response:
    """Give credits for what it was charged. The charge stands."""
    board = board_of(request)
    shown = await board.services.reads.job(job_id_of(request.path_params["job"]))
    done = await board.services.compensations.compensate(
        shown.account,
        shown.id,
        form.whole("credits", 1, max(shown.charged, 1)),
        form.line("reference"),
        form.line("reason"),
        visitor.actor,
    )
    return frame.go(f"/jobs/{shown.id}", f"{done.credits:,} credits given{', as before' if done.replayed else ''}.")
