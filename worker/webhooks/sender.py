"""Sends one signed message to one endpoint, to a checked address, within its time. Never follows, never reads on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx2

from worker.store.webhooks import WebhookTarget
from worker.webhooks.message import Message, headers_of
from worker.webhooks.targets import Address, ForbiddenTarget, Resolve, check_addresses, check_url, resolved

#: Connections at a time.
CONNECTIONS_MAX = 64
#: Addresses of one name that are tried.
_ADDRESSES_MAX = 3
#: The longest wait that an endpoint may ask for by Retry-After.
_RETRY_AFTER_SECONDS_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How an endpoint answered, or why it did not."""

    status: int | None
    error: str | None = None
    #: Seconds that it asked us to wait.
    retry_after: float | None = None

    @property
    def taken(self) -> bool:
        """Whether it has the message now."""
        return self.error is None

    @property
    def gone(self) -> bool:
        """Whether it wants nothing any more."""
        return self.status == 410


class Sender:
    """The HTTP client of a process. Made and closed inside its event loop."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        private_too: bool,
        resolve: Resolve = resolved,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._private_too = private_too
        self._resolve = resolve
        # A connection is never used twice: it was made for one name, and the next may be another's on that address.
        limits = httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0)
        self._http = httpx2.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=timeout_seconds, limits=limits, verify=tls
        )

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def send(self, target: WebhookTarget, message: Message) -> Answer:
        """Send it once. Raises nothing: whatever goes wrong is an answer."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._sent(target, message)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout_seconds:g} s")
        except ForbiddenTarget as error:
            return Answer(None, str(error))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:200])

    async def _sent(self, target: WebhookTarget, message: Message) -> Answer:
        parts = check_url(target.url, private_too=self._private_too)
        assert parts.hostname is not None
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
        found = await self._resolve(parts.hostname, port)
        addresses = check_addresses(found, private_too=self._private_too)[:_ADDRESSES_MAX]
        headers = {**headers_of(message, target.secret, datetime.now(UTC)), "host": parts.netloc}
        for address in addresses[:-1]:
            try:
                return await self._posted(target.url, address, parts.hostname, headers, message)
            except httpx2.ConnectError:
                continue
        return await self._posted(target.url, addresses[-1], parts.hostname, headers, message)

    async def _posted(
        self, url: str, address: Address, host: str, headers: Mapping[str, str], message: Message
    ) -> Answer:
        there = httpx2.URL(url).copy_with(host=str(address))
        # TLS still proves the name, not the address. The body of an answer is never read.
        async with self._http.stream(
            "POST", there, content=message.body, headers=dict(headers), extensions={"sni_hostname": host}
        ) as response:
            return _answer_of(response)


def _answer_of(response: httpx2.Response) -> Answer:
    status = response.status_code
    if 200 <= status < 300:
        return Answer(status)
    if 300 <= status < 400:
        return Answer(status, f"answered {status}: redirects are not followed, give the final address")
    return Answer(status, f"answered {status}", _retry_after(response.headers.get("retry-after", "")))


def _retry_after(text: str) -> float | None:
    return min(float(text), _RETRY_AFTER_SECONDS_MAX) if text.isascii() and text.isdigit() and len(text) < 9 else None
