"""Jobs: found by account, state and kind; and what can be done with many of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from worker.credits.states import JobState
from worker.steering import JOBS_MAX, Wanted
from worker.store.errors import Refused, UnknownJob
from worker.web.access import May
from worker.web.dashboard import frame
from worker.web.dashboard.board import board_of
from worker.web.dashboard.doors import job_id_of
from worker.web.dashboard.forms import Form
from worker.web.dashboard.session import Visitor

_PAGE = 50
#: Jobs named in a preview; all of them are counted.
_PREVIEW = 100
#: What one act on many jobs can't be narrowed by.
_NOT_IN_BULK = ("from", "until", "metadata")
#: What jobs are found by; each is a field of the form.
FILTERS = ("account", "state", "kind", "from", "until", "metadata")


async def jobs(request: Request, visitor: Visitor) -> Response:
    """A page of jobs. An id in the search field leads to the job itself."""
    board, asked = board_of(request), request.query_params
    wanted = {name: asked.get(name, "").strip() for name in (*FILTERS, "find")}
    if wanted["find"]:
        try:
            return frame.go(f"/jobs/{(await board.services.reads.job(job_id_of(wanted['find']))).id}")
        except UnknownJob as error:
            return frame.go("/jobs", str(error), bad=True)
    after = job_id_of(asked["after"]) if asked.get("after") else None
    found = await board.services.reads.jobs(**filter_of(wanted), limit=_PAGE, after=after)
    filters = {name: value for name, value in wanted.items() if value}
    values = {
        "jobs": found.jobs,
        "wanted": wanted,
        "states": list(JobState),
        "kinds": sorted(board.services.client.kinds),
        "query": urlencode(filters),
        "next": urlencode({**filters, "after": str(found.next)}) if found.next else None,
        "first": after is None,
        "filters": filters,
        "can_steer": visitor.may(May.STEER) and not any(wanted[name] for name in _NOT_IN_BULK),
    }
    return frame.page(request, visitor, "jobs.html", values)


async def preview(request: Request, visitor: Visitor, form: Form) -> Response:
    """What would happen to which jobs. Nothing does yet."""
    verb, wanted = _verb(form), _wanted(form)
    steering = board_of(request).steering
    if verb == "cancel":
        found = await steering.cancel_many(wanted, "preview", visitor.actor, dry_run=True)
    else:
        found = await steering.retry_many(wanted, visitor.actor, dry_run=True)
    values = {"verb": verb, "wanted": wanted, "found": found, "shown": found.jobs[:_PREVIEW]}
    return frame.page(request, visitor, "many.html", values)


async def many(request: Request, visitor: Visitor, form: Form) -> Response:
    """Do it, once it was looked at."""
    verb, wanted = _verb(form), _wanted(form)
    steering = board_of(request).steering
    if verb == "cancel":
        done = await steering.cancel_many(wanted, form.line("reason"), visitor.actor, dry_run=False)
    else:
        done = await steering.retry_many(wanted, visitor.actor, dry_run=False)
    values = {"verb": verb, "wanted": wanted, "found": done, "shown": done.jobs[:_PREVIEW]}
    return frame.page(request, visitor, "many.html", values)


def _verb(form: Form) -> str:
    verb = form.text("verb")
    if verb not in {"cancel", "retry"}:
        raise Refused("verb", "must be cancel or retry")
    return verb


def _wanted(form: Form) -> Wanted:
    state = form.optional("state")
    if state is not None and state not in set(JobState):
        raise Refused("state", f"there is no state {state[:40]!r}")
    return Wanted(
        account=form.optional("account"),
        kind=form.optional("kind"),
        state=None if state is None else JobState(state),
        reason=form.optional("ended_for"),
        limit=form.whole("limit", 1, JOBS_MAX),
    )


def filter_of(wanted: Mapping[str, str]) -> dict[str, Any]:
    """The form's fields as the read takes them. Raises `Refused` for what can't be read."""
    name, equals, value = wanted["metadata"].partition("=")
    if wanted["metadata"] and not equals:
        raise Refused("metadata", "must be name=value")
    return {
        "account_id": wanted["account"] or None,
        "state": wanted["state"] or None,
        "kind": wanted["kind"] or None,
        "created_from": _time("from", wanted["from"]),
        "created_before": _time("until", wanted["until"]),
        "metadata": {name.strip(): value.strip()} if equals else None,
    }


def _time(field: str, typed: str) -> datetime | None:
    try:
        return datetime.fromisoformat(typed).replace(tzinfo=UTC) if typed else None
    except ValueError:
        raise Refused(field, "must be a time like 2026-12-01T00:00, in UTC") from None
