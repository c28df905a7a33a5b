"""What `up` keeps running: processes and servers, and how long to wait before one that died is started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from worker.local.processes import reap, spawn
from worker.local.server import EmbeddedServer

#: Seconds before what died is started again, by how often in a row it did.
BACKOFF_SECONDS = (0.5, 1, 2, 5, 10, 30)
#: Who ran that long has not died "in a row".
STEADY_SECONDS = 30


class Process:
    """One line of the Procfile, as a child."""

    def __init__(self, name: str, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self._argv = argv
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it. When we are killed it is killed: it can't drain then, its servers are ending too."""
        self._child = spawn(
            self._argv,
            on_parent_death=signal.SIGKILL,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> IO[bytes] | None:
        """What it writes."""
        return self._child.stdout if self._child else None

    @property
    def pid(self) -> int | None:
        """Its id, or None when it isn't running."""
        return self._child.pid if self._child and self.exit_code is None else None

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return reap(self._child) if self._child else None

    def is_ready(self) -> bool:
        """Whether it runs: a process tells by its own log when it is more than that."""
        return self.pid is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.pid is not None:
            os.kill(self.pid, number)


@dataclass
class Kept:
    """What we keep running, and when it is to be started next."""

    name: str
    part: Process | EmbeddedServer
    due_at: float | None = None
    started_at: float = 0.0
    deaths: int = 0
    pause: float = 0.0
    returning: bool = False

    def is_due(self, now: float) -> bool:
        """Whether to start it now: its pause is over, or it was never started."""
        if self.due_at is not None:
            return now >= self.due_at
        return self.part.pid is None and self.part.exit_code is None

    def next_pause(self, now: float) -> float:
        """Seconds to wait after the death that was just seen."""
        self.deaths = 0 if now - self.started_at > STEADY_SECONDS else self.deaths
        self.pause = BACKOFF_SECONDS[min(self.deaths, len(BACKOFF_SECONDS) - 1)]
        self.deaths += 1
        return self.pause
