"""The runbook on a running system: every line of its sessions works as it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.up import System, forking, running_system, sessions_of
from tests.waiting import wait_until
from worker.local.postgres import SUPERUSER

PREPARED = (
    "fermata accounts create ada",
    "fermata accounts subscribe ada creator",
    "fermata accounts topup ada --pack large",
    "fermata prices show | sed 's/^rate = 1$/rate = 3/' > wrong.toml",
)
SONG = "fermata jobs submit generation --account ada --json --param prompt=lofi"
OPS = {"FERMATA_ACTOR": "kim"}


@pytest.fixture
def system() -> Iterator[System]:
    """Given a system that is up, and a shell in which a command costs no second."""
    with running_system() as running, forking(running) as typing:
        yield typing


def document(system: System, line: str) -> Any:
    return json.loads(system.typed(line, **OPS))


def in_hand(system: System) -> dict[str, str]:
    """What the runbook's reader has: a job that was charged, one under a wrong book, one that runs, and so on."""
    for line in PREPARED:
        system.typed(line, **OPS)
    good = document(system, "fermata prices history --json")["books"][0]["book"]
    job = document(system, f"{SONG} --param seconds_max=10 --wait")["id"]
    wrong = document(system, "fermata prices apply wrong.toml --note slip --force 'a slip' --json")["book"]
    system.typed(f"{SONG} --param seconds_max=10 --wait", **OPS)
    document(system, "fermata webhooks create https://endpoint.example/fermata --event ended --json")
    superuser = json.loads((system.data / "postgres/postgres.passwords").read_text())[SUPERUSER]
    passwords = system.data / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"{postgres_of(system)}:*:{SUPERUSER}:{superuser}\n")
    return {
        **OPS,
        "JOB": job,
        "GOOD": str(good),
        "BOOK": str(wrong),
        "WEBHOOK": document(system, "fermata webhooks list --json")["webhooks"][0]["webhook"],
        "WORKER": document(system, "fermata queues --json")["workers"][0]["worker"],
        "PASSWORDS": str(system.data / "postgres/postgres.passwords"),
        "SUPERUSER_URL": f"postgresql://{SUPERUSER}@{postgres_of(system)}",
        "PGPASSFILE": str(passwords),
    }


def postgres_of(system: System) -> str:
    """Where its server listens."""
    return system.typed("echo ${FERMATA_DATABASE_URL#*@}").strip().partition("/")[0]


def running_job(system: System) -> str:
    """Four songs of five minutes that have begun: long enough to be typed about."""
    job = str(document(system, f"{SONG} --param seconds_max=300 --param variants=4")["id"])
    wait_until(lambda: document(system, f"fermata jobs show {job} --json")["state"] == "running", "it runs")
    return job


def test_every_session_of_the_runbook_is_true(system: System) -> None:
    """Typed in their order, all lines end well; jobs end, credits come back and books are exact as it promises."""
    variables, said = in_hand(system), dict[str, str]()
    for session in sessions_of("docs/RUNBOOK.md"):
        if any("$RUNNING" in line for line in session):
            variables["RUNNING"] = running_job(system)
        for line in session:
            said[line.partition("--")[0].strip()] = system.typed(line, **variables)
    assert "failed" in said["fermata jobs receipt $RUNNING"]
    assert (
        "the books are exact" in said["FERMATA_DATABASE_URL=${FERMATA_DATABASE_URL%/*}/fermata_restored fermata audit"]
    )
    assert (system.data / "fermata.dump").stat().st_size > 10_000
    assert "ticket-17" in said["fermata jobs compensate $JOB"]
    assert document(system, "fermata audit --json")["ok"]
