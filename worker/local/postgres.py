"""PostgreSQL as our own child process on 127.0.0.1."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from worker.local.binaries import PostgresBinaries, find_postgres
from worker.local.passwords import kept_passwords, write_private
from worker.local.ports import HOST
from worker.local.processes import (
    ProcessError,
    open_log,
    reachable_by_others,
    spawn,
    unprivileged_user,
    wait_until_gone,
)
from worker.local.roles import APP_ROLE, DATABASE, OWNER_ROLE, ROLES, WORKER_ROLE, ensure_roles
from worker.local.server import EmbeddedServer
from worker.local.waiting import finished

SUPERUSER = "postgres"

#: A fast shutdown, then one that needs recovery.
STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))

#: For data that nobody misses after a power cut. Shared memory lies in the data folder, to be deleted with it.
THROWAWAY = {"fsync": "off", "full_page_writes": "off", "dynamic_shared_memory_type": "mmap"}

#: A folder of the system that other users can walk into, for data that can't lie under a closed home.
OPEN_FOLDERS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108  (ours are made without following what lies there)


class EmbeddedPostgres(EmbeddedServer):
    """One PostgreSQL whose data, passwords and log live in `folder`. It ends when we end.

    Started again in the same folder, it has its data, its passwords and, if nobody took it, its port. As root it
    runs as `nobody`; the data then lie elsewhere if `nobody` can't walk to `folder` (`home` tells where).
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        durable: bool = True,
        binaries: PostgresBinaries | None = None,
    ) -> None:
        """`port` None takes a free one, `binaries` None the ones that are found; `options` are further server settings.

        `durable=False` never waits for disks: a kill of the server loses nothing, a power cut may lose everything.
        """
        self._user = unprivileged_user()
        self._binaries = binaries or find_postgres(others_must_reach=self._user is not None)
        self._options = dict(options or {})
        self._durable = durable
        super().__init__("postgres", _home(folder.resolve(), self._user is not None), port, STOP_STEPS)
        self.data = self.home / f"postgres-{self._binaries.major}"
        self._passwords = kept_passwords(self.home / "postgres.passwords", (SUPERUSER, *ROLES))

    def url(self, role: str, database: str = DATABASE) -> str:
        """Where `role` reaches `database`, password included."""
        return f"postgresql+asyncpg://{role}:{self._passwords[role]}@{HOST}:{self.port}/{database}"

    @property
    def superuser_url(self) -> str:
        """May do everything. Only for making databases and roles."""
        return self.url(SUPERUSER, "postgres")

    @property
    def owner_url(self) -> str:
        """For migrations."""
        return self.url(OWNER_ROLE)

    @property
    def app_url(self) -> str:
        """For the command and the API."""
        return self.url(APP_ROLE)

    @property
    def worker_url(self) -> str:
        """For workers and schedulers."""
        return self.url(WORKER_ROLE)

    def start(self) -> None:
        """Start and wait until it takes connections; database and roles are there then."""
        super().start()
        finished(ensure_roles(self.superuser_url, {role: self._passwords[role] for role in ROLES}))

    def is_ready(self) -> bool:
        """Whether the server that we started takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _spawn(self) -> subprocess.Popen[bytes]:
        if not self.data.exists():
            self._initialise()
        self._clear_stale_lock()
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Passwords are 24 random bytes: a slow hash protects nothing, and costs each connection 16 ms of Python.
            **({"scram_iterations": "1"} if self._binaries.major >= 16 else {}),
            **({} if self._durable else THROWAWAY),
            **self._options,
        }
        with open_log(self.log) as log:
            return spawn(
                [
                    self._binaries.path("postgres"),
                    "-D",
                    self.data,
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                on_parent_death=signal.SIGINT,
                user=self._user,
                env=self._environment(),
                cwd=self.home,
                stdout=log,
                stderr=log,
            )

    def _environment(self) -> dict[str, str]:
        """Nothing of ours: PG* variables and secrets don't reach the server."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def _clear_stale_lock(self) -> None:
        """PostgreSQL refuses to start when the pid in `postmaster.pid` lives, also if it is a stranger's by now."""
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split()[0])
            is_ours = str(self.data).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            return  # no lock, or nobody has that pid: PostgreSQL sees to the rest
        if not is_ours:
            lock.unlink()
        elif not wait_until_gone(pid, STOP_STEPS[0][1]):
            raise ProcessError(f"another PostgreSQL (pid {pid}) is running in {self.data}: stop it first")

    def _initialise(self) -> None:
        """Make the data folder under another name first, so that a half-made one is never taken for a whole one."""
        draft = self.data.with_name(f"{self.data.name}.new")
        password_file = self.home / f".password.{secrets.token_hex(4)}"  # /dev/stdin can't be read after setuid
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        write_private(password_file, self._passwords[SUPERUSER])
        if self._user:
            for path in (draft, password_file):
                os.chown(path, self._user.uid, self._user.gid)
        try:
            child = spawn(
                [
                    self._binaries.path("initdb"),
                    f"--pgdata={draft}",
                    f"--username={SUPERUSER}",
                    "--auth=scram-sha-256",
                    f"--pwfile={password_file}",
                    "--encoding=UTF8",
                    "--locale=C",
                    *([] if self._durable else ["--no-sync"]),
                ],
                on_parent_death=signal.SIGKILL,
                user=self._user,
                env=self._environment(),
                cwd=self.home,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = child.communicate()
        finally:
            password_file.unlink()
        if child.returncode != 0:
            raise ProcessError(f"PostgreSQL's data folder could not be made: {output.decode(errors='replace')}")
        draft.rename(self.data)


def _home(folder: Path, nobody_must_reach: bool) -> Path:
    """Where a server for `folder` keeps its things: there, or in a folder of the system if that is behind a closed one.

    The other place is named after `folder`, so that the next start finds it again; a link leads people there.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o711 if nobody_must_reach else 0o700)
    if not nobody_must_reach or reachable_by_others(folder):
        return folder
    name = f"fermata-{sha256(bytes(folder)).hexdigest()[:12]}"
    for parent in OPEN_FOLDERS:
        if parent.is_dir() and reachable_by_others(parent):
            home = parent / name
            home.mkdir(mode=0o711, exist_ok=True)
            if home.is_symlink() or home.stat().st_uid != os.geteuid():
                raise ProcessError(f"{home} belongs to somebody else: remove it")
            home.chmod(0o711)
            link = folder / "elsewhere"
            link.unlink(missing_ok=True)
            link.symlink_to(home)
            return home
    raise ProcessError(
        f"no folder found that `nobody` can walk into: tried {folder}, {', '.join(map(str, OPEN_FOLDERS))}"
    )
