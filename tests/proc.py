"""What /proc tells of processes, for tests that end them and look who is left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

#: Before a command: SIGINT interrupts it, also where we were started with SIGINT ignored, as `nohup … &` does.
INTERRUPTIBLE = ("env", "--default-signal=INT")


def family_of(pid: int) -> list[int]:
    """The ids of a process's children, their children and so on."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *family_of(child)]
    return found


def told_to(pid: int) -> str:
    """A process's command line and environment."""
    return "".join(Path(f"/proc/{pid}/{name}").read_bytes().decode() for name in ("cmdline", "environ"))


def user_of(pid: int) -> str:
    """Whom a process runs as."""
    return Path(f"/proc/{pid}").owner()
