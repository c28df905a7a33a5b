"""Signing in and out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from worker.web.access import address_of
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import read_form
from worker.web.dashboard.session import COOKIE, check_form, check_same_site, sign_in, sign_out, visitor_of


async def door(request: Request) -> Response:
    """Ask for a key."""
    wanted = _local(request.query_params.get("next", "/"))
    return frame.page(request, None, "sign_in.html", {"wanted": wanted, "problem": None})


async def enter(request: Request) -> Response:
    """Open a session with the key that was typed."""
    board = board_of(request)
    check_same_site(request)
    form = await read_form(request)
    typed, wanted = form.text("key"), _local(form.text("next"))
    key = await board.services.strangers.opening(typed, address_of(request))
    problem = None
    if key is None:
        problem = "This key opens nothing: it is mistyped, expired or revoked."
    elif key.account_prefix is not None:
        problem = "This key is bound to some accounts; the dashboard shows all of them. Use another key."
    if key is None or problem is not None:
        return frame.page(request, None, "sign_in.html", {"wanted": wanted, "problem": problem}, status=403)
    answer = frame.go("/credits" if key.account is not None else wanted)
    sign_in(request, answer, await board.sessions.open(key))
    return answer


async def leave(request: Request) -> Response:
    """Close the session."""
    visitor = await visitor_of(request)
    form = await read_form(request)
    check_form(request, visitor, form.text("form_token"))
    await board_of(request).sessions.close(request.cookies.get(COOKIE, ""))
    answer = frame.go("/sign-in", "Signed out.")
    sign_out(answer)
    return answer


def _local(path: str) -> str:
    """A page of ours to go on to; never another site."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
