"""The clients: `Fermata` blocks, `AsyncFermata` is awaited. Their calls are those of `calls.py`, written once.

with Fermata("https://fermata.example", key) as fermata:
    job = fermata.submit(JobRequest(account="ada", request=GenerationRequest(prompt="lofi", seconds_max=60)))
    done = fermata.wait(job.id)
    fermata.download(done.outputs[0].artifact, "song.wav")
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

import httpx2

from fermata_client import calls
from fermata_client.answers import Event
from fermata_client.calls import JobRequest as JobRequest
from fermata_client.calls import Pause, Reply, Send, Steps
from fermata_client.errors import FermataError, Problem, Unreachable, WrongSetup, invalid

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds without a byte after which a connection is given up. A submit answers within one; an upload is measured.
TIMEOUT_SECONDS = 60.0


def _blocking(call: Callable[P, Steps[T]]) -> Callable[Concatenate[Fermata, P], T]:
    def method(self: Fermata, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(*args, **kwargs))

    method.__name__, method.__doc__ = call.__name__, call.__doc__
    return method


def _awaited(call: Callable[P, Steps[T]]) -> Callable[Concatenate[AsyncFermata, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncFermata, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(*args, **kwargs))

    method.__name__, method.__doc__ = call.__name__, call.__doc__
    return method


class Fermata:
    """Asks Fermata, blocking. One may be shared by threads; close it, or use it in a `with`."""

    submit = _blocking(calls.submit)
    submit_many = _blocking(calls.submit_many)
    job = _blocking(calls.job)
    wait = _blocking(calls.wait)
    cancel = _blocking(calls.cancel)
    retry = _blocking(calls.retry)
    receipt = _blocking(calls.receipt)
    jobs = _blocking(calls.jobs)
    quote = _blocking(calls.quote)
    balance = _blocking(calls.balance)
    upload = _blocking(calls.upload)
    artifact = _blocking(calls.artifact)
    download = _blocking(calls.download)

    def __init__(self, url: str, key: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._http = httpx2.Client(**_settings(url, key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def events(self, job_id: UUID | str, after: int | None = None) -> Iterator[Event]:
        """What happens to a job, as it happens, to its end; behind the event of that number, if one is given.

        Goes on by itself where it was cut off. Raises `NotFound`, or `Unreachable` once that is of no use any more.
        """
        following = calls.Following(job_id, after)
        while not following.over:
            cut: FermataError | None = None
            try:
                with self._http.sse(following.send.path, headers=_headers(following.send)) as source:
                    if source.response.status_code != 200:
                        following.answered(_reply(source.response, source.response.read()))
                    else:
                        for one in source:
                            if one.data:
                                yield following.heard(one.event, one.data, one.id)
            except httpx2.RequestError as error:
                cut = _unreachable(error)
            except Problem as error:
                cut = error
            if not following.over:
                time.sleep(following.rest(cut))

    def _run(self, steps: Steps[T]) -> T:
        told: Reply | Unreachable | None = None
        with closing(steps):  # interrupted on its way: what it had begun is put away
            while True:
                try:
                    step = steps.throw(told) if isinstance(told, Unreachable) else steps.send(told)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                told = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    continue
                try:
                    told = self._send(step)
                except httpx2.RequestError as error:
                    told = _unreachable(error)

    def _send(self, send: Send) -> Reply:
        with ExitStack() as stack:
            request = self._http.build_request(**_request(send, stack))
            response = self._http.send(request, stream=True)
            stack.callback(response.close)
            if send.into is None or response.is_error:
                return Reply(response.status_code, response.headers, response.read())
            digest = hashlib.sha256()
            with _opened(send.into, "path", "wb") as file:
                for block in response.iter_raw():
                    digest.update(block)
                    file.write(block)
            return Reply(response.status_code, response.headers, sha256=digest.hexdigest())


class AsyncFermata:
    """Asks Fermata without blocking the event loop. Close it, or use it in an `async with`."""

    submit = _awaited(calls.submit)
    submit_many = _awaited(calls.submit_many)
    job = _awaited(calls.job)
    wait = _awaited(calls.wait)
    cancel = _awaited(calls.cancel)
    retry = _awaited(calls.retry)
    receipt = _awaited(calls.receipt)
    jobs = _awaited(calls.jobs)
    quote = _awaited(calls.quote)
    balance = _awaited(calls.balance)
    upload = _awaited(calls.upload)
    artifact = _awaited(calls.artifact)
    download = _awaited(calls.download)

    def __init__(self, url: str, key: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._http = httpx2.AsyncClient(**_settings(url, key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def events(self, job_id: UUID | str, after: int | None = None) -> AsyncIterator[Event]:
        """What happens to a job, as it happens, to its end; behind the event of that number, if one is given.

        Goes on by itself where it was cut off. Raises `NotFound`, or `Unreachable` once that is of no use any more.
        """
        following = calls.Following(job_id, after)
        while not following.over:
            cut: FermataError | None = None
            try:
                async with self._http.sse(following.send.path, headers=_headers(following.send)) as source:
                    if source.response.status_code != 200:
                        following.answered(_reply(source.response, await source.response.aread()))
                    else:
                        async for one in source:
                            if one.data:
                                yield following.heard(one.event, one.data, one.id)
            except httpx2.RequestError as error:
                cut = _unreachable(error)
            except Problem as error:
                cut = error
            if not following.over:
                await asyncio.sleep(following.rest(cut))

    async def _run(self, steps: Steps[T]) -> T:
        told: Reply | Unreachable | None = None
        with closing(steps):  # cancelled on its way: what it had begun is put away
            while True:
                try:
                    step = steps.throw(told) if isinstance(told, Unreachable) else steps.send(told)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                told = None
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    continue
                try:
                    told = await self._send(step)
                except httpx2.RequestError as error:
                    told = _unreachable(error)

    async def _send(self, send: Send) -> Reply:
        with ExitStack() as stack:
            request = self._http.build_request(**_request(send, stack))
            response = await self._http.send(request, stream=True)
            try:
                if send.into is None or response.is_error:
                    return Reply(response.status_code, response.headers, await response.aread())
                digest = hashlib.sha256()
                file = stack.enter_context(await asyncio.to_thread(_opened, send.into, "path", "wb"))
                async for block in response.aiter_raw(1024 * 1024):
                    digest.update(block)
                    await asyncio.to_thread(file.write, block)
                return Reply(response.status_code, response.headers, sha256=digest.hexdigest())
            finally:
                await response.aclose()


def _settings(url: str, key: str) -> dict[str, Any]:
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        address = httpx2.URL()
    # Either would look like an outage, and be tried again for half a minute. What no host may have was escaped.
    named = address.host and ("%" not in address.host or ":" in address.host)
    if address.scheme not in ("http", "https") or not named:
        raise WrongSetup("url: must be as https://fermata.example")
    if not isinstance(key, str) or not key or not all("!" <= sign <= "~" for sign in key):
        raise WrongSetup("key: must be as it was made: visible ASCII characters, no space, no end of a line")
    headers = {"Authorization": f"Bearer {key}", "User-Agent": "fermata-client"}
    # A redirect would carry the key elsewhere.
    return {"base_url": url, "headers": headers, "timeout": TIMEOUT_SECONDS, "follow_redirects": False}


def _request(send: Send, stack: ExitStack) -> Mapping[str, Any]:
    """What httpx builds a request from. A file is opened anew for each try, and read as it is sent."""
    files: dict[str, tuple[str, IO[bytes]]] | None = None
    if send.file is not None:
        # What people call it is said beside; a file's own name need not be UTF-8.
        files = {"file": ("audio", stack.enter_context(_opened(send.file, "file", "rb")))}
    kind = {} if send.body is None else {"Content-Type": "application/json"}
    return {
        "method": send.method,
        "url": send.path,
        "params": dict(send.params) or None,
        "headers": _headers(send) | kind,
        "content": send.body,
        "files": files,
        **({} if send.seconds is None else {"timeout": send.seconds}),
    }


def _opened(path: Path, field: str, mode: str) -> IO[bytes]:
    try:
        file: IO[bytes] = path.open(mode)
    except OSError as error:
        raise invalid(field, (error.strerror or "can't be opened").lower()) from error
    except ValueError as error:
        raise invalid(field, "can't be opened") from error
    return file


def _headers(send: Send) -> dict[str, str]:
    return {**_trace(), **send.headers}


def _reply(response: httpx2.Response, body: bytes) -> Reply:
    return Reply(response.status_code, response.headers, body)


def _trace() -> dict[str, str]:
    """The caller's span, where OpenTelemetry is at work in its process; nothing is imported for it."""
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None:
        return {}
    span = opentelemetry.get_current_span().get_span_context()
    return (
        {"traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"} if span.is_valid else {}
    )


def _unreachable(error: httpx2.RequestError) -> Unreachable:
    return Unreachable(f"no answer: {type(error).__name__}")
