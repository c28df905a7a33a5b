"""Text from outside, as PostgreSQL can hold it."""

from __future__ import annotations

#: Who did something, and why, as people write it: characters.
ACTOR_LENGTH_MAX = 128
NOTE_LENGTH_MAX = 500


def storable(text: str | None) -> str | None:
    """The text without NULs, and with `?` for each half of a character: an engine's message may hold both."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def is_line(given: object, length_max: int) -> bool:
    """Whether it is text on one line, of 1 to `length_max` printable characters: no NUL, no half of a character."""
    return isinstance(given, str) and 1 <= len(given) <= length_max and given.isprintable()
