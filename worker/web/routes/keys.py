"""`/v1/keys` and `/v1/audit-log`: who may call, and who changed what."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from worker.store.api_keys import LABEL_LENGTH_MAX, ROTATION_SECONDS, KeyMade, KeyShown, NewKey, Role
from worker.store.audit_log import AuditPage
from worker.web.access import Caller, May, allowed
from worker.web.answers import answer
from worker.web.fields import AccountId, After, Body, Id, IdempotencyKey, Instant, Limit, whole
from worker.web.once import asked
from worker.web.problems import responses
from worker.web.services import services_of
from worker.web.strict_json import StrictRoute

router = APIRouter(prefix="/v1", tags=["keys"], route_class=StrictRoute)

Ruler = Annotated[Caller, allowed(May.RULE)]
KeyId = Annotated[Id, Path(description="The key's id.")]


class KeyBody(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"role": "pipeline", "label": "songs", "account_prefix": "acme"}]}
    )

    role: Literal["pipeline", "billing", "ops", "product", "admin", "viewer"]
    label: str = Field(min_length=1, max_length=LABEL_LENGTH_MAX, description="Who or what uses it.")
    account_prefix: AccountId | None = Field(
        None, description="Only these accounts: `acme` is for `acme`, `acme/…` and `acme:…`, not for `acme2`."
    )
    expires_at: Instant | None = Field(None, description="When it closes. Default: never.")


class RotateBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 86400}]})

    overlap_seconds: int = Field(
        ROTATION_SECONDS,
        ge=0,
        le=30 * 86_400,
        description="For so long the old key still opens. 0 revokes it and its tokens.",
    )


class KeyAnswer(BaseModel):
    """A key with its secret in `key`, shown this once.

    `replayed`: the same request had made it before. Its answer has the secret again for ten minutes, then null.
    """

    key: str | None
    id: UUID
    prefix: str
    role: Role
    label: str
    account_prefix: str | None
    account: str | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaces: UUID | None
    minted_by: UUID | None
    replayed: bool


class KeysAnswer(BaseModel):
    keys: list[KeyShown]


@router.post("/keys", status_code=201, response_model=KeyAnswer, responses=responses(400, 409, 413, 415, 422))
async def create(request: Request, caller: Ruler, body: KeyBody, key: IdempotencyKey) -> Response:
    """Make a key. It is shown this once; to the same request that comes again, for ten minutes."""
    new = NewKey(Role(body.role), body.label, body.account_prefix, body.expires_at)
    once = asked(request, caller, "keys", key, body)
    return _made(await services_of(request).keys.create(new, caller.actor, once))


@router.get("/keys", response_model=KeysAnswer, responses=responses(422))
async def keys(request: Request, caller: Ruler, limit: Limit = 100, after: After = None) -> Response:
    """Every key, the newest first; customers' tokens are not among them."""
    return answer({"keys": await services_of(request).keys.listed(limit, after)})


@router.delete("/keys/{key}", response_model=KeyShown, responses=responses(404))
async def revoke(request: Request, caller: Ruler, key: KeyId) -> Response:
    """Close a key for good. Every process knows within five seconds. A customer's token can be closed too."""
    services = services_of(request)
    done = await services.keys.revoke(key, caller.actor)
    services.keyring.forget(key)
    return answer(done)


@router.post(
    "/keys/{key}/rotate", status_code=201, response_model=KeyAnswer, responses=responses(400, 404, 409, 413, 415, 422)
)
async def rotate(
    request: Request, caller: Ruler, key: KeyId, idempotency: IdempotencyKey, body: RotateBody | None = None
) -> Response:
    """Make a key like this one, to be put in its place while both open."""
    services, wanted = services_of(request), body or RotateBody()
    once = asked(request, caller, "rotated keys", idempotency, str(key), wanted)
    made = await services.keys.rotate(key, caller.actor, wanted.overlap_seconds, once)
    services.keyring.forget(key)
    return _made(made)


@router.get("/audit-log", response_model=AuditPage, responses=responses(422))
async def audit_log(
    request: Request,
    caller: Annotated[Caller, allowed(May.LOOK_AT_LOG)],
    subject: Annotated[
        str | None, Query(max_length=255, description="An account, a queue, a key, a book, a job.")
    ] = None,
    actor: Annotated[str | None, Query(max_length=128, description="Who did it: `key:fmt_…` or `cli:login`.")] = None,
    limit: Limit = 50,
    before: Annotated[
        int | None, BeforeValidator(whole), Query(ge=1, le=2**63 - 1, description="Go on before this entry.")
    ] = None,
) -> Response:
    """What people and keys changed, the latest first, with the row before and after."""
    return answer(
        await services_of(request).log.entries(
            subject=_storable(subject), actor=_storable(actor), limit=limit, before=before
        )
    )


def _storable(text: str | None) -> str | None:
    return None if text is None else text.replace("\0", "")


def _made(made: KeyMade) -> Response:
    document: dict[str, Any] = {**asdict(made.shown), "key": made.key or None, "replayed": made.replayed}
    return answer(document, 200 if made.replayed else 201, {"Location": f"/v1/keys/{made.shown.id}"})
