"""`fermata up` with everything: servers, scheduler, workers and API."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.acceptance.up import System, sessions_of
from tests.proc import family_of
from tests.waiting import wait_until
from worker.local.processes import is_alive
from worker.local.up import LINES


def test_all_of_it_ends_in_order(system: System) -> None:
    """When it gets SIGTERM, then every process ends by itself, and it returns 0."""
    family = family_of(system.child.pid)
    os.kill(system.child.pid, signal.SIGTERM)
    assert system.child.wait(60) == 0
    assert [pid for pid in family if is_alive(pid)] == []
    assert "killing" not in system.output.read_text()


def test_a_kill_takes_all_of_it_down(system: System) -> None:
    """When it gets `kill -9`, then servers, scheduler, workers and API end too."""
    family = family_of(system.child.pid)
    assert len(family) > len(LINES) + 2
    system.child.kill()
    system.child.wait()
    wait_until(lambda: not any(map(is_alive, family)), "everything has ended")


def test_a_killed_worker_is_started_again(system: System) -> None:
    """When a worker gets `kill -9`, then the system has as many processes as before, and its API still answers."""
    victim = next(
        pid for pid in family_of(system.child.pid) if b"stem_split" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: (
            "worker_stem_split ended (killed by SIGKILL)" in system.output.read_text()
            and system.output.read_text().count("worker started") == 4
        ),
        "the worker has started again",
        seconds=60,
    )
    assert system.answers()


def test_the_session_of_the_readme_is_true(system: System) -> None:
    """Typed into a shell that has read the system's settings, each line ends well and says what it promises."""
    (session,) = sessions_of("README.md")
    said = {" ".join(line.split()[1:3]): system.typed(line) for line in session}
    assert "succeeded" in said["jobs submit"]
    assert "succeeded" in said["jobs list"]
    assert "commit" in said["accounts journal"]
