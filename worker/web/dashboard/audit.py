"""Audit: whether the books are exact, as of the last look through all of them; and who changed what."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from worker.store.auditing import audited
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.session import Visitor

_one_at_a_time = asyncio.Lock()


async def audit(request: Request, visitor: Visitor) -> Response:
    """The last verdict, and a page of the log of changes."""
    board, asked = board_of(request), request.query_params
    before = asked.get("before", "")
    subject, actor = asked.get("subject", "").strip(), asked.get("actor", "").strip()
    log = await board.services.log.entries(
        subject=subject or None,
        actor=actor or None,
        before=int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None,
    )
    values = {
        "last": await board.lists.noted("audit"),
        "log": log,
        "subject": subject,
        "actor": actor,
        "now": await board.live.now(),
    }
    return frame.page(request, visitor, "audit.html", values)


async def run(request: Request, visitor: Visitor, form: Form) -> Response:
    """Re-derive every promise from the database, now. One at a time: it reads everything."""
    board = board_of(request)
    if _one_at_a_time.locked():
        return frame.go("/audit", "An audit is under way: its verdict will stand here.", bad=True)
    async with _one_at_a_time:
        usage = board.services.reads.quoted_usage
        found = await audited(board.services.engine, visitor.actor, quoted_usage=usage)
    said = "The books are exact." if found.ok else f"{len(found.violations):,} violations: see below."
    return frame.go("/audit", said, bad=not found.ok)
