"""Every page's frame: templates, their words, what stands around each page, and the word left behind by an action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from worker.web.access import May
from worker.web.dashboard import words
from worker.web.dashboard.session import Visitor

HERE = Path(__file__).parent

#: Nothing from elsewhere, nothing inline. Pico's signs are images within its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors "
)
#: Tells the next page what an action did. Read once.
NOTICE = "fermata_notice"
_NOTICE_LENGTH_MAX = 600


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation."""

    name: str
    path: str
    may: May


PLACES = (
    Place("Overview", "/", May.LOOK_AT_QUEUES),
    Place("Jobs", "/jobs", May.LOOK_AT_JOBS),
    Place("Accounts", "/accounts", May.LOOK_AT_ACCOUNTS),
    Place("Workers", "/workers", May.LOOK_AT_QUEUES),
    Place("Prices", "/prices", May.LOOK_AT_PRICES),
    Place("Events", "/events", May.LOOK_AT_JOBS),
    Place("Audit", "/audit", May.LOOK_AT_LOG),
)


@cache
def templates() -> Environment:
    """All templates, parsed once a process. Everything they show is escaped; a misspelt name is an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for shown in (
        words.tone,
        words.number,
        words.span,
        words.moment,
        words.ago,
        words.percent,
        words.named,
        words.measures,
    ):
        environment.filters[shown.__name__] = shown
    environment.filters["bytes"] = words.bytes_of
    environment.globals.update(asset=asset, waits=words.WAITS)
    return environment


def policy(ancestors: str = "") -> str:
    """The content policy of a page. `ancestors`: origins that may show it in a frame."""
    return _POLICY + (ancestors or "'none'")


@cache
def asset(name: str) -> str:
    """The address of a file we serve, with its content's sum: kept for ever, and a new one is seen at once."""
    path = next(folder / name for folder in (HERE / "static", HERE / "vendor") if (folder / name).is_file())
    return f"/static/{name}?v={sha256(path.read_bytes()).hexdigest()[:12]}"


def render(template: str, **values: Any) -> str:
    """A template, or a part of a page, as text."""
    return templates().get_template(template).render(**values)


def page(
    request: Request, visitor: Visitor | None, template: str, values: Mapping[str, Any], *, status: int = 200
) -> Response:
    """A whole page, with what the last action said above it."""
    said = request.cookies.get(NOTICE)
    kind, _, notice = unquote(said).partition(":") if said else ("", "", "")
    frame = {
        "visitor": visitor,
        "places": PLACES,
        "here": request.url.path,
        "notice": notice[:_NOTICE_LENGTH_MAX],
        "notice_kind": "bad" if kind == "bad" else "good",
    }
    answer = HTMLResponse(render(template, **frame, **values), status_code=status)
    if said:
        answer.delete_cookie(NOTICE, path="/", httponly=True, samesite="strict")
    return answer


def go(path: str, said: str = "", *, bad: bool = False) -> Response:
    """To another page after an action, which then says what happened."""
    answer = RedirectResponse(path, status_code=303)
    if said:
        answer.set_cookie(
            NOTICE,
            quote(f"{'bad' if bad else 'good'}:{said[:_NOTICE_LENGTH_MAX]}"),
            max_age=60,
            path="/",
            httponly=True,
            samesite="strict",
        )
    return answer
