"""`fermata up`: the whole system on one machine, kept running while it is being worked on.

One thread watches everything: output, signals and ends of children arrive in one `select`. Whatever dies is started
again; whatever way this process ends, its children end too.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from config.settings import PREFIX, SECRET_FILES, Settings
from worker.local.keeping import Kept, Process
from worker.local.output import Output
from worker.local.passwords import write_private
from worker.local.processes import ProcessError, how_it_ended
from worker.local.roles import dsn
from worker.local.system import LocalServers, environment_for, local_servers, migrated

#: A name for its output, and the command.
ProcessLine = tuple[str, Sequence[str]]

#: The Procfile's lines, but `release`. One process a line: scale by lines or machines.
LINES = (
    ("api", "api"),
    ("scheduler", "scheduler"),
    ("worker_generation", "worker generation"),
    ("worker_vocal_conversion", "worker vocal_conversion"),
    ("worker_stem_split", "worker stem_split"),
)

#: Seconds that processes get to end beyond what they may take to drain.
GRACE_SECONDS = 10
TICK_SECONDS = 0.25


def main(settings: Settings, processes: Sequence[ProcessLine] | None = None) -> int:
    """Run servers and processes until SIGINT, SIGTERM or SIGHUP. Returns an exit code.

    `processes` None means all of the Procfile. The servers stop last; further signals hurry the processes.
    """
    lines = default_processes() if processes is None else processes
    try:
        with _interrupting(signal.SIGTERM, signal.SIGHUP), local_servers(settings) as servers:
            migrated(servers)
            with _env_file(servers) as env_file, Supervisor(settings, servers, lines) as supervisor:
                supervisor.announce(env_file)
                supervisor.run()
    except KeyboardInterrupt:
        pass  # asked to stop while starting: all is stopped by now
    except (ProcessError, OSError) as error:
        sys.stderr.write(f"fermata up: {error}\n")
        return 3
    return 0


def default_processes() -> list[ProcessLine]:
    """The Procfile's processes, run by this environment's `fermata`."""
    fermata = str(Path(sys.executable).with_name("fermata"))
    return [(name, [fermata, *arguments.split()]) for name, arguments in LINES]


class Supervisor:
    """Keeps servers and processes running. Use it as a context, in the main thread."""

    def __init__(self, settings: Settings, servers: LocalServers, lines: Sequence[ProcessLine]) -> None:
        self._settings = settings
        self._servers = servers
        self._output = Output([name for name, _ in lines])
        environment = environment_of_children(settings, servers)
        self._processes = [Process(name, argv, {**environment, **role_of(name, servers)}) for name, argv in lines]
        self._kept: list[Kept] = [
            Kept(name, part)
            for name, part in [("postgres", servers.postgres), ("valkey", servers.valkey), *named(self._processes)]
            if part is not None
        ]
        self._selector = selectors.DefaultSelector()
        self._asked_to_stop = 0

    def __enter__(self) -> Supervisor:
        self._wake, wake_writer = socket.socketpair()
        self._wake.setblocking(False)
        wake_writer.setblocking(False)
        self._wake_writer = wake_writer
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._previous = {
            number: signal.signal(number, handler)
            for number, handler in [
                (signal.SIGCHLD, lambda *_: None),  # only to wake the select
                (signal.SIGINT, self._ask_to_stop),
                (signal.SIGTERM, self._ask_to_stop),
                (signal.SIGHUP, self._ask_to_stop),
            ]
        }
        self._previous_wake = signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop_processes()
        finally:
            signal.set_wakeup_fd(self._previous_wake)
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wake.close()
            self._wake_writer.close()

    def announce(self, env_file: Path) -> None:
        """Say where everything is. Passwords stay in the file."""
        host, port = self._settings.api_host, self._settings.api_port
        lines = ["Fermata is running; Ctrl-C stops it."]
        if any(name == "api" for name, _ in named(self._processes)):
            lines.append(f"  API and dashboard  http://{f'[{host}]' if ':' in host else host}:{port}")
        if self._servers.postgres is not None:
            lines.append(
                f"  PostgreSQL         127.0.0.1:{self._servers.postgres.port}, log {self._servers.postgres.log}"
            )
        if self._servers.valkey is not None:
            lines.append(f"  Valkey             127.0.0.1:{self._servers.valkey.port}, log {self._servers.valkey.log}")
        lines.append(f"  In another shell   . {shlex.quote(str(env_file))}   then e.g. fermata queues")
        for line in lines:
            self._output.say("up", line)

    def run(self) -> None:
        """Start the processes and keep everything running until we are asked to stop."""
        while not self._asked_to_stop and not self._output.closed:
            for kept in self._kept:
                self._tend(kept)
            self._look(TICK_SECONDS)

    def _tend(self, kept: Kept) -> None:
        """Notice one that died, start what is due, notice one that is back."""
        now = time.monotonic()
        code = kept.part.exit_code
        if code is not None and kept.due_at is None:
            kept.due_at = now + kept.next_pause(now)
            self._look(0)  # its last words first
            self._output.say("up", f"{kept.name} ended ({how_it_ended(code)}), starting it again in {kept.pause:g} s")
        if kept.is_due(now):
            self._start(kept)
        elif kept.returning and kept.part.is_ready():
            kept.returning = False
            self._output.say("up", f"{kept.name} is back, pid {kept.part.pid}")

    def _start(self, kept: Kept) -> None:
        again = kept.due_at is not None
        kept.due_at = None
        kept.started_at = time.monotonic()
        try:
            kept.part.launch()
        except (OSError, ProcessError) as error:
            kept.due_at = kept.started_at + kept.next_pause(kept.started_at)
            self._output.say("up", f"{kept.name} can't be started ({error}), trying again in {kept.pause:g} s")
            return
        kept.returning = again
        if isinstance(kept.part, Process) and kept.part.output is not None:
            os.set_blocking(kept.part.output.fileno(), False)
            self._selector.register(kept.part.output, selectors.EVENT_READ, kept.name)

    def _look(self, seconds: float) -> None:
        """Wait for output, a signal or the end of a child, and pass output on."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._wake:
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                continue
            chunk = os.read(key.fd, 65_536)
            self._output.take(key.data, key.fd, chunk)
            if not chunk:
                self._selector.unregister(key.fileobj)
                stream = key.fileobj
                assert not isinstance(stream, int)
                stream.close()  # type: ignore[attr-defined]

    def _stop_processes(self) -> None:
        """SIGTERM to all and time to drain; SIGKILL to who is left. Their output still comes through.

        Asked a second time, they are asked again: a worker then hands its jobs back at once. A third time kills.
        """
        running = [process for process in self._processes if process.pid is not None]
        self._asked_to_stop = 1  # however it came to this
        seen, deadline = 0, float("inf")
        while any(process.exit_code is None for process in running):
            if seen < self._asked_to_stop <= 2:
                seconds = self._settings.drain_seconds + GRACE_SECONDS if self._asked_to_stop == 1 else GRACE_SECONDS
                deadline = time.monotonic() + seconds
                self._output.say("up", f"asked to stop, processes get {seconds:g} s; Ctrl-C hurries them")
                for process in running:
                    process.signal(signal.SIGTERM)
            elif time.monotonic() > deadline or self._asked_to_stop > max(seen, 2):
                deadline = float("inf")
                for process in running:
                    if process.exit_code is None:
                        self._output.say("up", f"{process.name} has not ended, killing it")
                        process.signal(signal.SIGKILL)
            seen = self._asked_to_stop
            self._look(TICK_SECONDS)
        self._look(0)
        self._output.say("up", "all processes have ended, stopping the servers")

    def _ask_to_stop(self, *_: object) -> None:
        self._asked_to_stop += 1


