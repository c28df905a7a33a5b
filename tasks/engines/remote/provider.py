"""One provider as one worker process sees it: so many requests at once, its rate limits, a breaker, a patience.

Whoever asks waits here until there is an answer that decides something, or until the attempt's patience is over;
then the job's own retry comes, on the same hold.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import stamina
import structlog
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import CLOSED, OpenedState
from pydantic import Field

from fermata_client.requests import Number
from tasks.engines.contract import EngineNotReady
from tasks.engines.offer import Options, PathOption
from tasks.engines.remote.failures import Again, Away, Busy, again_for, wait_of
from tasks.engines.remote.reaching import Forbidden, Transport, check_url, host_of
from tasks.kind import EngineError, EngineUnavailable

log = structlog.get_logger(__name__)

Answered = TypeVar("Answered")

#: Bytes of an answer that is no result.
ANSWER_MAX = 8 * 1024**2
#: Bytes of a secret's file.
SECRET_MAX = 4096
#: Redirects that a result may take.
REDIRECTS_MAX = 5
#: Seconds before asking again: at first, and at most; doubled in between.
AGAIN_FIRST_SECONDS, AGAIN_MAX_SECONDS = 0.2, 10.0
#: Seconds for which a provider is asked nothing at most, whatever it says: then one request finds out.
SILENT_MAX_SECONDS = 3600.0


class ProviderOptions(Options):
    """What the document says of every provider. Seconds unless the name says otherwise."""

    url: str = Field(max_length=2000)
    #: A file that holds nothing but the provider's secret. Sent to the URL's own origin only.
    secret_file: PathOption | None = None
    #: Whether its host may be reached by plain http and at private addresses: it stands in our own network.
    private: bool = False
    #: Further hosts of our own network where its results may lie, by name or address. Any other must be a public one.
    result_hosts: list[str] = Field(default_factory=list, max_length=16)
    #: Requests at once, by this worker process.
    connections: int = Field(8, ge=1, le=256)
    #: Without a byte from it for so long, a request has failed.
    timeout_seconds: Number = Field(30, ge=0.05, le=600)
    #: How long one attempt of a job goes on asking a provider that is busy or away.
    patience_seconds: Number = Field(300, ge=0, le=3600)
    #: After so many failures in a row it is left alone for `breaker_seconds`; then one request probes it.
    breaker_failures: int = Field(5, ge=1, le=100)
    breaker_seconds: Number = Field(30, ge=0.05, le=600)
    #: Between two looks at work that is under way.
    poll_seconds: Number = Field(2, ge=0.01, le=60)
    result_bytes_max: int = Field(512 * 1024**2, ge=1024)


#: For the log of a worker whose provider led it where it does not go.
_PRIVATE_HINT = "hosts of your own network are named: private = true for the provider's, result_hosts for others"


class Gone(EngineError):
    """A result that the provider says it does not have."""


class Provider:
    """The way to one provider. One object a process; it connects when it is first asked."""

    def __init__(self, name: str, options: ProviderOptions) -> None:
        """Raises `ValueError` for a URL or a host that is no place to go."""
        self.name = name
        self.options = options
        self._url = _parsed(options.url, private=options.private)
        own = [host_of(self._url)] if options.private else []
        #: Hosts that may have private addresses. Whoever makes a result's URL can't lead us to any other one.
        self._own = frozenset([*own, *map(_host, options.result_hosts)])
        self._secret: str | None = None
        self._client: httpx2.AsyncClient | None = None
        self._room = asyncio.Semaphore(options.connections)
        self._silent_until = float("-inf")
        self._probing = False
        self._breakers = AsyncCircuitBreakerFactory(
            options.breaker_failures,
            options.breaker_seconds,
            # Who is busy or refuses us is well. A cancelled probe has found out nothing.
            exclude=[Busy, EngineError, Forbidden, (asyncio.CancelledError, lambda _: not self._probing)],
        )
        #: Asked before the first request after the breaker had opened. Raises `Again` where it is not well.
        self.probe: Callable[[], Awaitable[None]] | None = None

    def prepare(self) -> None:
        """Read the secret. Raises `EngineNotReady`."""
        if self.options.secret_file is None:
            return
        try:
            with self.options.secret_file.open(encoding="ascii") as file:
                secret = file.read(SECRET_MAX).strip()
        except (OSError, UnicodeDecodeError):
            raise EngineNotReady(
                f"{self.name}: its secret can't be read from {self.options.secret_file}; put the file there"
            ) from None
        if not secret or not secret.isprintable():
            raise EngineNotReady(f"{self.name}: {self.options.secret_file} holds no secret of one line")
        self._secret = secret

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx2.Response:
        """A 2xx answer, however long the provider takes to be able to give it.

        Raises `Gone` for 404 and 410, `EngineError` for other answers that can't change, and `EngineUnavailable`
        once the patience is over.
        """
        return await self._persist(lambda: self._ask(method, path, body, headers, timeout_seconds))

    async def ask_once(self, method: str, path: str) -> httpx2.Response:
        """As `ask`, but only once, and whatever the breaker says. Raises `Again` instead of waiting."""
        return await self._ask(method, path, None, None, None)

    async def fetch(self, url: str, target: Path) -> None:
        """Copy a result into a file. Raises as `ask` does; a copy that broke off is made again.

        `url` is a `data:` URL, an absolute one, or one relative to the provider's.
        """
        if url.startswith("data:"):
            await asyncio.to_thread(target.write_bytes, self._decoded(url))
        else:
            await self._persist(lambda: self._fetch(url, target))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # --- again and again

    async def _persist(self, once: Callable[[], Awaitable[Answered]]) -> Answered:
        patience = self.options.patience_seconds
        ends = time.monotonic() + patience
        try:
            async for attempt in stamina.retry_context(
                on=lambda error: _pause(error, ends),
                attempts=None,
                timeout=max(patience, 0.001),  # 0 is said to mean nothing
                wait_initial=AGAIN_FIRST_SECONDS,
                wait_max=AGAIN_MAX_SECONDS,
                wait_jitter=AGAIN_FIRST_SECONDS,
            ):
                with attempt:
                    async with self._turn(ends):
                        return await once()
        except Again as error:
            raise EngineUnavailable(f"{self.name} {error.problem}") from None
        except Forbidden as error:
            log.error("provider_forbidden", provider=self.name, problem=str(error), hint=_PRIVATE_HINT)
            raise EngineError(f"{self.name} can't be reached: {error}") from None
        raise AssertionError("every attempt returns or raises")

    @asynccontextmanager
    async def _turn(self, ends: float) -> AsyncIterator[None]:
        """One request's turn: within the connections, not before the rate limit allows, through the breaker."""
        async with self._room:
            while (silent := self._silent_until - time.monotonic()) > 0:
                if time.monotonic() + silent > ends:
                    raise Busy("asks for more patience than we have")
                await asyncio.sleep(silent)
            async with self._through_breaker():
                yield

    @asynccontextmanager
    async def _through_breaker(self) -> AsyncIterator[None]:
        breaker = await self._breakers.get_breaker(self.name)
        if breaker.context.state == CLOSED:
            async with breaker:
                yield
            return
        if self._probing:
            raise Away("is being probed", self.options.poll_seconds)
        self._probing = True
        try:
            async with breaker:
                if self.probe is not None:
                    await self.probe()
                yield
        except OpenedState as opened:
            left = opened.opened_at + self.options.breaker_seconds - time.time()
            raise Away("is left alone for a while", max(0.0, left)) from None
        finally:
            self._probing = False

    # --- once

    async def _ask(
        self, method: str, path: str, body: Any, headers: Mapping[str, str] | None, timeout_seconds: float | None
    ) -> httpx2.Response:
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        timeout = httpx2.Timeout(self.options.timeout_seconds, read=timeout_seconds or self.options.timeout_seconds)
        with _failures():
            async with self._connected().stream(
                method, url, json=body, headers={**self._authorised(url), **(headers or {})}, timeout=timeout
            ) as answer:
                content = bytearray()
                async for part in answer.aiter_bytes():
                    content += part
                    if len(content) > ANSWER_MAX:
                        raise EngineError(f"{self.name} answered with more than {ANSWER_MAX} bytes")
        self._judge(answer, bytes(content))
        return httpx2.Response(answer.status_code, headers=_plain(answer.headers), content=bytes(content))

    async def _fetch(self, url: str, target: Path) -> None:
        where = self._located(url)
        with _failures():
            async with self._connected().stream(
                "GET", where, headers=self._authorised(where), follow_redirects=True
            ) as answer:
                self._judge(answer, b"")
                size = 0
                with target.open("wb") as file:
                    async for part in answer.aiter_bytes():
                        size += len(part)
                        if size > self.options.result_bytes_max:
                            raise EngineError(
                                f"{self.name} gave a result of more than {self.options.result_bytes_max} bytes"
                            )
                        await asyncio.to_thread(file.write, part)
        if size == 0:
            raise Away("gave an empty result")

    def _judge(self, answer: httpx2.Response, content: bytes) -> None:
        """Note what the answer says of its rate limit, and raise unless it is good."""
        wait = wait_of(answer.headers)
        if wait is not None and self._is_its_own(answer.url):
            silent = min(wait, SILENT_MAX_SECONDS)
            self._silent_until = max(self._silent_until, time.monotonic() + silent)
        if answer.is_success:
            return
        status = answer.status_code
        if (again := again_for(status, answer.headers)) is not None:
            raise again
        log.error("provider_refused", provider=self.name, status=status, answer=content[:500].decode(errors="replace"))
        if status in (404, 410):
            raise Gone(f"{self.name} doesn't have what we asked for ({status})")
        raise EngineError(f"{self.name} refused the job ({status})")

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            limits = httpx2.Limits(max_connections=self.options.connections)
            self._client = httpx2.AsyncClient(
                transport=Transport(own=self._own, limits=limits),
                timeout=self.options.timeout_seconds,
                max_redirects=REDIRECTS_MAX,
                trust_env=False,
                event_hooks={"request": [self._look_at]},
            )
        return self._client

    async def _look_at(self, request: httpx2.Request) -> None:
        """Also at where a redirect leads."""
        check_url(request.url, own=self._own)

    def _located(self, url: str) -> httpx2.URL:
        """Where a result is: an absolute path lies below the provider's own."""
        try:
            where = self._url.join(self._url.path.rstrip("/") + url if url.startswith("/") else url)
        except httpx2.InvalidURL:
            raise EngineError(f"{self.name} gave a result's URL that is none") from None
        check_url(where, own=self._own)
        return where

    def _authorised(self, url: httpx2.URL) -> dict[str, str]:
        """The secret, for the provider's own origin only: results may lie elsewhere."""
        wanted = self._secret is not None and self._is_its_own(url)
        return {"Authorization": f"Bearer {self._secret}"} if wanted else {}

    def _is_its_own(self, url: httpx2.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._url.scheme, self._url.host, self._url.port)

    def _decoded(self, url: str) -> bytes:
        header, _, text = url.partition(",")
        if not header.endswith(";base64") or len(text) * 3 // 4 > self.options.result_bytes_max:
            raise EngineError(f"{self.name} gave a data URL that we don't take")
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise EngineError(f"{self.name} gave a damaged data URL") from None


