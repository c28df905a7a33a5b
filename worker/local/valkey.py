"""Valkey (or Redis) as our own child process on 127.0.0.1."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import redis

from worker.local.binaries import find_valkey
from worker.local.passwords import kept_passwords
from worker.local.ports import HOST, free_port, remembered_port
from worker.local.processes import LOOK_SECONDS, PidFile, ProcessError, open_log, spawn, stop

STOP_STEPS = ((signal.SIGTERM, 5.0),)
READY_SECONDS = 30.0
START_TRIES = 5

#: Enough that each test process can have its own.
DATABASES = 64


class EmbeddedValkey:
    """One Valkey whose data, password and log live in `folder`. It ends when we end.

    Started again in the same folder, it has its data, its password and, if nobody took it, its port.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        """`port` None takes a free one. `options` are further lines of the configuration. `binary` None takes what is
        found."""
        self.home = folder.resolve()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._binary = binary or find_valkey()
        self._options = dict(options or {})
        self._child: subprocess.Popen[bytes] | None = None
        self.port = port
        self.log = self.home / "valkey.log"
        self._pid_file = PidFile(self.home / "valkey.pid")
        self._port_file = self.home / "valkey.port"
        self._password = kept_passwords(self.home / "valkey.passwords", ("default",))["default"]

    def url(self, database: int = 0) -> str:
        """Where clients reach it, password included."""
        return f"redis://:{self._password}@{HOST}:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it isn't running."""
        return self._child.pid if self._child and self._child.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the server that was started last ended, negative for a signal; None while it runs."""
        return self._child.poll() if self._child else None

    def start(self) -> None:
        """Start and wait until it answers."""
        first = self.port is None
        for _ in range(START_TRIES):
            self.launch()
            if self._wait_until_ready():
                return
            if first:
                self.port = None  # maybe somebody took it meanwhile; later starts keep theirs, clients know it
            time.sleep(0.1)
        raise ProcessError(f"Valkey ended with {self.exit_code} when it was started, see {self.log}")

    def _wait_until_ready(self) -> bool:
        """False when it ended instead."""
        deadline = time.monotonic() + READY_SECONDS
        while self.pid is not None:
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise ProcessError(f"Valkey did not start within {READY_SECONDS:.0f} s, see {self.log}")
            time.sleep(LOOK_SECONDS)
        return False

    def launch(self) -> None:
        """Start without waiting: `is_ready` tells when it answers."""
        if self.pid is not None:
            return
        self._pid_file.end_leftover(STOP_STEPS)
        self.port = self.port or free_port(remembered_port(self._port_file))
        with open_log(self.log) as log:
            # From stdin, so that the password is in no list of processes.
            self._child = spawn(
                [self._binary, "-"],
                on_parent_death=signal.SIGTERM,
                cwd=self.home,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(self._configuration().encode())
        self._pid_file.write(self._child.pid)
        self._port_file.write_text(str(self.port))

    def _configuration(self) -> str:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "requirepass": self._password,
            "dir": f'"{self.home}"',
            "appendonly": "yes",
            "save": '""',
            # Queued hints are data, not a cache.
            "maxmemory-policy": "noeviction",
            "databases": str(DATABASES),
            **self._options,
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def is_ready(self) -> bool:
        """Whether the server we started answers."""
        try:
            with redis.Redis.from_url(self.url(), socket_timeout=1, socket_connect_timeout=1) as client:
                return bool(client.ping()) and self.pid is not None
        except redis.RedisError:
            return False

    def stop(self) -> None:
        """End it in order and reap it. Data stay."""
        if self._child is not None:
            stop(self._child, STOP_STEPS)
            self._pid_file.path.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop it and delete data, password and log."""
        self.stop()
        shutil.rmtree(self.home)
