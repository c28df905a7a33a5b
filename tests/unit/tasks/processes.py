"""What the kernel says of processes and descriptors, read from /proc."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def children() -> list[int]:
    """The processes that engines of this one have started and it has not reaped, zombies included.

    Not the servers and processes of other tests, where all run in one.
    """
    found = []
    own = Path("/proc/self/cmdline").read_bytes()  # one that was just forked has it, too
    for one in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended: its children are another's
            for pid in one.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if not command or command == own or b"tasks.engines.inside" in command:
                    found.append(int(pid))
    return found


def descriptors() -> int:
    """How many descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


def running(pid: int) -> bool:
    """False if it is gone, or dead and only not yet reaped by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int, seconds: float) -> bool:
    """Wait until a process has ended, at most so long."""
    deadline = time.monotonic() + seconds
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not running(pid)
