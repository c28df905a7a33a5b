"""PostgreSQL as our own child process on 127.0.0.1."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from worker.local.binaries import PostgresBinaries, find_postgres
from worker.local.passwords import kept_passwords, write_private
from worker.local.ports import HOST, free_port, remembered_port
from worker.local.processes import (
    LOOK_SECONDS,
    PidFile,
    ProcessError,
    open_log,
    reachable_by_others,
    spawn,
    stop,
    unprivileged_user,
    wait_until_gone,
)
from worker.local.roles import APP_ROLE, DATABASE, OWNER_ROLE, ensure_roles
from worker.local.waiting import finished

SUPERUSER = "postgres"

#: A fast shutdown, then one that needs recovery.
STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))

#: For data that nobody misses after a power cut. Shared memory lies in the data folder, to be deleted with it.
THROWAWAY = {"fsync": "off", "full_page_writes": "off", "dynamic_shared_memory_type": "mmap"}

#: Seconds until a server must answer. Long, because it may have to recover from a crash first.
READY_SECONDS = 60.0

#: How often a start is tried again: the port was taken meanwhile, or a killed server's backends are still ending.
START_TRIES = 20

#: A folder of the system that other users can walk into, for data that can't lie under a closed home.
OPEN_FOLDERS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108  (ours are made without following what lies there)


class EmbeddedPostgres:
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
        self._child: subprocess.Popen[bytes] | None = None
        self.port = port
        self.home = _home(folder.resolve(), self._user is not None)
        self.data = self.home / f"postgres-{self._binaries.major}"
        self.log = self.home / "postgres.log"
        self._pid_file = PidFile(self.home / "postgres.pid")
        self._port_file = self.home / "postgres.port"
        self._passwords = kept_passwords(self.home / "postgres.passwords", (SUPERUSER, OWNER_ROLE, APP_ROLE))

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
        """For everything else."""
        return self.url(APP_ROLE)

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it isn't running."""
        return self._child.pid if self._child and self._child.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the server that was started last ended, negative for a signal; None while it runs."""
        return self._child.poll() if self._child else None

    def start(self) -> None:
        """Start and wait until it takes connections; database, owner and app role are there then."""
        first = self.port is None
        for _ in range(START_TRIES):
            self.launch()
            if self._wait_until_ready():
                finished(ensure_roles(self.superuser_url, self._passwords[OWNER_ROLE], self._passwords[APP_ROLE]))
                return
            if first:
                self.port = None  # maybe somebody took it meanwhile; later starts keep theirs, clients know it
            time.sleep(0.1)
        raise ProcessError(f"PostgreSQL ended with {self.exit_code} when it was started, see {self.log}")

    def _wait_until_ready(self) -> bool:
        """False when it ended instead."""
        deadline = time.monotonic() + READY_SECONDS
        while self.pid is not None:
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise ProcessError(f"PostgreSQL did not start within {READY_SECONDS:.0f} s, see {self.log}")
            time.sleep(LOOK_SECONDS)
        return False

    def launch(self) -> None:
        """Start without waiting: `is_ready` tells when it takes connections."""
        if self.pid is not None:
            return
        self._pid_file.end_leftover(STOP_STEPS)
        if not self.data.exists():
            self._initialise()
        self._clear_stale_lock()
        self.port = self.port or free_port(remembered_port(self._port_file))
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if self._durable else THROWAWAY),
            **self._options,
        }
        with open_log(self.log) as log:
            self._child = spawn(
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
        self._pid_file.write(self._child.pid)
        self._port_file.write_text(str(self.port))

    def is_ready(self) -> bool:
        """Whether the server we started takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def stop(self) -> None:
        """End it in order and reap it. Data stay."""
        if self._child is not None:
            stop(self._child, STOP_STEPS)
            self._pid_file.path.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it as a crash would: no checkpoint, recovery at the next start."""
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
