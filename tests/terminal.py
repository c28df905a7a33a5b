"""A terminal for a command under test: a real pty of its own, a size, a keyboard, and what stands on the screen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker.local.processes import spawn, stop

ROOT = Path(__file__).parents[1]

#: Makes the terminal on stdin its own, as a shell's job has it, so that Ctrl-C comes as a signal.
_TAKE = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0-9A-B]?|\r")
#: Where a whole screen is drawn anew.
HOME = "\x1b[H"
#: Leaves the screen of its own that a full-screen program draws on.
LEAVE = "\x1b[?1049l"


class Terminal:
    """`python -m worker.cli` with these arguments, in front of somebody. Close it."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], columns: int = 200) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        # Rich asks these before the terminal itself.
        environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        self.child: subprocess.Popen[bytes] = spawn(
            [sys.executable, "-c", _TAKE, sys.executable, "-m", "worker.cli", *arguments],
            on_parent_death=signal.SIGKILL,
            cwd=ROOT,
            env={**environment, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._drawn = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._drawn += os.read(self._ours, 65_536)
            except OSError:  # the other end is closed
                return

    @property
    def drawn(self) -> str:
        """Everything that was sent to the screen."""
        return bytes(self._drawn).decode(errors="replace")

    @property
    def screens(self) -> list[str]:
        """What a full-screen program has drawn, screen by screen, the last one maybe not whole yet."""
        return [plain(screen) for screen in self.drawn.partition(LEAVE)[0].split(HOME)[1:]]

    @property
    def left(self) -> str:
        """What stands on the screen that was there before, once the program has left its own."""
        return plain(self.drawn.rpartition(LEAVE)[2])

    def press(self, keys: bytes) -> None:
        """Type them."""
        os.write(self._ours, keys)

    async def until(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Return once it holds; else fail with what was drawn."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110  a screen has no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}; drawn:\n{self.drawn[-6000:]!r}") from None

    async def ended(self) -> int:
        """Wait for the command's end; its exit code. All that it has drawn is there then."""
        await self.until(lambda: self.child.poll() is not None, "the command has ended")
        await asyncio.to_thread(self._reader.join, 10)
        assert self.child.returncode is not None
        return self.child.returncode

    def close(self) -> None:
        """End it, if it is there."""
        stop(self.child, [(signal.SIGTERM, 5), (signal.SIGKILL, 5)])
        self._reader.join(10)
        os.close(self._ours)


def plain(drawn: str) -> str:
    """The text without what moves a cursor or colours."""
    return _CONTROL.sub("", drawn)
