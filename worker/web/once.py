"""Requests that make something once: what the store needs to know one again."""

from __future__ import annotations

from hashlib import sha256

import msgspec
from fastapi import Request

from worker.store.creations import Asked
from worker.web.access import Caller
from worker.web.fields import Body


def asked(request: Request, caller: Caller, what: str, key: str, *said: object) -> Asked:
    """This request, told from others by who asks, for what, by its idempotency key, and whether it says the same.

    A default that is spelled out says the same as one that is not, and so does a body from before a field was added.
    """
    secret = request.headers["authorization"].partition(" ")[2]
    plain = [one.model_dump(mode="json", exclude_defaults=True) if isinstance(one, Body) else one for one in said]
    body_hash = sha256(msgspec.json.encode(plain, order="deterministic")).digest()
    return Asked(caller.key.id, what, key, body_hash, secret)
