"""How a page and an action are reached: who is it, may they, is the form ours; and what an error looks like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote
from uuid import UUID

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tasks.kind import RefusedRequest
from worker.artifacts.store import ArtifactError
from worker.store.errors import (
    Conflict,
    LedgerUnavailable,
    OutcomeUnknown,
    Refused,
    UnknownAccount,
    UnknownArtifact,
    UnknownJob,
    UnknownWebhook,
)
from worker.web.access import May
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import Form, read_form
from worker.web.dashboard.session import Forbidden, Visitor, check_form, visitor_of

log = structlog.get_logger(__name__)

Page = Callable[[Request, Visitor], Awaitable[Response]]
Action = Callable[[Request, Visitor, Form], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]

#: What was asked can't be done: said in the words of the error, which never hold a secret.
TURNED_DOWN = (Refused, RefusedRequest, Conflict, UnknownAccount, UnknownArtifact, UnknownJob, UnknownWebhook)


def staff(handler: Page, may: May, *, elsewhere: bool = False) -> Endpoint:
    """A page for staff with that right; a customer is brought to their own page.

    `elsewhere`: who lacks the right is brought to the first page they may see, instead of being turned away.
    """

    async def endpoint(request: Request) -> Response:
        _check_address(request)
        visitor = await visitor_of(request)
        if visitor.is_customer:
            return frame.go("/credits")
        if elsewhere and not visitor.may(may):
            return frame.go(next(place.path for place in frame.PLACES if visitor.may(place.may)))
        _check(visitor, may)
        return await handler(request, visitor)

    return endpoint


def acting(handler: Action, may: May) -> Endpoint:
    """A form that changes something. What turns it down is said on the page it came from."""

    async def endpoint(request: Request) -> Response:
        _check_address(request)
        visitor = await visitor_of(request)
        form = await read_form(request)
        check_form(request, visitor, form.text("form_token"))
        _check(visitor, may)
        try:
            return await handler(request, visitor, form)
        except TURNED_DOWN as error:
            return frame.go(back_of(form), str(error), bad=True)
        finally:
            board_of(request).live.outdated()

    return endpoint


def back_of(form: Form) -> str:
    """The page a form stood on. Only a path of ours."""
    back = form.text("back")
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"


def job_id_of(given: str) -> UUID:
    """The id of a job in an address. Raises `UnknownJob` for what can't be one."""
    try:
        return UUID(given)
    except ValueError:
        raise UnknownJob(given[:64]) from None


def _check_address(request: Request) -> None:
    """Raises `Refused` for an address with a NUL: PostgreSQL holds none, so nothing is called so."""
    asked = request.query_params.multi_items()
    if "\0" in request.scope["path"] or any("\0" in text for pair in asked for text in pair):
        raise Refused("address", "must not contain NUL characters")


def _check(visitor: Visitor, may: May) -> None:
    if visitor.is_customer or not visitor.may(may):
        raise Forbidden(f"a key of the role {visitor.role} may not do this")


async def signed_out(request: Request, _error: Exception) -> Response:
    """To the door; afterwards back to where they wanted to go."""
    if request.headers.get("hx-request") or request.url.path.startswith("/live"):
        return Response(status_code=401)
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return frame.go(f"/sign-in?next={quote(wanted)}" if request.method == "GET" and wanted != "/" else "/sign-in")


async def failed(request: Request, error: Exception) -> Response:
    """An error as a page: what, why, what to do. Nothing of how it came about."""
    status, title, what = explained(error)
    if status == 500:
        log.error("a page failed", path=request.url.path, exc_info=error)
    try:
        visitor = await visitor_of(request)
    except Exception:  # whatever it is, the page is shown without its frame
        visitor = None
    return frame.page(request, visitor, "error.html", {"status": status, "title": title, "what": what}, status=status)


def explained(error: Exception) -> tuple[int, str, str]:
    """The status, and what people are told."""
    match error:
        case Forbidden():
            return 403, "Not allowed", str(error)
        case UnknownAccount():
            return 404, "No such account", str(error)
        case UnknownJob():
            return 404, "No such job", str(error)
        case UnknownWebhook():
            return 404, "No such endpoint", str(error)
        case UnknownArtifact():
            return 404, "No such audio", str(error)
        case Refused() | RefusedRequest():
            return 400, "That can't be done", str(error)
        case Conflict():
            return 409, "Used before", str(error)
        case ArtifactError():
            return 410, "No audio", str(error)
        case OutcomeUnknown():
            return (
                503,
                "It may have been done, or not",
                "The answer of PostgreSQL was lost. Load the page it stood on anew, and look before you do it again.",
            )
        case LedgerUnavailable():
            return (
                503,
                "The books are out of reach",
                "PostgreSQL does not answer. Nothing is lost; try again soon.",
            )
        case HTTPException(status_code=404 | 405):
            return 404, "Nothing here", "This address leads nowhere; maybe it is mistyped."
        case HTTPException():
            return error.status_code, "Not now", str(error.detail)
    return 500, "Our mistake", "Something went wrong on our side; it was logged with this address."
