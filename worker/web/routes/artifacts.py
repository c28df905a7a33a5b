"""`/v1/artifacts`: audio in and out."""

from __future__ import annotations

from typing import Annotated

import uuid_utils.compat as uuids
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from worker.store.errors import Refused, UnknownArtifact
from worker.store.reads_artifacts import ArtifactPlace, ArtifactShown, ArtifactsPage
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.downloads import download
from worker.web.fields import ACCOUNT, AccountQuery, After, ArtifactId, Limit, OwnKey
from worker.web.once import asked
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute
from worker.web.uploads import uploaded

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=StrictRoute)

Looker = Annotated[Caller, allowed(May.LOOK_AT_JOBS)]

UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "WAV, FLAC, MP3, Ogg or AIFF."}
                    },
                }
            }
        },
    }
}
_AUDIO = {"content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}}


class ArtifactAnswer(BaseModel):
    """What was measured of a file. `replayed`: the account had put in the very same before."""

    artifact: ArtifactShown
    replayed: bool


@router.post(
    "",
    status_code=201,
    response_model=ArtifactAnswer,
    responses=responses(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=UPLOAD,
)
async def put(
    request: Request,
    caller: Annotated[Caller, allowed(May.SUBMIT)],
    account: Annotated[str, Query(pattern=ACCOUNT, description="Whose file it is.")],
    name: Annotated[str | None, Query(min_length=1, max_length=200, description="What people call it.")] = None,
    key: OwnKey = None,
) -> Response:
    """Put an audio file in. It is decoded to its end and measured; its id is what requests name.

    Sent again it is the same artifact: nothing is stored twice, with an idempotency key or without. With one, another
    file is a conflict.
    """
    caller.check(account)
    services = services_of(request)
    path = services.client.artifacts.upload_path(uuids.uuid7())
    async with uploaded(request, path, services.settings.upload_bytes_max) as file:
        if key is not None:
            once = asked(request, caller, "artifacts", key, account, file.sha256)
            await services.creations.check(once, file.sha256)
        known = await services.artifacts.same_input(account, bytes.fromhex(file.sha256))
        if known is None:
            async with services.uploads:
                facts = await services.client.put(account, file.path, caller.actor, name or file.name or "audio")
    found = await services.artifacts.place(known or facts.artifact_id)
    return answer({"artifact": found.shown, "replayed": known is not None}, 200 if known else 201)


@router.get("", response_model=ArtifactsPage, responses=responses(404, 422))
async def artifacts(
    request: Request, caller: Looker, account: AccountQuery = None, limit: Limit = 50, after: After = None
) -> Response:
    """An account's artifacts, the newest first."""
    whose = account or caller.key.account
    if whose is None:
        raise Refused("account", "must be given")
    caller.check(whose)
    return answer(await services_of(request).artifacts.artifacts(whose, limit, after))


@router.get(
    "/{artifact}",
    response_class=Response,
    responses=responses(404, 410, 416) | {200: _AUDIO, 206: {"description": "The range that was asked for.", **_AUDIO}},
)
async def audio(request: Request, caller: Looker, artifact: ArtifactId) -> Response:
    """The sound itself, whole or the one range that is asked for."""
    place = await _place(request, caller, artifact)
    return await download(request, services_of(request).client.artifacts, place)


@router.head(
    "/{artifact}",
    response_class=Response,
    responses=responses(404, 416) | {200: {"description": "There is one."}, 206: {"description": "And such a range."}},
)
async def head(request: Request, caller: Looker, artifact: ArtifactId) -> Response:
    """What a GET would say of it: length, type, checksum."""
    place = await _place(request, caller, artifact)
    return await download(request, services_of(request).client.artifacts, place)


@router.get("/{artifact}/facts", response_model=ArtifactShown, responses=responses(404))
async def facts(request: Request, caller: Looker, artifact: ArtifactId) -> Response:
    """What was measured of it."""
    return answer((await _place(request, caller, artifact)).shown)


async def _place(request: Request, caller: Caller, artifact: ArtifactId) -> ArtifactPlace:
    found = await services_of(request).artifacts.place(artifact)
    if not caller.covers(found.shown.account):
        raise UnknownArtifact(artifact)
    return found
