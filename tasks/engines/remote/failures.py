"""What an answer means for the job: go on, ask again later, or give up. Pure.

| answer | meaning |
|---|---|
| 2xx | go on |
| 408, 409, 425, 429, 5xx; a timeout, no or half an answer | ask again, within the patience of the attempt |
| every other one | for good: the job ends, and its credits return |
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Answers below 500 after which asking again may help.
LATER = frozenset({408, 409, 425, 429})
#: Those of them by a provider that is well: it is busy, or wants us to slow down.
BUSY = frozenset({409, 425, 429})
#: Numbers of a reset header above this are seconds since 1970, not seconds from now.
EPOCH_MIN = 1_000_000_000


class Again(Exception):
    """Asking again may help. `after_seconds`: not sooner, as the provider said."""

    def __init__(self, problem: str, after_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.after_seconds = after_seconds


class Away(Again):
    """The provider failed or didn't answer: one more of these, and it may be left alone for a while."""


class Busy(Again):
    """The provider is well, but not now."""


def again_for(status: int, headers: Mapping[str, str]) -> Again | None:
    """Why to ask again after this answer, or None where that can't help. Not for 2xx."""
    if status in BUSY:
        return Busy(f"is busy ({status})", wait_of(headers))
    if status in LATER or status >= 500:
        return Away(f"failed ({status})", wait_of(headers))
    return None


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that the provider wants us to wait, by `Retry-After` or by a rate limit that is used up."""
    if (after := _seconds_in(headers.get("retry-after", ""), headers)) is not None:
        return after
    for prefix in ("x-ratelimit-", "ratelimit-"):
        if headers.get(f"{prefix}remaining", "").strip() == "0":
            return _seconds_in(headers.get(f"{prefix}reset", ""), headers)
    return None


def _seconds_in(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds from now: a number of them, a time since 1970, or a date. A provider's times are by its own clock."""
    text = text.strip()
    if text.replace(".", "", 1).isdigit() and text.isascii() and len(text) <= 16:
        seconds = float(text)
        return seconds if seconds < EPOCH_MIN else max(0.0, seconds - _its_now(headers).timestamp())
    try:
        return max(0.0, (_date(text) - _its_now(headers)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _its_now(headers: Mapping[str, str]) -> datetime:
    try:
        return _date(headers.get("date", ""))
    except (ValueError, OverflowError):
        return datetime.now(UTC)


def _date(text: str) -> datetime:
    found = parsedate_to_datetime(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
