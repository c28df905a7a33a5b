"""A running `fermata up`, and a shell beside it into which the sessions of our pages are typed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from tests.servers import scratch_folder
from tests.waiting import wait_until
from worker.local.binaries import find_postgres
from worker.local.ports import free_port
from worker.local.processes import spawn, stop
from worker.local.up import LINES

ROOT = Path(__file__).parents[2]
SESSION = re.compile(r"<!-- session: run by a test -->\n```\n(.*?)```", re.DOTALL)


def sessions_of(page: str) -> list[list[str]]:
    """The sessions of one of our pages, each as its commands, one a line."""
    found = SESSION.findall((ROOT / page).read_text())
    return [[line for line in session.splitlines() if line] for session in found]


@dataclass
class System:
    """A running `fermata up`."""

    child: subprocess.Popen[bytes]
    output: Path
    api: str
    #: Where `fermata` is found first: the installed script, or one that forks (`forking`).
    scripts: Path = Path(sys.executable).parent

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.output.parent

    def answers(self) -> bool:
        """Whether the API takes requests."""
        try:
            return httpx2.get(f"{self.api}/livez", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def typed(self, line: str, **variables: str) -> str:
        """What a line says on stdout, typed into a shell that has read the system's settings. It must end well."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")}
        folders = [self.scripts, Path(sys.executable).parent, find_postgres().path("psql").parent, os.environ["PATH"]]
        done = subprocess.run(
            ["bash", "-uc", f". {shlex.quote(str(self.data / 'env'))} && {line}"],
            env={**mine, "PATH": ":".join(map(str, folders)), **variables},
            cwd=self.data,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert 0 == done.returncode, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def running_system() -> Iterator[System]:
    """A system that is up: its API answers and each worker has said that it started."""
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


@contextmanager
def forking(system: System) -> Iterator[System]:
    """The same system, for many lines: their `fermata` is forked from a process that has imported us (`typist`)."""
    (scripts := system.data / "scripts").mkdir()
    child = spawn(
        [sys.executable, "-m", "tests.acceptance.typist", scripts],
        on_parent_death=signal.SIGKILL,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert b"ready\n" == child.stdout.readline()
        yield replace(system, scripts=scripts)
    finally:
        stop(child, [(signal.SIGTERM, 5)])
