"""`fermata up` as a developer meets it: real servers, small processes in the place of ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis

from tests.proc import family_of
from tests.servers import scratch_folder
from tests.waiting import wait_until
from worker.local.processes import is_alive, spawn, stop

ROOT = Path(__file__).parents[2]

#: `up` with two processes: one that just runs, one that ends with code 3 whenever the file `end` is there.
SCRIPT = """
import sys
from config.settings import load
from worker.local.up import main

runs = "import signal, os; print('runs', os.environ['FERMATA_SLOTS'], flush=True); signal.pause()"
ends = '''
import os, pathlib, time
print("waits", flush=True)
file = pathlib.Path(os.environ["FERMATA_DATA_DIR"], "end")
while not file.exists():
    time.sleep(0.02)
file.unlink()
print("the last word", end="", flush=True)
os._exit(3)
'''
stubborn = '''
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stubborn", flush=True)
while True:
    signal.pause()
'''
known = {"runs": runs, "ends": ends, "stubborn": stubborn}
sys.exit(main(load(), processes=[(name, [sys.executable, "-c", known[name]]) for name in sys.argv[1:]]))
"""


class Up:
    """One `up` under trial, and all that it printed."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self._output = folder / f"output-{len(list(folder.glob('output-*')))}"
        with self._output.open("wb") as output:
            self.child = spawn(
                [sys.executable, "-c", SCRIPT, *names],
                on_parent_death=signal.SIGKILL,
                cwd=ROOT,
                env={**os.environ, "FERMATA_DATA_DIR": str(folder), "FERMATA_SLOTS": "7"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed that."""
        wait_until(
            lambda: re.search(pattern, self.said) or self.child.poll() is not None,
            f"{pattern} in up's output",
            seconds=60,
        )
        found = re.search(pattern, self.said)
        assert found, self.said
        return found

    def server_pid(self, name: str) -> int:
        return int((self.folder / name / f"{name}.pid").read_text().split()[0])


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch_folder() as path:
        yield path


@pytest.fixture
def up(folder: Path) -> Iterator[Up]:
    """Given `up`, running with its processes."""
    under_trial = Up(folder, "runs", "ends")
    under_trial.expect(r"runs +\| runs")
    under_trial.expect(r"ends +\| waits")
    yield under_trial
    stop(under_trial.child, [(signal.SIGTERM, 30)])


def variables_of(env_file: Path) -> dict[str, str]:
    """What a shell knows after sourcing the file."""
    answer = subprocess.run(
        ["sh", "-c", f". '{env_file}' && env"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in answer.stdout.splitlines() if line.startswith("FERMATA_"))


async def test_it_says_where_everything_is_and_keeps_passwords_to_itself(up: Up) -> None:
    """When a shell sources the file that is printed, then it reaches both servers; the output tells no password."""
    variables = variables_of(Path(up.expect(r"In another shell +\. (\S+)")[1]))
    connection = await asyncpg.connect(variables["FERMATA_DATABASE_URL"])
    assert await connection.fetchval("SELECT current_user") == "fermata_app"
    assert await connection.fetchval("SELECT count(*) FROM jobs") == 0  # migrated
    await connection.close()
    with redis.Redis.from_url(variables["FERMATA_REDIS_URL"]) as client:
        assert client.ping()
    secrets = [url.split("@")[0].rpartition(":")[2] for url in variables.values() if "@" in url]
    assert len(secrets) == 3
    assert [secret for secret in secrets if secret in up.said] == []
    assert (up.folder / "env").stat().st_mode & 0o777 == 0o600


def test_processes_get_the_settings_that_up_was_given(up: Up) -> None:
    """A setting of ours reaches each of them."""
    up.expect(r"runs +\| runs 7\n")


def test_a_process_that_dies_is_named_and_started_again(up: Up) -> None:
    """When one ends, then its last words, its name and its exit code are shown, and it runs again."""
    (up.folder / "end").touch()
    up.expect(r"ends +\| the last word\n(?s:.*)up +\| ends ended \(exit code 3\), starting it again in 0.5 s")
    up.expect(r"up +\| ends is back, pid \d+")
    up.expect(r"waits\n(?s:.*)waits\n")


async def test_killed_servers_are_back_on_the_same_ports(up: Up) -> None:
    """When both are killed, then who knew their addresses needs no new ones."""
    variables = variables_of(up.folder / "env")
    for name in ("postgres", "valkey"):
        os.kill(up.server_pid(name), signal.SIGKILL)
    up.expect(r"postgres ended \(killed by SIGKILL\)")
    up.expect(r"valkey ended \(killed by SIGKILL\)")
    up.expect(r"postgres is back")
    up.expect(r"valkey is back")
    connection = await asyncpg.connect(variables["FERMATA_DATABASE_URL"])
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
    with redis.Redis.from_url(variables["FERMATA_REDIS_URL"]) as client:
        assert client.ping()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_stops_when_it_is_asked_to(up: Up, number: signal.Signals) -> None:
    """Ctrl-C, a service manager and a closed terminal end it in order: exit code 0, no process left."""
    family = family_of(up.child.pid)
    assert len(family) > 4
    os.kill(up.child.pid, number)
    assert up.child.wait(30) == 0
    assert [pid for pid in family if is_alive(pid)] == []
    assert not (up.folder / "env").exists()
    assert "killing" not in up.said


def test_a_kill_leaves_no_process_and_the_next_up_goes_on(up: Up) -> None:
    """Given `kill -9`, when all children have ended, then the next `up` has the data and the ports."""
    before = variables_of(up.folder / "env")
    family = family_of(up.child.pid)
    up.child.kill()
    up.child.wait()
    wait_until(lambda: not any(map(is_alive, family)), "all children have ended")
    again = Up(up.folder, "runs")
    again.expect(r"runs +\| runs")
    assert variables_of(up.folder / "env") == before
    assert stop(again.child, [(signal.SIGTERM, 30)]) == 0


def test_a_second_up_in_the_same_folder_says_so_and_ends(up: Up) -> None:
    """One line, exit code 3, and the first one is left alone."""
    second = Up(up.folder, "runs")
    assert second.child.wait(30) == 3
    assert re.fullmatch(rf"fermata up: {up.folder} is in use by another run \(pid {up.child.pid}\): .*\n", second.said)
    assert up.child.poll() is None


def test_further_signals_hurry_who_takes_too_long(folder: Path) -> None:
    """A process that ignores SIGTERM is asked again at the second Ctrl-C and killed at the third."""
    up = Up(folder, "stubborn")
    up.expect(r"stubborn \| stubborn")
    family = family_of(up.child.pid)
    os.kill(up.child.pid, signal.SIGINT)
    up.expect(r"asked to stop, processes get 30 s")  # two signals that wait at once would be one
    os.kill(up.child.pid, signal.SIGINT)
    up.expect(r"asked to stop, processes get 10 s")
    assert "killing" not in up.said
    os.kill(up.child.pid, signal.SIGINT)
    assert up.child.wait(30) == 0
    up.expect(r"stubborn has not ended, killing it")
    assert [pid for pid in family if is_alive(pid)] == []
