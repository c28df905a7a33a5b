"""Which addresses may be told anything: public ones only, unless a setting says otherwise.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address, not to
the name: what the name says a moment later (DNS rebinding) leads nowhere.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

from config.addresses import is_public

URL_LENGTH_MAX = 2000

Address = IPv4Address | IPv6Address
#: A host and a port to all its addresses, as text.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_resolvers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="resolve")


class ForbiddenTarget(Exception):
    """Nothing may be sent there. Says why; people see it."""


def check_url(url: str, *, private_too: bool) -> SplitResult:
    """The URL's parts. Raises `ForbiddenTarget` for one that can't be an endpoint, as far as it tells without DNS."""
    if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ForbiddenTarget(f"must be a URL of at most {URL_LENGTH_MAX:,} printable ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ForbiddenTarget("can't be read as a URL") from None
    if parts.scheme != "https" and not (private_too and parts.scheme == "http"):
        raise ForbiddenTarget("must start with https://; FERMATA_WEBHOOK_PRIVATE_TARGETS allows http:// and neighbours")
    if not host or port == 0:
        raise ForbiddenTarget("must name a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ForbiddenTarget("must hold no user, password or fragment: the signature says who we are")
    try:
        address = ip_address(host)
    except ValueError:
        return parts
    check_addresses([str(address)], private_too=private_too)
    return parts


def check_addresses(addresses: Sequence[str], *, private_too: bool) -> Sequence[Address]:
    """The addresses, if one may send to each of them. Raises `ForbiddenTarget`."""
    found = [ip_address(address.partition("%")[0]) for address in addresses]
    if not private_too and not all(is_public(str(address)) for address in found):
        raise ForbiddenTarget("leads to a private, loopback, link-local or reserved address")
    return found


async def resolved(host: str, port: int) -> Sequence[str]:
    """All addresses of a host. Raises `ForbiddenTarget` where it has none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(_resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        raise ForbiddenTarget("its name can't be resolved") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
