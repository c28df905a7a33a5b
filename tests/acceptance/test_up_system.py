"""`fermata up` with everything: servers, scheduler, workers and API."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.acceptance.up import System, forking, sessions_of
from tests.proc import family_of
from tests.waiting import wait_until
from worker.local.processes import is_alive
from worker.local.up import LINES
from worker.local.waiting import finished


def test_a_kill_takes_all_of_it_down(system: System) -> None:
    """When it gets `kill -9`, then servers, scheduler, workers and API end too."""
    family = family_of(system.child.pid)
    assert len(family) > len(LINES) + 2
    system.child.kill()
    system.child.wait()
    wait_until(lambda: not any(map(is_alive, family)), "everything has ended")


def test_a_system_that_is_up_does_what_it_promises(system: System, subtests: pytest.Subtests) -> None:
    """One after the other, since a start takes long; the last one ends it."""
    for promise in (
        each_process_is_connected_as_its_role,
        the_session_of_the_readme_is_true,
        a_killed_worker_is_started_again,
        it_all_ends_in_order,
    ):
        with subtests.test(promise.__name__):
            promise(system)


def it_all_ends_in_order(system: System) -> None:
    """When it gets SIGTERM, then every process ends by itself, and it returns 0."""
    family = family_of(system.child.pid)
    os.kill(system.child.pid, signal.SIGTERM)
    assert system.child.wait(60) == 0
    assert [pid for pid in family if is_alive(pid)] == []
    assert "killing" not in system.output.read_text()


def a_killed_worker_is_started_again(system: System) -> None:
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


def the_session_of_the_readme_is_true(system: System) -> None:
    """Typed into a shell that has read the system's settings, each line ends well and says what it promises."""
    (session,) = sessions_of("README.md")
    with forking(system) as typing:
        said = {" ".join(line.split()[1:3]): typing.typed(line) for line in session}
    assert "succeeded" in said["jobs submit"]
    assert "succeeded" in said["jobs list"]
    assert "commit" in said["accounts journal"]


def each_process_is_connected_as_its_role(system: System) -> None:
    """Workers and the scheduler as the role that sets no price, the API as the one that migrates nothing: every
    connection that each process holds, by its own end of it."""
    home = next(path.parent for path in system.data.rglob("postgres.passwords"))
    password = json.loads((home / "postgres.passwords").read_text())["postgres"]
    port = re.search(r"PostgreSQL +127\.0\.0\.1:(\d+)", system.output.read_text())
    assert port is not None
    connected = finished(_roles_by_port(f"postgresql://postgres:{password}@127.0.0.1:{port[1]}/fermata"))
    seen: dict[str, set[str]] = {}
    for pid in family_of(system.child.pid):
        with suppress(FileNotFoundError):  # PostgreSQL's own come and go
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            verb = next((word for word in words if word in ("api", "scheduler", "worker")), None)
            if verb is not None:
                ours = {end.laddr.port for end in psutil.Process(pid).net_connections("tcp") if end.laddr}
                seen.setdefault(verb, set()).update(connected[here] for here in ours & connected.keys())
    assert {"api": {"fermata_app"}, "scheduler": {"fermata_worker"}, "worker": {"fermata_worker"}} == seen


async def _roles_by_port(url: str) -> dict[int, str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT client_port, usename FROM pg_stat_activity WHERE client_port > 0 AND pid <> pg_backend_pid()"
        )
    finally:
        await connection.close()
    return {row["client_port"]: row["usename"] for row in rows}
