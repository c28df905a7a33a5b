"""`/v1/voices`: the voices that a conversion may go towards by name, by what right, and who may use which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import uuid_utils.compat as uuids
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel

from fermata_client.requests import VOICE_PATTERN
from worker.store.errors import Refused
from worker.store.voices import VoiceShown
from worker.voice_desk import VoiceOffer, register
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountQuery, IdempotencyKey, Limit, printable
from worker.web.once import asked
from worker.web.problems import Problem, responses
from worker.web.routes.artifacts import UPLOAD
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute
from worker.web.uploads import uploaded

router = APIRouter(prefix="/v1/voices", tags=["voices"], route_class=StrictRoute)

Looker = Annotated[Caller, allowed(May.LOOK_AT_VOICES)]
Setter = Annotated[Caller, allowed(May.SET_VOICES)]
#: Words of a licence or a consent: they travel in the address, beside the file.
Words = Annotated[str, AfterValidator(printable), Query(min_length=1, max_length=500)]
Names = Annotated[list[str] | None, Query(max_length=20)]
VoiceName = Annotated[str, Path(pattern=VOICE_PATTERN, description="What requests call it.")]


@dataclass(frozen=True, slots=True)
class VoiceUsable:
    """A voice as those see it who may name it: not whose it is, nor who else may."""

    name: str
    licence: str
    statistics: Mapping[str, str]


class VoicesAnswer(BaseModel):
    voices: list[VoiceShown | VoiceUsable]


@router.get("", response_model=VoicesAnswer, responses=responses(404, 422))
async def voices(request: Request, caller: Looker, account: AccountQuery = None, limit: Limit = 100) -> Response:
    """Every voice, by name; those that were removed too. With an account those that its jobs may name, and a key that
    is bound to accounts sees only these.
    """
    whose = account or caller.key.account
    if whose is None and caller.bound:
        raise Refused("account", "must be given: this key may know of some accounts only")
    registry = services_of(request).voices
    if whose is None:
        return answer({"voices": await registry.listed(limit)})
    caller.check(whose)
    found = await registry.usable(whose, limit)
    return answer({"voices": [_usable(one) for one in found] if caller.bound else found})


@router.get("/{voice}", response_model=VoiceShown, responses=responses(404, 422))
async def voice(request: Request, caller: Looker, voice: VoiceName) -> Response:
    """One voice: its licence, who may use it, what was measured of its clip."""
    if caller.bound:  # it names other accounts
        raise Problem(403, "a key that is bound to accounts may list the voices that they may use, and no more")
    return answer(await services_of(request).voices.show(voice))


@router.post(
    "",
    status_code=201,
    response_model=VoiceShown,
    responses=responses(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=UPLOAD,
)
async def add(
    request: Request,
    caller: Setter,
    key: IdempotencyKey,
    name: Annotated[str, Query(pattern=VOICE_PATTERN, description="What requests call it; never used before.")],
    owner: Annotated[str, Query(min_length=1, max_length=128, description="The account that the clip belongs to.")],
    licence: Annotated[Words, Query(description="By what right the voice is used.")],
    consent: Annotated[Words, Query(description="Who agreed to it, when, and where that is kept.")],
    plan: Names = None,
    account: Names = None,
) -> Response:
    """Register a voice with a clip of it alone, whose first 30 seconds count. Without plans and accounts: for all."""
    services = services_of(request)
    path = services.client.artifacts.upload_path(uuids.uuid7())
    async with uploaded(request, path, services.settings.upload_bytes_max) as file:
        terms = (tuple(plan or ()), tuple(account or ())) if plan or account else (None, None)
        offer = VoiceOffer(name, file.path, owner, licence, consent, *terms)
        once = asked(request, caller, "voices", key, file.sha256, owner, licence, consent, name, *terms)
        async with services.uploads:
            made = await register(services.client, services.voices, offer, caller.actor, once)
    return answer(made, 201, {"Location": f"/v1/voices/{name}"})


@router.delete("/{voice}", response_model=VoiceShown, responses=responses(404, 422))
async def remove(request: Request, caller: Setter, voice: VoiceName) -> Response:
    """Let no new job name it. Jobs that were taken before still run."""
    return answer(await services_of(request).voices.remove(voice, caller.actor))


def _usable(voice: VoiceShown) -> VoiceUsable:
    return VoiceUsable(name=voice.name, licence=voice.licence, statistics=voice.statistics)
