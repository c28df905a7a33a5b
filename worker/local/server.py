"""What our own servers have in common: a folder, a port that stays, and an end with ours."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from worker.local.ports import free_port, remembered_port
from worker.local.processes import LOOK_SECONDS, PidFile, ProcessError, stop

#: Seconds until a server must answer. Long, because it may have to recover from a crash first.
READY_SECONDS = 60.0

#: How often a start is tried again: the port was taken meanwhile, or a killed server's children are still ending.
START_TRIES = 20


class EmbeddedServer(ABC):
    """One server as our child. Its data, passwords, log and port are kept in `home`."""

    def __init__(
        self, name: str, home: Path, port: int | None, stop_steps: Sequence[tuple[signal.Signals, float]]
    ) -> None:
        """`name` begins its files' names, and tells it in messages."""
        self.home = home
        self.port = port
        self.log = home / f"{name}.log"
        self._name = name
        self._stop_steps = stop_steps
        self._child: subprocess.Popen[bytes] | None = None
        self._pid_file = PidFile(home / f"{name}.pid")
        self._port_file = home / f"{name}.port"

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the server that we started takes connections."""

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the program on `self.port`. An earlier run's has ended by then."""

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it isn't running."""
        return self._child.pid if self._child and self._child.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the server that was started last ended, negative for a signal; None while it runs."""
        return self._child.poll() if self._child else None

    def start(self) -> None:
        """Start and wait until it takes connections."""
        first = self.port is None
        for _ in range(START_TRIES):
            self.launch()
            if self._wait_until_ready():
                return
            if first:
                self.port = None  # maybe somebody took it meanwhile; later starts keep theirs, clients know it
            time.sleep(0.1)
        raise ProcessError(f"{self._name} ended with {self.exit_code} when it was started, see {self.log}")

    def launch(self) -> None:
        """Start without waiting: `is_ready` tells when it takes connections."""
        if self.pid is not None:
            return
        self._pid_file.end_leftover(self._stop_steps)
        self.port = self.port or free_port(remembered_port(self._port_file))
        self._child = self._spawn()
        self._pid_file.write(self._child.pid)
        self._port_file.write_text(str(self.port))

    def stop(self) -> None:
        """End it in order and reap it. Data stay."""
        if self._child is not None:
            stop(self._child, self._stop_steps)
            self._pid_file.path.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it as a crash would: the next start recovers."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop it and delete data, passwords and log."""
        self.stop()
        shutil.rmtree(self.home)

    def _wait_until_ready(self) -> bool:
        """False when it ended instead."""
        deadline = time.monotonic() + READY_SECONDS
        while self.pid is not None:
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise ProcessError(f"{self._name} did not start within {READY_SECONDS:.0f} s, see {self.log}")
            time.sleep(LOOK_SECONDS)
        return False
