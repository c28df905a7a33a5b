"""Where voices meet jobs: a request that names one, allowed or not. Pure."""

from __future__ import annotations

from collections.abc import Collection

from tasks.kind import RefusedRequest, Request
from tasks.voices import REFERENCE, voice_of
from worker.store.errors import Refused
from worker.store.submits import SubmitView


def check_voice(account_id: str, request: Request, inputs: Collection[str], view: SubmitView) -> None:
    """Raises `Refused` unless the account may use the voice that the request names. Says nothing of who may."""
    name = voice_of(request)
    if name is None:
        return
    if REFERENCE in inputs:
        raise RefusedRequest("target", f"can't be given together with the input {REFERENCE}")
    terms = view.voices.get(name)
    if terms is None or terms.removed:
        raise Refused("target", f"no voice {name!r}")
    if not terms.allows(account_id, view.plan):
        raise Refused("target", f"the voice {name!r} is not in what this account may use")
