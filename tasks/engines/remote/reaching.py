"""Where a provider may be reached: at public addresses, whatever a name resolves to, and at hosts that the document
names as its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable
from typing import Any

import httpcore2
import httpx2

from config.addresses import is_public


class Forbidden(Exception):
    """An address that we don't go to. Asking again can't help."""


def host_of(url: httpx2.URL) -> str:
    """As it is connected to: in ASCII, an IPv6 address without brackets."""
    return url.raw_host.decode("ascii").lower()


def check_url(url: httpx2.URL, *, own: Collection[str]) -> None:
    """Raises `Forbidden` for a URL that is no web address, says who we are, or goes where it may not.

    `own`: hosts of our own network, which may have private addresses and be spoken to by http.
    """
    ours = host_of(url) in own
    if url.scheme != "https" and not (ours and url.scheme == "http"):
        raise Forbidden("only https is used" if not ours else "only http and https are used")
    if not url.host:
        raise Forbidden("it names no host")
    if url.userinfo:
        raise Forbidden("it has a name or password in it")
    try:
        literal = is_public(url.host)
    except ValueError:
        return  # a name: looked at when it is resolved
    if not literal and not ours:
        raise Forbidden("it is a private address")


class PublicOnly(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses only, to exactly the one that was looked at; `own` hosts may be anywhere."""

    def __init__(self, inner: httpcore2.AsyncNetworkBackend, own: Collection[str]) -> None:
        self._inner = inner
        self._own = own

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature that httpcore2 calls
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        if host.lower() in self._own:
            return await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if not all(is_public(address) for address in addresses):
            raise Forbidden("its name leads to a private address")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class Transport(httpx2.AsyncHTTPTransport):
    """httpx2's own, which connects to public addresses and to `own` hosts only."""

    def __init__(self, *, own: Collection[str], limits: httpx2.Limits) -> None:
        super().__init__(limits=limits, trust_env=False)
        # httpx2 takes no backend, its pool does; a test sees that a private address stays out of reach.
        self._pool._network_backend = PublicOnly(self._pool._network_backend, own)
