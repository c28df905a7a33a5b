"""Passwords of the embedded servers: made once, kept in a file that only we can read."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def kept_passwords(path: Path, names: Iterable[str]) -> dict[str, str]:
    """A password for each name, the same ones every time. New names get one; the file is 0600 from its first byte."""
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    wanted = {name: known.get(name) or secrets.token_urlsafe(24) for name in names}
    if not wanted.items() <= known.items():
        write_private(path, json.dumps({**known, **wanted}))
    return wanted


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that was never readable by others, all at once."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
