"""Accounts: found by how their id begins; one with its balance, lots, journal and jobs; and credits that come in."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from worker.store.limits import AS_PLANNED
from worker.store.ops import RUNNING_MAX_MAX, Scope
from worker.store.purchases import Credited
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.session import Visitor
from worker.web.dashboard.words import moment

_CREDITS_MAX = 10**12
_JOBS, _ENTRIES = 10, 50


async def accounts(request: Request, visitor: Visitor) -> Response:
    """A page of accounts."""
    find, after = request.query_params.get("find", "").strip(), request.query_params.get("after") or None
    found = await board_of(request).lists.accounts(find, 50, after)
    following = urlencode({"find": find, "after": found.next}) if found.next else None
    return frame.page(request, visitor, "accounts.html", {"accounts": found.accounts, "find": find, "next": following})


async def account(request: Request, visitor: Visitor) -> Response:
    """One account."""
    board = board_of(request)
    name = request.path_params["account"]
    shown = await board.lists.account(name)
    after = request.query_params.get("after", "")
    seq = int(after) if after.isascii() and after.isdigit() and len(after) < 19 else 0
    reads = board.services.reads
    journal = await (reads.journal(name, seq, _ENTRIES) if after else reads.journal_end(name, _ENTRIES))
    values = {
        "account": shown,
        "pauses": [one for one in await board.services.controls.pauses_of("", "", name) if one.scope is Scope.ACCOUNT],
        "balance": await board.services.reads.balance(name),
        "lots": await board.lists.lots(name),
        "limits": await board.services.limits.limits(name),
        "journal": journal,
        "journal_ends": not after and len(journal.entries) == _ENTRIES,
        "jobs": (await board.services.reads.jobs(name, limit=_JOBS)).jobs,
        "plans": await board.services.accounts.plans(),
        "now": await board.live.now(),
    }
    return frame.page(request, visitor, "account.html", values)


async def topup(request: Request, visitor: Visitor, form: Form) -> Response:
    """Credit a purchase."""
    name, board = request.path_params["account"], board_of(request)
    pack = form.optional("pack")
    amount = None if pack else form.whole("credits", 1, _CREDITS_MAX)
    done = await board.services.accounts.topup(name, form.line("reference"), visitor.actor, amount=amount, pack=pack)
    return frame.go(_path(name), f"{done.credits:,} credits topped up{_replayed(done.replayed)}{_spending(done)}")


async def grant(request: Request, visitor: Visitor, form: Form) -> Response:
    """Give credits away."""
    name, board = request.path_params["account"], board_of(request)
    done = await board.services.accounts.grant(
        name, form.whole("credits", 1, _CREDITS_MAX), form.line("reference"), visitor.actor, note=form.optional("note")
    )
    return frame.go(_path(name), f"{done.credits:,} credits granted{_replayed(done.replayed)}")


async def pause(request: Request, visitor: Visitor, form: Form) -> Response:
    """Start no more of its jobs."""
    name = request.path_params["account"]
    await board_of(request).services.controls.pause(Scope.ACCOUNT, name, form.line("reason"), visitor.actor)
    return frame.go(_path(name), "Paused: what runs goes on, nothing more is started.")


async def limit(request: Request, visitor: Visitor, form: Form) -> Response:
    """Set what holds for this account alone; an empty field leaves it to the plan."""
    name = request.path_params["account"]
    running = form.whole("running_max", 1, RUNNING_MAX_MAX) if form.text("running_max") else AS_PLANNED
    warn = form.whole("warn_below", 0, _CREDITS_MAX) if form.text("warn_below") else AS_PLANNED
    now = await board_of(request).services.limits.set_limits(name, visitor.actor, running_max=running, warn_below=warn)
    most = "any number of" if now.running_max is None else f"at most {now.running_max:,}"
    return frame.go(_path(name), f"It runs {most} jobs at a time and is warned below {now.warn_below:,} credits.")


async def resume(request: Request, visitor: Visitor, form: Form) -> Response:
    """Start its jobs again."""
    name = request.path_params["account"]
    done = await board_of(request).services.controls.resume(Scope.ACCOUNT, name, visitor.actor)
    return frame.go(_path(name), f"Resumed; {done.freed:,} jobs can be claimed again.")


def _spending(done: Credited) -> str:
    """What a top-up can't do, if anything."""
    if done.frozen and done.frozen_until is None:
        return f". They can't be spent before {done.account_id} subscribes."
    if done.frozen:
        return f". They are frozen: without a subscription they expire at {moment(done.frozen_until)}."
    if done.frozen_from is not None:
        return (
            f". They can be spent until {moment(done.frozen_from)}, then they freeze unless the subscription goes on."
        )
    return ""


def _replayed(replayed: bool) -> str:
    return ", as before: this reference was credited already" if replayed else ""


def _path(name: str) -> str:
    return f"/accounts/{quote(name)}"
