"""What no log may hold: keys, passwords and webhook secrets, wherever in an event they turn up."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

_HIDDEN = "[hidden]"
#: Fields whose value is a secret whatever it looks like.
_SECRET_NAMES = re.compile(r"(?i)password|passwd|secret|authorization|cookie|api_?key|dsn")
#: What a secret of ours looks like inside a text: keys of the API, webhook secrets, bearers, signed links,
#: passwords in URLs.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(fmt_[A-Za-z0-9_-]{8})[A-Za-z0-9_-]{8,}"), rf"\1{_HIDDEN}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+"), f"whsec_{_HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) +[A-Za-z0-9+/=._~-]{8,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?i)([?&](?:amp;)?(?:key|x-amz-signature|x-amz-security-token)=)[^\s&\"'<>]{8,}"), rf"\1{_HIDDEN}"),
    (re.compile(r"(://[^\s/:@]*):[^\s@]*@"), rf"\1:{_HIDDEN}@"),
)
#: Objects within each other that are looked through.
_DEPTH_MAX = 8


def redacted(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the event without secrets. Put it last before the renderer, so that tracebacks pass it."""
    return {name: _of(name, value, 0) for name, value in event.items()}


def _of(name: str, value: Any, depth: int) -> Any:
    if _SECRET_NAMES.search(name) and value is not None:
        return _HIDDEN
    if isinstance(value, str):
        return clean(value)
    if depth >= _DEPTH_MAX:
        return _HIDDEN
    if isinstance(value, dict):
        return {key: _of(str(key), one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_of("", one, depth + 1) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean(str(value))


def clean(text: str) -> str:
    """The text without what looks like a secret."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