def environment_of_children(settings: Settings, servers: LocalServers) -> dict[str, str]:
    """Ours, with every setting that was given, and the way to the servers. Only `migrate` is told the owner's URL."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    told = {
        f"{PREFIX}{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in given.items()
        if value is not None
    }
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **told, **environment_for(servers)}
    for name in (f"{PREFIX}OWNER_DATABASE_URL", *SECRET_FILES):  # what lay in files is told by now
        environment.pop(name, None)
    return environment


def role_of(name: str, servers: LocalServers) -> dict[str, str]:
    """Workers and schedulers of our own servers set no prices: they connect as a role that can't."""
    if servers.postgres is None or not name.startswith(("worker", "scheduler")):
        return {}
    return {f"{PREFIX}DATABASE_URL": dsn(servers.postgres.worker_url)}


def named(processes: Sequence[Process]) -> list[tuple[str, Process]]:
    """Each with its name."""
    return [(process.name, process) for process in processes]


@contextmanager
def _env_file(servers: LocalServers) -> Iterator[Path]:
    """A file to source in another shell, readable by us alone, there for as long as we run."""
    path = servers.data_dir / "env"
    variables = {**environment_for(servers), f"{PREFIX}OWNER_DATABASE_URL": dsn(servers.owner_database_url)}
    write_private(path, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _interrupting(*numbers: signal.Signals) -> Iterator[None]:
    """Let these signals interrupt like Ctrl-C does, so that a half-started system is taken down in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
