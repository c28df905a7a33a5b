"""Which addresses are somebody's on the internet: what may be reached unless a setting says otherwise."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

#: All that is routed on the internet; anything else in IPv6 is local, reserved, or hides an IPv4 address.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
#: Addresses that carry an IPv4 address to wherever it leads: 6to4 and Teredo.
_TUNNELS = (IPv6Network("2002::/16"), IPv6Network("2001::/32"))


def is_public(address: str) -> bool:
    """Whether an IP address, a zone (`%eth0`) left aside, is on the internet. Raises ValueError for what is none."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and (found not in _GLOBAL_UNICAST or any(found in one for one in _TUNNELS)):
        return False
    return found.is_global and not found.is_multicast
