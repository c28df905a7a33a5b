"""The server of an API process: uvicorn, less patient with whoever sends or takes too slowly, or without end."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.settings import Settings

log = structlog.get_logger(__name__)

#: A request's head must be complete so many seconds after its first byte, after the connection was opened, or after
#: the answer before it: what is left of a body that was answered early has no longer than that.
HEAD_SECONDS = 10.0
#: Whoever takes nothing of an answer for so many seconds gets no more of it; nor who has it wait for so long in all,
#: less what was taken meanwhile at this many bytes a second: a little now and then holds no connection.
TAKE_SECONDS = 60.0
PACE_BYTES = 10_000
#: Bytes of a head; `worker.web.guard` looks closer once it is here.
HEAD_BYTES_MAX = 65_536

#: Where Linux' `tcp_info` has the bytes that were acknowledged.
_ACKED, _ACKED_END = struct.Struct("=Q"), 128


class Impatient(HttpToolsProtocol):
    """Closes connections whose request head does not come to its end, or whose answer nobody takes.

    uvicorn's own wait for the next request ends with the first byte that comes, whatever it belongs to.
    """

    _timer: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None
    _patience: float | None = None
    _waits_since = 0.0
    _taken = 0
    _in_head = True
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_taking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer is not None and self._in_head:  # the head has not come to its end with this
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")
        if self.transport.is_closing():
            self._expect_taken()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_head()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._patience = None  # the next answer has its own
        if self.transport.is_closing():
            self._expect_taken()
        elif self.cycle.response_complete:  # no further request has begun
            self._expect_head()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_taken()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        if self._taking is not None:
            self._forget_taking()
            self._reckon()
        super().resume_writing()
        if self.transport.is_closing():
            self._expect_taken()

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.close()
        self._expect_taken()

    def _expect_taken(self) -> None:
        """What is written must be taken: closing would wait for it for ever."""
        if self._taking is None and self.transport.get_write_buffer_size():
            patience = TAKE_SECONDS if self._patience is None else self._patience
            self._waits_since, self._taken = self.loop.time(), min(self._taken, self._taken_ever())
            self._taking = self.loop.call_later(patience, self._look_closer)

    def _reckon(self) -> float:
        """The patience that is left, after the time since it was reckoned last and what was taken in it."""
        now, taken = self.loop.time(), self._taken_ever()
        self._patience = patience_after(self._patience, now - self._waits_since, taken - self._taken)
        self._waits_since, self._taken = now, taken
        return self._patience

    def _taken_ever(self) -> int:
        """Bytes that the other side has confirmed, or, where the system does not tell, how few wait in our buffer.

        Our buffer alone says little of a slow reader: the system may hold megabytes before it takes more of us.
        """
        try:
            info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_END)
            return int(_ACKED.unpack_from(info, _ACKED_END - _ACKED.size)[0])
        except (OSError, AttributeError, struct.error):  # closed; no TCP; another system
            return -self.transport.get_write_buffer_size()

    def _look_closer(self) -> None:
        """No more has left our buffer for so long; what has left the system's counts, too."""
        self._taking = None
        if self._reckon():
            self._expect_taken()
            return
        # Whoever takes it can't be told any more: the answer has begun.
        log.warning("answer cut off: it was taken too slowly", path=self.scope["path"][:200] if self.scope else None)
        self.transport.abort()

    def _forget_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None


def patience_after(before: float | None, waited_seconds: float, taken_bytes: int) -> float:
    """Seconds for which an answer may wait from now on, after it has waited so long and then so much was taken.

    `before`: as long as it might have waited; None: it is the first time.
    """
    left = (TAKE_SECONDS if before is None else before) - waited_seconds + taken_bytes / PACE_BYTES
    return max(0.0, min(TAKE_SECONDS, left))


class Server(uvicorn.Server):
    """A server that lets followers go when it stops, so that nobody is cut off in the middle of a line."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        #: The first signal, and when it is to be obeyed by the monotonic clock.
        self._asked: tuple[int, float] | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Say on `/readyz` that we are about to end, and go on serving until balancers have seen it.

        A further signal ends at once.
        """
        self._app.state.draining = True
        if self._asked is None and self._drain_seconds:
            self._asked = (sig, monotonic() + self._drain_seconds)
            return
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, or say which settings chose the address that can't be had: uvicorn has said what is wrong with it."""
        try:
            await super().startup(sockets)
        except SystemExit:
            where = f"{self.config.host}:{self.config.port}"
            log.error("the API can't listen: FERMATA_API_HOST and FERMATA_API_PORT say where", where=where)
            raise

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._asked is not None and not self.should_exit and monotonic() >= self._asked[1]:
            super().handle_exit(self._asked[0], None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        if services := getattr(self._app.state, "services", None):
            services.watcher.close()
        await super().shutdown(sockets)


def server_of(app: FastAPI, settings: Settings) -> Server:
    """The server of `app`, not started."""
    return Server(
        uvicorn.Config(
            app,
            host=settings.api_host,
            port=settings.api_port,
            http=Impatient,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=settings.api_connections_max,
            timeout_graceful_shutdown=2,
        ),
        app,
        settings.api_drain_seconds,
    )
