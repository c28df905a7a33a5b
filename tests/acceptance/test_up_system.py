"""`fermata up` with everything: servers, scheduler, workers and API."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.proc import family_of
from tests.servers import scratch_folder
from tests.waiting import wait_until
from worker.local.ports import free_port
from worker.local.processes import is_alive, spawn, stop
from worker.local.up import LINES

ROOT = Path(__file__).parents[2]
SESSION = re.compile(r"<!-- session: run by a test -->\n```\n(.*?)```", re.DOTALL)


@dataclass
class System:
    """A running `fermata up`."""

    child: subprocess.Popen[bytes]
    output: Path
    api: str

    def answers(self) -> bool:
        """Whether the API takes requests."""
        try:
            return httpx2.get(f"{self.api}/livez", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture
def system() -> Iterator[System]:
    """Given a system that is up: its API answers and each worker has said that it started."""
    with scratch_folder() as folder:
        port = free_port()
        output = folder / "output"
        with output.open("wb") as file:
            child = spawn(
                [Path(sys.executable).with_name("fermata"), "up"],
                on_parent_death=signal.SIGKILL,
                env={**os.environ, "FERMATA_DATA_DIR": str(folder), "FERMATA_API_PORT": str(port)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        system = System(child, output, f"http://127.0.0.1:{port}")
        workers = sum(name.startswith("worker_") for name, _ in LINES)
        try:
            wait_until(
                lambda: (
                    child.poll() is not None
                    or (output.read_text().count("worker started") == workers and system.answers())
                ),
                "the whole system is up",
                seconds=90,
            )
            assert child.poll() is None, output.read_text()
            yield system
        finally:
            stop(child, [(signal.SIGTERM, 40)])


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


def session() -> list[str]:
    """The commands of the README's first look, one a line."""
    (found,) = SESSION.findall((ROOT / "README.md").read_text())
    return [line for line in found.splitlines() if line]


def test_the_session_of_the_readme_is_true(system: System) -> None:
    """Typed into a shell that has read the system's settings, each line ends well and says what it promises."""
    data, said = system.output.parent, dict[str, str]()
    for line in session():
        done = subprocess.run(
            ["bash", "-c", f". {shlex.quote(str(data / 'env'))} && {line}"],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")},
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            cwd=data,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert 0 == done.returncode, f"{line}\n{done.stdout}{done.stderr}"
        said[" ".join(line.split()[1:3])] = done.stdout
    assert "succeeded" in said["jobs submit"]
    assert "succeeded" in said["jobs list"]
    assert "commit" in said["accounts journal"]
