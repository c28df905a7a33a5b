"""Figures, times and states as people read them. Pure: the time now is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

#: How a state looks: a class of the style sheet. Never by colour alone, the word stands beside it.
TONES: Mapping[str, str] = {
    "queued": "calm",
    "running": "active",
    "waiting": "warn",
    "succeeded": "good",
    "failed": "bad",
    "cancelled": "muted",
    "refused": "muted",
    "alive": "good",
    "draining": "warn",
    "stopped": "muted",
    "lost": "bad",
    "delivered": "good",
    "pending": "calm",
    "dead": "bad",
}

#: What a queued job needs, in words.
WAITS: Mapping[str, str] = {
    "run_at": "its start time has not come",
    "backoff": "a pause after a failed attempt",
    "paused": "its queue, kind or account is paused",
    "credits": "the account has too few credits",
    "account_limit": "its account runs as many jobs as it may",
    "queue_limit": "its queue runs as many jobs as it may",
    "no_worker": "no living worker serves its queue, or makes its tier",
    "slot": "all slots are taken",
    "not_dispatched": "slots are free, the scheduler has not got to it",
}


def tone(state: object) -> str:
    """The class of a state, of none for one that we don't know."""
    return TONES.get(str(state), "calm")


def number(value: float | None) -> str:
    """With separators; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for unit, larger, size in (("min", "s", 60), ("h", "min", 3600), ("d", "h", 86_400)):
        count, rest = divmod(whole, size)
        if count < {"min": 60, "h": 24, "d": 10**9}[unit]:
            rest //= {"min": 1, "h": 60, "d": 3600}[unit]
            return f"{count} {unit} {rest} {larger}" if rest else f"{count} {unit}"
    raise AssertionError("days are without end")


def moment(value: datetime | None) -> str:
    """A time to the second, in UTC."""
    return "–" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def ago(value: datetime | None, now: datetime) -> str:
    """How long before (or after) now."""
    if value is None:
        return "–"
    seconds = (now - value).total_seconds()
    return f"{span(round(seconds))} ago" if seconds >= 0 else f"in {span(round(-seconds))}"


def bytes_of(value: int) -> str:
    """A size."""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def percent(part: float, whole: float) -> str:
    """A share."""
    return "–" if not whole else f"{100 * part / whole:.1f} %".replace(".0 %", " %")


def named(value: str) -> str:
    """A name of ours, as people write it: `vocal_conversion` is vocal conversion."""
    return value.replace("_", " ")


def measures(part: Mapping[str, str]) -> str:
    """What was measured of an output beside its seconds, each by its name."""
    others = {"output", "seconds_in", "seconds_out", "rejected"}
    return ", ".join(f"{name} {value}" for name, value in sorted(part.items()) if name not in others)
