"""Many processes' output on one terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

#: ANSI colours, told apart on light and dark ground.
COLOURS = (36, 33, 35, 32, 34, 31)


class Output:
    """Everybody's lines on our standard output, each with its writer's name before it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.closed = False
        self._width = max(map(len, ["up", *names]))
        self._names = list(names)
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._rest: dict[int, bytes] = {}

    def take(self, name: str, source: int, chunk: bytes) -> None:
        """Pass on whole lines; keep the rest until its end comes. An empty chunk is the end of the source."""
        *lines, rest = (self._rest.pop(source, b"") + chunk).split(b"\n")
        if rest and (not chunk or len(rest) > 65_536):
            lines, rest = [*lines, rest], b""
        if rest:
            self._rest[source] = rest
        for line in lines:
            self.say(name, line.decode(errors="replace").rstrip("\r"))

    def say(self, name: str, line: str) -> None:
        """One line. When nobody reads any more, `closed` becomes true."""
        prefix = f"{name:<{self._width}} |"
        if self._coloured:
            colour = COLOURS[self._names.index(name) % len(COLOURS)] if name in self._names else 1
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        if not self.closed:
            try:
                sys.stdout.write(f"{prefix} {line}\n")
                sys.stdout.flush()
            except (BrokenPipeError, OSError):
                self.closed = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
