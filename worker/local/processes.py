"""Child processes that can't outlive us, not even after `kill -9`. Everything is done by pid, nothing by name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1

#: Seconds between two looks at a condition that a process has no way to tell us about.
LOOK_SECONDS = 0.01

#: A server's log is put aside at the next start when it is longer than this.
LOG_BYTES_MAX = 10_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class ProcessError(Exception):
    """A child process could not be started, or did not do what it is for. The message says what to do."""


@dataclass(frozen=True, slots=True)
class SystemUser:
    """Whom a child runs as."""

    uid: int
    gid: int


def unprivileged_user() -> SystemUser | None:
    """`nobody` when we are root, because PostgreSQL refuses root; None when we are an ordinary user already."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return SystemUser(entry.pw_uid, entry.pw_gid)


def reachable_by_others(path: Path) -> bool:
    """Whether a user who is neither owner nor in the group may walk down to `path` and through it."""
    path = path.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in [path, *path.parents])


def spawn(
    argv: Sequence[str | Path],
    *,
    on_parent_death: signal.Signals,
    user: SystemUser | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that gets `on_parent_death` from the kernel when we end, however we end.

    It has a session of its own, so that Ctrl-C reaches us alone and we decide the order of stopping.
    Refused outside the main thread: the kernel sends the signal when the starting *thread* ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ProcessError("children are started from the main thread: the kernel ends them when that thread ends")
    parent = os.getpid()

    def end_with_parent() -> None:
        # Runs after setuid, which would have cleared it.
        if _libc.prctl(PR_SET_PDEATHSIG, on_parent_death, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)  # the parent died between fork and prctl: nobody would tell us any more

    return subprocess.Popen(
        [str(part) for part in argv],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=cwd,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  (two C calls, nothing that takes a lock)
    )


def open_log(path: Path) -> IO[bytes]:
    """A log to append to, readable by us alone: it may quote a statement.

    One that has grown past LOG_BYTES_MAX is put aside first, replacing the one before.
    """
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.old"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def stop(child: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]) -> int:
    """End and reap a child: each step is a signal and how many seconds it gets; SIGKILL after the last one.

    Returns its exit code, negative for a signal. Fine to call on one that has ended.
    """
    for step, seconds in steps:
        if child.poll() is not None:
            break
        child.send_signal(step)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    if child.poll() is None:
        child.kill()
    return child.wait()


def reap(child: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a child that has ended, else None. What is left of its session is ended with it."""
    if child.returncode is None and os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # before poll(), which frees the id for somebody else
        child.poll()
    return child.returncode


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Wait for a process that isn't our child. True when it has ended (a zombie has)."""
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs. A zombie does not."""
    state = _stat(pid)
    return state is not None and state[0] not in {"Z", "X"}


@dataclass(frozen=True, slots=True)
class PidFile:
    """Remembers a child beyond our own death, so that the next run can tell it from a stranger with the same pid."""

    path: Path

    def write(self, pid: int) -> None:
        """Remember `pid` together with when it started."""
        self.path.write_text(f"{pid} {_started(pid)}\n")

    def leftover(self) -> int | None:
        """The pid of a child of an earlier run that is still there, or None."""
        try:
            pid, started = self.path.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if is_alive(int(pid)) and _started(int(pid)) == started else None

    def end_leftover(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """End what an earlier run left behind. It has its death signal already, so mostly this only waits."""
        for step, seconds in [*steps, (signal.SIGKILL, 5.0)]:
            pid = self.leftover()
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, step)
            wait_until_gone(pid, seconds)
        self.path.unlink(missing_ok=True)


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: field 22 of /proc/PID/stat."""
    fields = _stat(pid)
    return fields[19] if fields else None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from field 3 on. The name before it may hold spaces and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
