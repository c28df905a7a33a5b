"""Jobs: found by account, state and kind; and what can be done with many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from worker.credits.states import JobState
from worker.steering import JOBS_MAX, PERCENT_MAX, Wanted
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
        "can_steer": visitor.may(May.STEER),
        "can_compensate": visitor.may(May.COMPENSATE),
    }
    return frame.page(request, visitor, "jobs.html", values)


async def preview(request: Request, visitor: Visitor, form: Form) -> Response:
    """What would happen to which jobs. Nothing does yet; the confirmation is for no job submitted after this look."""
    live = board_of(request).live
    live.outdated()
    return await _done(request, visitor, form, await live.now())


async def many(request: Request, visitor: Visitor, form: Form) -> Response:
    """Do it, once it was looked at."""
    return await _done(request, visitor, form)


async def _done(request: Request, visitor: Visitor, form: Form, looked_at: datetime | None = None) -> Response:
    """`looked_at`: it is only looked, at this time."""
    verb, wanted, steering, by = form.text("verb"), _wanted(form), board_of(request).services.steering, visitor.actor
    dry_run = looked_at is not None
    if looked_at is not None and (wanted.created_before is None or looked_at < wanted.created_before):
        wanted = replace(wanted, created_before=looked_at)
    reason = "preview" if dry_run or verb == "retry" else form.line("reason")
    match verb:
        case "cancel" if visitor.may(May.STEER):
            found = await steering.cancel_many(wanted, reason, by, dry_run=dry_run)
        case "retry" if visitor.may(May.STEER):
            found = await steering.retry_many(wanted, by, dry_run=dry_run)
        case "compensate" if visitor.may(May.COMPENSATE):
            percent = form.whole("percent", 1, PERCENT_MAX)
            found = await steering.compensate_many(wanted, percent, form.line("reference"), reason, by, dry_run=dry_run)
        case _:
            raise Refused("verb", "must be cancel, retry or compensate, as your role may do it")
    fields = {name: form.text(name) for name in (*FILTERS, "ended_for", "limit", "after", "percent", "reference")}
    if wanted.created_before is not None:
        fields["until"] = wanted.created_before.replace(tzinfo=None).isoformat()
    if found.next is not None and not dry_run:
        fields["after"] = found.next
    values = {
        "verb": verb,
        "wanted": wanted,
        "fields": fields,
        "reason": form.text("reason"),
        "found": found,
        "shown": found.jobs[:_PREVIEW],
    }
    return frame.page(request, visitor, "many.html", values)


def _wanted(form: Form) -> Wanted:
    state = form.optional("state")
    if state is not None and state not in set(JobState):
        raise Refused("state", f"there is no state {state[:40]!r}")
    found = filter_of({name: form.text(name) for name in FILTERS})
    return Wanted(
        account=found["account_id"],
        kind=found["kind"],
        state=None if state is None else JobState(state),
        reason=form.optional("ended_for"),
        limit=form.whole("limit", 1, JOBS_MAX),
        created_from=found["created_from"],
        created_before=found["created_before"],
        metadata=found["metadata"] or {},
        after=form.optional("after"),
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
        found = datetime.fromisoformat(typed) if typed else None
    except ValueError:
        found = None
    if typed and (found is None or found.tzinfo is not None):  # of another zone it would mean other jobs
        raise Refused(field, "must be a time like 2026-12-01T00:00, in UTC and without a zone")
    return None if found is None else found.replace(tzinfo=UTC)
