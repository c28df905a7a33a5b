"""Valkey (or Redis) as our own child process on 127.0.0.1."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import redis

from worker.local.binaries import find_valkey
from worker.local.passwords import kept_passwords
from worker.local.ports import HOST
from worker.local.processes import open_log, spawn
from worker.local.server import EmbeddedServer

STOP_STEPS = ((signal.SIGTERM, 5.0),)

#: Enough that each test process can have its own.
DATABASES = 64


class EmbeddedValkey(EmbeddedServer):
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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__("valkey", folder.resolve(), port, STOP_STEPS)
        self._binary = binary or find_valkey()
        self._options = dict(options or {})
        self._password = kept_passwords(self.home / "valkey.passwords", ("default",))["default"]

    def url(self, database: int = 0) -> str:
        """Where clients reach it, password included."""
        return f"redis://:{self._password}@{HOST}:{self.port}/{database}"

    def is_ready(self) -> bool:
        """Whether the server that we started answers."""
        try:
            with redis.Redis.from_url(self.url(), socket_timeout=1, socket_connect_timeout=1) as client:
                return bool(client.ping()) and self.pid is not None
        except redis.RedisError:
            return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open_log(self.log) as log:
            # From stdin, so that the password is in no list of processes.
            child = spawn(
                [self._binary, "-"],
                on_parent_death=signal.SIGTERM,
                cwd=self.home,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
            stdin.write(self._configuration().encode())
        return child

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
