"""What webhooks say and to whom: pure rules, checked against an independent implementation of the standard."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from worker.store.webhooks import Sending, WebhookTarget
from worker.webhooks.message import Message, headers_of, message_of, secret_of, wait_seconds_for
from worker.webhooks.targets import ForbiddenTarget, check_addresses, check_url

SECRET = secret_of(bytes(range(32)))


def a_sending(seq: int = 7, **facts: object) -> Sending:
    """An event on its way."""
    at = datetime(2026, 12, 1, 10, tzinfo=UTC)
    target = WebhookTarget(UUID(int=1), "https://example.com", SECRET)
    return Sending(target, "ada", seq, UUID(int=2), 1, "ended", at, UUID(int=3), facts)


@given(body=st.binary(max_size=2000).map(lambda raw: raw.hex().encode()), secret=st.binary(min_size=24, max_size=64))
def test_an_independent_verifier_accepts_every_signature(body: bytes, secret: bytes) -> None:
    """And no other body, and no other secret."""
    shown, message = secret_of(secret), Message("evt_1", b'{"a":"' + body + b'"}')
    headers = dict(headers_of(message, shown, datetime.now(UTC)))
    standardwebhooks.Webhook(shown).verify(message.body, headers)
    for wrong_body, wrong_secret in ((message.body + b" ", shown), (message.body, secret_of(secret[::-1] + b"x"))):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(wrong_secret).verify(wrong_body, headers)


def test_an_old_message_is_refused_by_its_time() -> None:
    """A message that somebody kept can't be played again ten minutes later."""
    message = message_of(a_sending())
    headers = dict(headers_of(message, SECRET, datetime.now(UTC) - timedelta(minutes=10)))
    with pytest.raises(standardwebhooks.WebhookVerificationError, match="too old"):
        standardwebhooks.Webhook(SECRET).verify(message.body, headers)


def test_a_message_says_what_happened() -> None:
    """Its id is the event's, however often it is sent; facts and the event's own body stand in `data`."""
    message = message_of(a_sending(seq=7, what="ended", state="succeeded", charged=9, body={"shortfall": 3}))
    assert "evt_7" == message.message_id
    assert (
        b'{"id":"evt_7","type":"ended","timestamp":"2026-12-01T10:00:00Z","account":"ada","data":'
        b'{"job":"00000000-0000-0000-0000-000000000003","state":"succeeded","charged":9,"shortfall":3}}'
    ) == message.body


def test_a_secret_is_shown_nowhere() -> None:
    """Not where a target or what is sent is written into a log."""
    assert SECRET not in repr(a_sending())


@pytest.mark.parametrize(
    ("attempts", "wait"), [(1, 5.0), (2, 15.0), (3, 45.0), (8, 10_935.0), (11, 43_200.0), (12, None), (99, None)]
)
def test_the_waits_grow_and_end(attempts: int, wait: float | None) -> None:
    """Three times as long each time, at most half a day, and after twelve tries never again."""
    assert wait == wait_seconds_for(attempts, first=5, longest=43_200, most=12)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),  # noqa: S104  never bound
        *("100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1"),
        # an IPv4 address in other clothes: mapped, compatible, NAT64, 6to4, Teredo
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
        "2001:db8::1",
    ],
)
def test_what_is_not_on_the_internet_is_told_nothing(address: str) -> None:
    """Also when it is only one of a name's addresses."""
    with pytest.raises(ForbiddenTarget, match="private"):
        check_addresses(["8.8.8.8", address], private_too=False)
    check_addresses([address], private_too=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_what_is_on_the_internet_may_be_told(address: str) -> None:
    """Public addresses of both families."""
    check_addresses([address], private_too=False)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com", "ftp://example.com", "file:///etc/passwd", "gopher://example.com", "data:,x"),
        *("https://", "https:///x", "https://example.com:0", "https://example.com:99999", "https://[::1", "x"),
        *("https://user:pass@example.com", "https://good@evil.example", "https://example.com/#part"),
        *(
            "https://127.0.0.1",
            "https://[::1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://[::ffff:10.0.0.1]",
        ),
        *("https://exa mple.com", "https://example.com\\@evil", "https://exämple.com", "https://e\n.com", ""),
        "https://example.com/" + "x" * 2000,
    ],
)
def test_what_can_be_no_endpoint_is_refused(url: str) -> None:
    """Before anything is resolved or stored."""
    with pytest.raises(ForbiddenTarget):
        check_url(url, private_too=False)


@pytest.mark.parametrize("url", ["https://example.com", "https://example.com:8443/hook?a=1", "https://8.8.8.8/x"])
def test_a_good_url_is_taken(url: str) -> None:
    """With port, path and query."""
    check_url(url, private_too=False)
