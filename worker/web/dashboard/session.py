"""Who is looking: a session opened with an API key, and the token that each of its forms must carry.

The cookie holds a random secret, the database its hash beside the key it was opened with: a revoked key ends its
sessions at once, and any API process can answer. The form token is derived from the secret, which no page can read.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from worker.store.api_keys import KeyShown, Role
from worker.store.sessions import SESSION_SECONDS
from worker.web.access import PERMISSIONS, Caller, May
from worker.web.dashboard.board import board_of

COOKIE = "fermata_session"


class SignedOut(Exception):
    """Nobody is signed in, or no longer: sign in first."""


class Forbidden(Exception):
    """The visitor's role does not allow it."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page."""

    key: KeyShown
    form_token: str

    @property
    def actor(self) -> str:
        """As the audit log names whoever uses this key."""
        return Caller(self.key).actor

    @property
    def role(self) -> Role:
        return self.key.role

    @property
    def is_customer(self) -> bool:
        return self.key.role is Role.CUSTOMER

    def may(self, what: str) -> bool:
        """Whether this visitor's role is allowed it: by the same table as the API's routes."""
        return self.key.role in PERMISSIONS[May(what)]


async def visitor_of(request: Request) -> Visitor:
    """The visitor of the cookie's session. Raises `SignedOut`."""
    secret = request.cookies.get(COOKIE, "")
    key = await board_of(request).sessions.opening(secret) if secret else None
    if key is None:
        raise SignedOut
    return Visitor(key, form_token_of(secret))


def form_token_of(secret: str) -> str:
    """What every form of a session carries. It tells nothing of the secret."""
    return hmac.new(secret.encode(), b"fermata form", hashlib.sha256).hexdigest()


def check_form(request: Request, visitor: Visitor, given: str) -> None:
    """Raises `Forbidden` for a form that another site, or a page of another session, has sent."""
    if not hmac.compare_digest(given.encode(), visitor.form_token.encode()):
        raise Forbidden("this page is from another session: open it again and repeat what you did")
    check_same_site(request)


def check_same_site(request: Request) -> None:
    """Raises `Forbidden` where the browser says that another site sent the form."""
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Forbidden("sent by another site")
    origin = request.headers.get("origin")
    if origin not in {None, "null"} and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("sent by another site")


def sign_in(request: Request, response: Response, secret: str) -> None:
    """Give the browser the session's secret."""
    secure = request.url.scheme == "https" or board_of(request).services.settings.environment == "production"
    response.set_cookie(
        COOKIE, secret, max_age=SESSION_SECONDS, path="/", httponly=True, samesite="strict", secure=secure
    )


def sign_out(response: Response) -> None:
    """Take it back."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
