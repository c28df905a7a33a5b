"""Free ports on the one address that our own servers listen on."""

from __future__ import annotations

import socket
from pathlib import Path

#: Not a name: minimal systems may not resolve `localhost`.
HOST = "127.0.0.1"


def free_port(preferred: int | None = None) -> int:
    """A port that nobody listens on right now: the preferred one if it is free."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no free port on {HOST}")


def remembered_port(path: Path) -> int | None:
    """The port an earlier run wrote down, so that addresses stay the same from one run to the next."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
