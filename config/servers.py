"""URLs of servers: which server they name, how to speak with it, and whether it is on this machine.

No message shows a piece of a URL: a password is in it.
"""

from __future__ import annotations

import re
import ssl
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qs, urlsplit

#: What is said of a URL that can't be taken apart, without a piece of it.
_UNREADABLE = "can't be read as a URL: in a name or password, write :/?#[]@% as %XX"

#: What a URL of PostgreSQL says of encryption, in libpq's words.
TLS_WORDS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

#: What a URL of Redis may say beside its server. A password has its place before the host.
REDIS_WORDS = ("db", "protocol")
REDIS_TLS_WORDS = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"),
)
_REDIS_VALUES = {
    "db": r"\d{1,4}",
    "protocol": "[23]",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": "[Tt]rue|[Ff]alse",
}

#: All that its query may hold.
_QUERY_WORDS = ("host", "port", *TLS_WORDS, "target_session_attrs")


def check_postgresql(url: str) -> str:
    """The URL with `ssl=`, as some drivers have it, in libpq's words. Raises `ValueError` for one of no use."""
    url = re.sub(r"([?&])ssl=", r"\1sslmode=", url)
    check_server(url, socket_in_query=True)
    query = parse_qs(parts_of(url).query, keep_blank_values=True)
    if not query.keys() <= set(_QUERY_WORDS):
        raise ValueError(f"its query may hold {', '.join(_QUERY_WORDS)} and no more")
    if any(mode not in SSL_MODES for mode in query.get("sslmode", ())):
        raise ValueError(f"its sslmode must be one of {', '.join(SSL_MODES)}")
    return url


def says_plain(url: str) -> bool:
    """Whether the URL of a PostgreSQL asks for no encryption."""
    return "disable" in parse_qs(parts_of(url).query).get("sslmode", ())


def is_near(url: str) -> bool:
    """Whether every server that the URL names is reached on this machine alone: by loopback or a socket."""
    hosts, _ = _named(parts_of(url), socket_in_query=True)
    return all(host.startswith("/") or host == "localhost" or _is_loopback(host) for host in hosts)


#: OpenSSL's numbers for a certificate of another host, by name and by address.
_OF_ANOTHER_HOST = frozenset({62, 64})


def tls_problem(error: BaseException | None) -> str | None:
    """What is wrong with a server's encryption, wherever in the chain of causes it is said; None: nothing is."""
    while error is not None:
        match error:
            case ssl.SSLCertVerificationError() if error.verify_code in _OF_ANOTHER_HOST:
                return "its certificate is not for the host that the URL names"
            case ssl.SSLCertVerificationError():
                return f"its certificate is signed by nobody that we trust: {error.verify_message}"
            case ssl.SSLError():
                return f"no encryption can be agreed on ({error.reason or 'broken off'})"
        error = error.__cause__ or error.__context__
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _named(parts: SplitResult, socket_in_query: bool) -> tuple[list[str], list[str]]:
    """Hosts and ports, as in libpq: ?host=one:5432,two&port=5433."""
    query = parse_qs(parts.query) if socket_in_query else {}
    named = [host.partition(":") for given in query.get("host", []) for host in given.split(",")]
    hosts = [host for host in (parts.hostname, *(host for host, _, _ in named)) if host]
    ports = [port for _, colon, port in named if colon]
    ports += [port for given in query.get("port", []) for port in given.split(",")]
    return hosts, ports


def parts_of(url: str) -> SplitResult:
    """Raises `ValueError` that shows nothing of the URL, where none can be read."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    # A password with an @ of its own is cut at the first by one of our drivers, at the last by the other.
    if not url.isprintable() or parts.fragment or parts.netloc.count("@") > 1:
        raise ValueError(_UNREADABLE)
    return parts


def check_redis(url: str) -> None:
    """Raise `ValueError` for a query that our client would stumble over, or that switches off what nobody named."""
    parts = parts_of(url)
    words = REDIS_WORDS + REDIS_TLS_WORDS * (parts.scheme == "rediss")
    query = parse_qs(parts.query, keep_blank_values=True)
    if not query.keys() <= set(words):
        encrypted = "" if parts.scheme == "rediss" else f" ({', '.join(REDIS_TLS_WORDS)} go with rediss://)"
        raise ValueError(f"its query may hold {', '.join(words)} and no more{encrypted}")
    for word, values in query.items():
        if len(values) > 1 or not re.fullmatch(_REDIS_VALUES.get(word, ".+"), values[0]):
            raise ValueError(f"{word} in its query has a value that can't be used")


def check_server(url: str, *, socket_in_query: bool = False) -> None:
    """Raise `ValueError` unless the URL says which server: a host, or the folder of a socket in its query."""
    parts = parts_of(url)
    hosts, ports = _named(parts, socket_in_query)
    if not hosts:
        sockets = " or, for a socket, ?host=/folder" if socket_in_query else ""
        raise ValueError(f"must name a host{sockets}")
    if not all(_is_host(host) for host in hosts):
        raise ValueError("must name a host that can be one")
    if not _has_good_port(parts) or not all(_is_port(port) for port in ports):
        raise ValueError("its port must be a whole number from 1 to 65535; in a password, write :/?#[]@% as %XX")


def _is_host(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:
        return host.startswith("/")
    return True


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) < 6 and 1 <= int(port) <= 65_535
