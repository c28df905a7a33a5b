"""Passwords of the roles: made once, kept in a file that only we can read, told to PostgreSQL as what proves them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

#: As PostgreSQL itself makes them.
SCRAM_ITERATIONS, SCRAM_SALT_BYTES = 4096, 16


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


def check_password(password: str) -> None:
    """Raise `ValueError` for one that is not of printable ASCII: those are written in more than one way."""
    if not (password and password.isascii() and password.isprintable()):
        raise ValueError("a role's password must be of printable ASCII")


def scram_verifier(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that the password itself is never sent nor logged.

    Raises `ValueError` as `check_password` does.
    """
    check_password(password)
    salt = secrets.token_bytes(SCRAM_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt64}${stored64}:{server64}"
