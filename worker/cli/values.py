"""What people type, as values. Each reader says which field is wrong and what its limits are."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from worker.store.instants import problem_of_instant
from worker.store.texts import ACTOR_LENGTH_MAX, NOTE_LENGTH_MAX, is_line

#: The most credits, and the largest number of a journal entry, that any verb takes.
WHOLE_MAX = 10**12

#: Characters of a refused value that a message may show.
_SHOWN_MAX = 40


class Misused(Exception):
    """A verb was given what it can't take: names the field, what is wrong with it, and the limit."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def whole(field: str, text: str, low: int = 1, high: int = WHOLE_MAX) -> int:
    """A whole number between `low` and `high`, both included; never rounded, never guessed."""
    if re.fullmatch(r"[+-]?[0-9]{1,30}", text, re.ASCII) and low <= int(text) <= high:
        return int(text)
    raise Misused(field, f"must be a whole number from {low:,} to {high:,} (given {_short(text)})")


def moment(field: str, text: str) -> datetime:
    """A point in time, with its zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Misused(field, f"must be a time such as 2026-12-01T10:00:00Z (given {_short(text)})") from None
    if (problem := problem_of_instant(time)) is not None:
        raise Misused(field, problem)
    return time


def span(field: str, text: str) -> timedelta:
    """A length of time: 90m, 12h, 30d, 8w; at most ten years."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([mhdw])", text, re.ASCII)
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if found and (length := timedelta(**{units[found[2]]: int(found[1])})) <= timedelta(days=3660):
        return length
    raise Misused(
        field, f"must be a length of time such as 90m, 12h, 30d or 8w, at most ten years (given {_short(text)})"
    )


def identifier(field: str, text: str) -> UUID:
    """The id of a job or an artifact."""
    try:
        return UUID(text)
    except ValueError:
        raise Misused(
            field, f"must be an id such as 0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88 (given {_short(text)})"
        ) from None


def line(field: str, text: str, most: int = NOTE_LENGTH_MAX) -> str:
    """Words on one line, for people to read."""
    if not is_line(text, most) or not text.strip():
        raise Misused(field, f"must be 1 to {most} printable characters on one line")
    return text


def account_id(text: str) -> str:
    """What an account may be called. Says nothing about whether it is there."""
    from worker.store.references import check_account_id

    check_account_id(text)
    return text


def pairs(field: str, given: Sequence[str]) -> dict[str, str]:
    """`name=value` arguments by name, each name once."""
    found: dict[str, str] = {}
    for argument in given:
        name, separator, value = argument.partition("=")
        if not separator or not name:
            raise Misused(field, f"must be written name=value (given {_short(argument)})")
        if name in found:
            raise Misused(f"{field} {_short(name)}", "is given twice")
        found[name] = value
    return found


def document(field: str, path: str, bytes_max: int = 1_000_000) -> str:
    """The text of a file that somebody wrote, read as it is."""
    try:
        file = Path(path)
        if not file.is_file():
            raise Misused(field, "must be a file that is there" if not file.exists() else "must be a plain file")
        if (size := file.stat().st_size) > bytes_max:
            raise Misused(field, f"has {size:,} bytes; at most {bytes_max:,} are read")
        return file.read_bytes().decode()
    except UnicodeDecodeError:
        raise Misused(field, "is not text in UTF-8") from None
    except (OSError, ValueError) as error:
        raise Misused(field, (getattr(error, "strerror", None) or "can't be read").lower()) from None


def actor_of(given: str | None) -> str:
    """Who does this: as named, else the login of whoever runs us."""
    return line("as", given, ACTOR_LENGTH_MAX) if given else f"cli:{_login()}"[:ACTOR_LENGTH_MAX]


def author_of(given: str | None) -> str:
    """Who does this, as named: what a customer pays is never changed by nobody in particular."""
    if not given:
        raise Misused("as", "say who does this, for the history: --as NAME, or FERMATA_ACTOR")
    return line("as", given, ACTOR_LENGTH_MAX)


def _login() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.geteuid())


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…")
