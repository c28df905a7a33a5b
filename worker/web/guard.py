"""What every request passes before a route sees it: limits on headers, size and pace; and what every answer carries.

Plain ASGI, since it stands in the way of every request: some microseconds, no task of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import structlog
import uuid_utils.compat as uuids
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker import tracing
from worker.store.errors import OutcomeUnknown
from worker.web import problems
from worker.web.problems import Problem

log = structlog.get_logger(__name__)

#: What a client may send at most before its request is looked at.
HEADERS_MAX, HEADER_BYTES_MAX = 64, 16_384
QUERY_BYTES_MAX = 4_096
#: The body of a request unless its address takes more; as much as one job may say.
BODY_BYTES_MAX = 65_536
#: A body must go on within so many seconds, and come to its end at this many bytes a second at least.
_PAUSE_SECONDS, _PACE_BYTES = 10.0, 10_000

_OUR_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")


@dataclass(frozen=True, slots=True)
class Guard:
    """The outermost layer. `body_bytes_max` has the addresses that take more than `BODY_BYTES_MAX`."""

    app: ASGIApp
    body_bytes_max: Mapping[str, int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        _keep_segments(scope)
        if (traceparent := headers.get(b"traceparent")) is not None:
            tracing.arrived_with(traceparent)
        answering = _Answering(send, request_id.encode())
        most = self.body_bytes_max.get(scope["path"], BODY_BYTES_MAX)
        try:
            _check(scope, headers, most)
            await self.app(scope, _Body(receive, most).receive, answering.send)
        except asyncio.CancelledError:
            # Only a server that was told to go cancels, after it has waited: what was begun may be done, now or soon.
            if answering.started:
                raise
            log.warning("request cut off, the server goes", request_id=request_id, path=scope["path"][:200])
            told = problems.said(OutcomeUnknown("the server was told to go while it did this"))
            await problems.response(told, request_id)(scope, receive, answering.send)
        except Exception as error:
            # Whatever has no handler is a bug of ours: told by its id, not by its traceback.
            if answering.started:
                raise
            told = problems.said(error)
            if told.status >= 500:
                log.error("request failed", request_id=request_id, path=scope["path"][:200], exc_info=error)
            await problems.response(told, request_id)(scope, receive, answering.send)
        return None


class _Answering:
    """Puts our headers on an answer, where the route has not set its own."""

    __slots__ = ("_request_id", "_send", "started")

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            given = {name for name, _ in headers}
            headers.append((b"x-request-id", self._request_id))
            headers.extend(pair for pair in _OUR_HEADERS if pair[0] not in given)
            message["headers"] = headers
        await self._send(message)


class _Body:
    """A request's body, no larger and no slower than it may be."""

    __slots__ = ("_deadline", "_left", "_most", "_receive", "_started")

    def __init__(self, receive: Receive, bytes_max: int) -> None:
        self._receive = receive
        self._left = self._most = bytes_max
        self._started = 0.0
        self._deadline = _PAUSE_SECONDS + bytes_max / _PACE_BYTES

    async def receive(self) -> Message:
        if self._left < 0:
            # The body is all here: what comes now is the client going away, which may take as long as it likes.
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._started = self._started or now
        try:
            async with asyncio.timeout(min(_PAUSE_SECONDS, self._started + self._deadline - now)):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, "the body came too slowly", headers={"Connection": "close"}) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise too_large(self._most)
        if not message.get("more_body", False):
            self._left = -1
        return message


def too_large(bytes_max: int) -> Problem:
    """A body above what its address takes."""
    detail = f"the body is larger than this address takes: at most {bytes_max:,} bytes"
    return Problem(413, detail, headers={"Connection": "close"})


def _check(scope: Scope, headers: Mapping[bytes, bytes], bytes_max: int) -> None:
    pairs = scope["headers"]
    if len(pairs) > HEADERS_MAX or sum(len(name) + len(value) for name, value in pairs) > HEADER_BYTES_MAX:
        raise Problem(431, f"at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX:,} bytes together are taken")
    if len(scope["query_string"]) > QUERY_BYTES_MAX:
        raise Problem(400, f"at most {QUERY_BYTES_MAX:,} bytes of query are taken")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Problem(415, "bodies are taken as they are, without compression", headers={"Connection": "close"})
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > bytes_max:
        raise too_large(bytes_max)


def _keep_segments(scope: Scope) -> None:
    """A slash that was written %2F belongs to its segment: else `acme%2Feu` and `acme/eu` were one address."""
    raw = scope.get("raw_path") or b""
    if b"%2" in raw:
        segments = (unquote(segment.decode("ascii", "replace")) for segment in raw.split(b"?")[0].split(b"/"))
        scope["path"] = "/".join(segment.replace("%", "%25").replace("/", "%2F") for segment in segments)


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's own, where it can stand in a log; else a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuids.uuid7().hex
