"""What an endpoint is told, signed as Standard Webhooks says (standardwebhooks.com), and when again. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from worker.store.webhooks import Sending

SECRET_PREFIX = "whsec_"  # noqa: S105  a prefix is no secret


@dataclass(frozen=True, slots=True)
class Message:
    """A body, with an id that stays the same however often it is sent: receivers drop what they have seen by it."""

    message_id: str
    body: bytes


def message_of(sending: Sending) -> Message:
    """The event as JSON. Keys are only ever added."""
    message_id = f"evt_{sending.seq}"
    facts = {name: value for name, value in (sending.facts or {}).items() if name not in ("seq", "what", "body")}
    document = {
        "id": message_id,
        "type": sending.what,
        "timestamp": sending.at,
        "account": sending.account_id,
        "data": {"job": sending.job_id, **facts, **((sending.facts or {}).get("body") or {})},
    }
    return Message(message_id, msgspec.json.encode(document))


def trial_message(now: datetime) -> Message:
    """What a test sends."""
    message_id = f"evt_test_{int(now.timestamp() * 1000)}"
    document = {"id": message_id, "type": "test", "timestamp": now, "account": None, "data": {}}
    return Message(message_id, msgspec.json.encode(document))


def headers_of(message: Message, secret: str, now: datetime) -> Mapping[str, str]:
    """The headers of one sending: the time is that of this attempt, so an old one can't be replayed."""
    timestamp = str(int(now.timestamp()))
    return {
        "content-type": "application/json",
        "user-agent": "Fermata-Webhooks/1",
        "webhook-id": message.message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature_of(message, secret, timestamp),
    }


def signature_of(message: Message, secret: str, timestamp: str) -> str:
    """`v1,` and the HMAC-SHA256 over id, time and body, in base64."""
    signed = b".".join([message.message_id.encode(), timestamp.encode(), message.body])
    return f"v1,{base64.b64encode(hmac.digest(_key_of(secret), signed, hashlib.sha256)).decode()}"


def secret_of(random_bytes: bytes) -> str:
    """A secret as it is shown; the standard asks for 24 to 64 random bytes."""
    return SECRET_PREFIX + base64.b64encode(random_bytes).decode()


def wait_seconds_for(attempts: int, first: float, longest: float, most: int) -> float | None:
    """Until the next try after so many: three times as long each time. None: there is no next."""
    if attempts >= most:
        return None
    return float(min(first * 3.0 ** min(attempts - 1, 30), longest))


def _key_of(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a webhook's secret is not what was made for it") from error
