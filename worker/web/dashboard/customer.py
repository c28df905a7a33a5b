"""The customer's own page: what they have, when it refills, what expires, what it went into, and where to get more.

Opened with a customer's token, which the product's server mints: by `/credits?token=…`, so that a product can show it
in a frame of its own site (`FERMATA_EMBED_ORIGINS`), or by signing in with it. It shows one account and no staff page.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from worker.store.api_keys import KeyShown, Role
from worker.web.access import address_of
from worker.web.dashboard import frame
from worker.web.dashboard.board import Board, board_of
from worker.web.dashboard.doors import job_id_of
from worker.web.dashboard.session import Forbidden, SignedOut, visitor_of

_JOBS = 20


async def own_credits(request: Request) -> Response:
    """The page of one account."""
    board = board_of(request)
    account = await _account(request, board)
    shown = await board.lists.account(account)
    balance = await board.services.reads.balance(account)
    plans = await board.services.accounts.plans()
    plan = plans.plans.get(shown.plan or "")
    values = {
        "account": shown,
        "balance": balance,
        "plan": plan,
        "low": balance.spendable < (await board.services.limits.limits(account)).warn_below,
        "lots": [lot for lot in await board.lists.lots(account) if lot.expires_at and lot.available],
        "jobs": (await board.services.reads.jobs(account, limit=_JOBS)).jobs,
        "packs": [(pack, _billing_url(board, pack.name, account)) for pack in plans.packs.values()],
        "now": await board.live.now(),
        "token": _token(request),
    }
    return _framed(frame.page(request, None, "credits.html", values), board)


async def receipt(request: Request) -> Response:
    """The receipt of one of the account's jobs. Another's is not there."""
    board = board_of(request)
    account = await _account(request, board)
    shown = await board.services.reads.receipt(job_id_of(request.path_params["job"]), account)
    return _framed(frame.page(request, None, "receipt.html", {"receipt": shown, "token": _token(request)}), board)


async def _account(request: Request, board: Board) -> str:
    """Whose page it is: by the token in the address, or by the session."""
    given = request.query_params.get("token", "")
    key = await _by_token(request, board, given) if given else (await visitor_of(request)).key
    if key.role is not Role.CUSTOMER or key.account is None:
        raise Forbidden("this page is for customers; staff see an account under Accounts")
    return key.account


async def _by_token(request: Request, board: Board, given: str) -> KeyShown:
    key = await board.services.strangers.opening(given, address_of(request))
    if key is None:
        raise SignedOut
    return key


def _framed(answer: Response, board: Board) -> Response:
    answer.headers["content-security-policy"] = frame.policy(board.services.settings.embed_origins)
    answer.headers["referrer-policy"] = "no-referrer"  # the address may hold the token
    return answer


def _token(request: Request) -> str:
    """What links on the page carry on, so that it works in a frame, where no cookie comes along."""
    given = request.query_params.get("token")
    return f"?{urlencode({'token': given})}" if given else ""


def _billing_url(board: Board, pack: str, account: str) -> str | None:
    """Where a pack is bought, by the settings; None where nobody said."""
    url = board.services.settings.billing_url
    return None if url is None else url.replace("{pack}", quote(pack, "")).replace("{account}", quote(account, ""))
