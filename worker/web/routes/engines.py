"""`/v1/engines`: for providers of sound, who hold signed links and no key. See `worker.links`."""

from __future__ import annotations

import time
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from worker.links import COMPLETIONS_PATH, INPUTS_PATH, Links
from worker.web.downloads import download
from worker.web.problems import Problem
from worker.web.services import services_of

#: Not in the reference: nobody calls these but by a link that we made.
router = APIRouter(include_in_schema=False)

#: Bytes of a finished prediction, outputs included. Nothing of it is read or believed.
COMPLETION_BYTES_MAX = 64 * 1024**2

Key = Annotated[str, Query(max_length=100)]


@router.post(COMPLETIONS_PATH, status_code=204)
async def completion(request: Request, job: UUID, key: Key) -> Response:
    """The job's provider says that it is done: whichever worker waits for it looks at once."""
    if not _links(request).opens_completion(job, key):
        raise _not_ours()
    async for _ in request.stream():
        pass  # to its end, or the provider takes our answer for a broken connection
    await services_of(request).nudges.say(job)
    return Response(status_code=204)


@router.get(INPUTS_PATH)
async def input_(request: Request, artifact: UUID, until: Annotated[int, Query(ge=0, le=10**11)], key: Key) -> Response:
    """The sound of one input."""
    if not _links(request).opens_input(artifact, until, key, time.time()):
        raise _not_ours()
    services = services_of(request)
    return await download(request, services.client.artifacts, await services.artifacts.place(artifact))


def _links(request: Request) -> Links:
    links = services_of(request).links
    if links is None:
        raise Problem(404, "there is nothing at this address")
    return links


def _not_ours() -> Problem:
    return Problem(403, "this link was not made here, or holds no longer", headers={"Connection": "close"})
