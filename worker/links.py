"""Links for providers, each signed for one thing: to say that a job's work is done, or to fetch one input for a while.

Whoever holds one can do that and nothing else. No row is kept of them: what we signed, we believe.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode
from uuid import UUID

from config.settings import Settings

#: Where the API takes them.
COMPLETIONS_PATH, INPUTS_PATH = "/v1/engines/webhooks", "/v1/engines/inputs"


@dataclass(frozen=True, slots=True)
class Links:
    """Signs and checks. The same in every process whose settings are the same."""

    public_url: str
    secret: bytes = field(repr=False)
    #: Opens links too, but signs none: those that are out may be used up.
    secret_before: bytes | None = field(default=None, repr=False)

    def completion(self, job_id: UUID) -> str:
        """Where to say that the work of this job is done. Holds for ever: it only makes us look."""
        return self._url(COMPLETIONS_PATH, job=str(job_id), key=self._key("completion", job_id))

    def opens_completion(self, job_id: UUID, key: str) -> bool:
        """Whether the key was made for that."""
        return self._made_here(key, "completion", job_id)

    def input(self, artifact_id: UUID, until: int) -> str:
        """Where this artifact can be fetched. `until`: seconds since 1970."""
        key = self._key("input", artifact_id, until)
        return self._url(INPUTS_PATH, artifact=str(artifact_id), until=str(until), key=key)

    def opens_input(self, artifact_id: UUID, until: int, key: str, now: float) -> bool:
        """Whether the key was made for that, and still holds."""
        return self._made_here(key, "input", artifact_id, until) and now < until

    def _made_here(self, key: str, *of: object) -> bool:
        secrets = [self.secret] if self.secret_before is None else [self.secret, self.secret_before]
        return any(hmac.compare_digest(_signed(secret, of), key.encode()) for secret in secrets)

    def _key(self, *of: object) -> str:
        return _signed(self.secret, of).decode()

    def _url(self, path: str, **query: str) -> str:
        return f"{self.public_url.rstrip('/')}{path}?{urlencode(query)}"


def _signed(secret: bytes, of: Sequence[object]) -> bytes:
    signed = hmac.digest(secret, "\n".join(map(str, of)).encode(), hashlib.sha256)
    return urlsafe_b64encode(signed).rstrip(b"=")


def links_of(settings: Settings) -> Links | None:
    """The links of this deployment; None where providers can't reach it."""
    if settings.public_url is None or settings.link_secret is None:
        return None
    before = settings.link_secret_before
    return Links(
        settings.public_url,
        settings.link_secret.get_secret_value().encode(),
        None if before is None else before.get_secret_value().encode(),
    )
