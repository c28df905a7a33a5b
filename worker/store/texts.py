"""Text from outside, as PostgreSQL can hold it."""

from __future__ import annotations


def storable(text: str | None) -> str | None:
    """The text without NULs, and with `?` for each half of a character: an engine's message may hold both."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