def json_of(answer: httpx2.Response) -> Any:
    """What an answer's body says, or None where it is no JSON."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def _parsed(url: str, *, private: bool) -> httpx2.URL:
    try:
        found = httpx2.URL(url)
        check_url(found, own=[host_of(found)] if private else [])
    except (httpx2.InvalidURL, Forbidden) as error:
        hint = "" if private else "; a provider in your own network needs private = true"
        raise ValueError(f"url: {error}{hint}") from None
    if found.query or found.fragment:
        raise ValueError("url: must have no query")
    return found


def _host(given: str) -> str:
    """A host of the document. Raises `ValueError` for more, or less, than a host."""
    try:
        found = httpx2.URL(f"https://[{given}]" if ":" in given else f"https://{given}")
    except httpx2.InvalidURL:
        found = httpx2.URL("")
    if not found.host or " " in given or found != httpx2.URL(scheme="https", host=found.host):
        raise ValueError(f"result_hosts: {given[:100]!r} is no host: name it without scheme, port and path")
    return host_of(found)


def _pause(error: Exception, ends: float) -> bool | float:
    """Whether to ask again, and after how many seconds if the provider said so."""
    if not isinstance(error, Again):
        return False
    if error.after_seconds is None:
        return True
    return error.after_seconds if time.monotonic() + error.after_seconds < ends else False


@contextmanager
def _failures() -> Iterator[None]:
    """What httpx2 raises, as what it means."""
    try:
        yield
    except httpx2.TimeoutException:
        raise Away("does not answer in time") from None
    except httpx2.TooManyRedirects:
        raise EngineError("the result's URL leads nowhere") from None
    except (httpx2.TransportError, httpx2.DecodingError):
        raise Away("can't be reached, or broke off") from None


def _plain(headers: httpx2.Headers) -> httpx2.Headers:
    """Without what only held for the body on its way."""
    return httpx2.Headers(
        [pair for pair in headers.multi_items() if pair[0] not in ("content-encoding", "transfer-encoding")]
    )
