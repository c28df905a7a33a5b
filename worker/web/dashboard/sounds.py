"""An artifact's sound, to be played, and its picture, to be looked at."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from worker.store.errors import UnknownArtifact
from worker.web.dashboard.board import board_of
from worker.web.dashboard.session import Visitor
from worker.web.downloads import download


async def audio(request: Request, visitor: Visitor) -> Response:
    """The sound; a part of it, as players ask for when somebody jumps."""
    services = board_of(request).services
    place = await services.artifacts.place(_artifact(request))
    return await download(request, services.client.artifacts, place)


async def picture(request: Request, visitor: Visitor) -> Response:
    """The waveform above the spectrogram."""
    board = board_of(request)
    drawn = await board.pictures.of(await board.services.artifacts.place(_artifact(request)))
    return Response(drawn, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})


def _artifact(request: Request) -> UUID:
    given = request.path_params["artifact"]
    try:
        return UUID(given)
    except ValueError:
        raise UnknownArtifact(given[:64]) from None
