"""What ops type: queues, pauses, limits, audit and migrations, on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.integration.books import opened
from tests.integration.cli_support import Fermata, run_command
from worker.cli.migrating import url_of
from worker.local.roles import APP_ROLE, ROLES, dsn
from worker.local.system import LocalServers
from worker.local.waiting import finished
from worker.store.reads_account_lists import AccountListReads
from worker.store.reads_figures import BooksFigures, FigureReads

SONG = ("generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")


def test_queues_show_depth_workers_and_pauses(fermata: Fermata) -> None:
    """The document of `queues`: every queue with jobs, workers or a control."""
    fermata.account("ada", 100)
    fermata.ok("jobs", "submit", *SONG)
    fermata.ok("limit", "stem_split", "3")
    shown = fermata.ok("queues")
    assert {"queues", "workers", "verdict", "warnings", "pauses", "credits", "pace"} == shown.keys()
    by_name = {queue["queue"]: queue for queue in shown["queues"]}
    keys = ("queue", "ready", "later", "blocked", "parked", "running", "oldest_seconds", "workers", "slots", "paused")
    assert by_name["generation"].keys() >= {*keys, "pause_reason", "running_max"}
    assert (1, 0, 0) == tuple(by_name["generation"][name] for name in ("ready", "running", "workers"))
    assert by_name["stem_split"]["running_max"] == 3
    assert "no worker" in fermata("queues").out


def test_a_paused_queue_says_so_and_why(fermata: Fermata) -> None:
    """Its jobs wait for the pause; resumed they wait for a worker again."""
    fermata.account("ada", 100)
    job = fermata.ok("jobs", "submit", *SONG)["id"]
    paused = fermata.ok("pause", "generation", "--reason", "provider is down")
    assert paused == {"scope": "queue", "name": "generation", "paused": True, "changed": True, "freed": 0}
    assert fermata.ok("jobs", "show", job)["waiting_for"] == "paused"
    assert "paused: provider is down" in fermata("queues").out
    assert fermata.ok("resume", "generation")["changed"] is True
    assert fermata.ok("jobs", "show", job)["waiting_for"] == "no_worker"
    assert fermata.ok("resume", "generation")["changed"] is False


def test_who_paused_what_and_why_is_told(fermata: Fermata) -> None:
    """By `queues` of all pauses in force, by `jobs show` of those that hold this job; not once it is resumed."""
    for account in ("ada", "bob"):
        fermata.account(account, 100)
    job = fermata.ok("jobs", "submit", *SONG)["id"]
    fermata.ok("pause", "--kind", "generation", "--reason", "provider is down", "--as", "kim")
    fermata.ok("pause", "--account", "ada", "--reason", "asked for", "--as", "olga")
    fermata.ok("pause", "--account", "bob", "--reason", "fraud?", "--as", "olga")
    shown, queues = fermata("jobs", "show", job).out, fermata("queues").out
    for line in ("kind generation: provider is down (kim, ", "account ada: asked for (olga, "):
        assert line in shown
        assert line in queues
    assert "account bob: fraud? (olga, " in queues
    assert "bob" not in shown
    told = [(one["scope"], one["name"], one["reason"], one["actor"]) for one in fermata.ok("queues")["pauses"]]
    assert [
        ("kind", "generation", "provider is down", "kim"),
        ("account", "bob", "fraud?", "olga"),  # the latest pause first
        ("account", "ada", "asked for", "olga"),
    ] == told
    assert ["kind", "account"] == [one["scope"] for one in fermata.ok("jobs", "show", job)["pauses"]]
    fermata.ok("resume", "--account", "ada")
    fermata.ok("resume", "--kind", "generation")
    assert "paused" not in fermata("jobs", "show", job).out
    assert ["bob"] == [one["name"] for one in fermata.ok("queues")["pauses"]]


@pytest.mark.parametrize("scope", [("--kind", "generation"), ("--account", "ada")])
def test_a_kind_or_an_account_can_be_paused(fermata: Fermata, scope: tuple[str, str]) -> None:
    """Not only whole queues."""
    fermata.account("ada", 100)
    job = fermata.ok("jobs", "submit", *SONG)["id"]
    fermata.ok("pause", *scope)
    assert fermata.ok("jobs", "show", job)["waiting_for"] == "paused"
    fermata.ok("resume", *scope)
    assert fermata.ok("jobs", "show", job)["waiting_for"] == "no_worker"


def test_the_hour_is_counted_by_the_one_look_there_is(fermata: Fermata) -> None:
    """A job that ended half an hour ago stands in the verdict and in the pace; one of two hours ago does not."""
    fermata.account("ada", 100)
    asyncio.run(_ended_before(fermata, (timedelta(hours=2), timedelta(minutes=30), timedelta(minutes=4))))
    assert "2 done in the last hour." in fermata.ok("queues")["verdict"]


async def _ended_before(fermata: Fermata, ages: Sequence[timedelta]) -> None:
    """A job for each of these ages, the oldest first, that was done so long ago."""
    async with opened(fermata.database) as store:
        for age, later in zip(ages, (*ages[1:], timedelta()), strict=True):
            await store.settle("ada", await store.running("ada"))
            await fermata.database.advance(age - later)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("pause", "generatoin"), "queue: no queue 'generatoin'; there are "),
        (("resume", "generatoin"), "queue: no queue 'generatoin'; there are "),
        (("pause", "--kind", "song"), "kind: no kind 'song'; there are "),
        (("pause", "--account", "nobody"), "account: no account 'nobody'"),
        (("pause",), "queue: give a queue, --kind or --account, and only one of them"),
        (("pause", "generation", "--kind", "generation"), "queue: give a queue, --kind or --account"),
        (("limit", "generation", "0"), "running_max: must be a whole number from 1 to 1,000,000"),
        (("limit", "generatoin", "1"), "queue: no queue 'generatoin'"),
    ],
)
def test_what_nobody_knows_is_not_switched(fermata: Fermata, arguments: tuple[str, ...], line: str) -> None:
    """Whoever mistypes a name must not believe that something was paused."""
    with fermata.nothing_written():
        answer = fermata(*arguments)
    assert answer.code == 2
    assert answer.complaint.startswith(f"fermata: {line}")


def test_an_audit_says_yes_or_names_what_is_wrong(fermata: Fermata) -> None:
    """0 while every credit is where it should be, 1 after one was moved behind the books' back."""
    fermata.account("ada", 100)
    assert fermata.ok("audit") == {"ok": True, "violations": [], "lots": 1, "entries": 1, "since": None}
    finished(_move_a_credit(fermata))
    answer = fermata("audit", "--json")
    assert (1, False) == (answer.code, answer.document["ok"])
    assert {"rule", "what"} == answer.document["violations"][0].keys()
    assert "violation(s): 1 lots" in fermata("audit", "--as", "kim").out
    # The very same run is the last one for the dashboard and for metrics.
    told, by = asyncio.run(_last_audit(fermata))
    assert told.audit_violations
    assert (told.audit_violations, "kim") == (by["count"], by["by"])


async def _last_audit(fermata: Fermata) -> tuple[BooksFigures, Mapping[str, Any]]:
    async with opened(fermata.database) as store:
        noted = await AccountListReads(store.engine).noted("audit")
        assert noted is not None
        return await FigureReads(store.engine).figures(), noted.body


async def _move_a_credit(fermata: Fermata) -> None:
    async with fermata.database.connection(as_owner=True) as connection:
        await connection.execute("UPDATE lots SET available = available - 1, spent = spent + 1")


def test_migrating_again_changes_nothing(fermata: Fermata) -> None:
    """It says which revision there is."""
    with fermata.nothing_written():
        assert fermata.ok("migrate").keys() == {"revision", "roles"}


def test_roles_are_made_with_passwords_that_only_a_file_knows(own_servers: LocalServers, tmp_path: Path) -> None:
    """`migrate --roles` on a bare server: the roles, a database, every table; passwords are never shown."""
    assert own_servers.postgres is not None
    database, file = "fermata_other", tmp_path / "roles.json"
    environment = {"PATH": "/usr/bin:/bin", "FERMATA_OWNER_DATABASE_URL": own_servers.postgres.superuser_url}
    arguments = ("migrate", "--roles", "--passwords", str(file), "--database", database, "--json")
    first, second = run_command(environment, *arguments), run_command(environment, *arguments)
    assert (0, 0) == (first.code, second.code), first.err + second.err
    assert first.document == second.document
    passwords = json.loads(file.read_text())
    assert set(ROLES) == passwords.keys()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(secret in first.out + first.err for secret in passwords.values())
    app_url = url_of(own_servers.postgres.superuser_url, APP_ROLE, passwords[APP_ROLE], database)
    assert finished(_count_books(app_url)) == 1


async def _count_books(url: str) -> int:
    connection = await asyncpg.connect(dsn(url))
    try:
        return int(await connection.fetchval("SELECT count(*) FROM price_books"))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("{}", 0o644, "must be a file that we alone can read (0600)"),
        ("not json", 0o600, "is not a file of ours"),
        ("[1]", 0o600, "is not a file of ours"),
    ],
)
def test_a_file_of_passwords_that_is_not_ours_is_not_used(
    fermata: Fermata, tmp_path: Path, content: str, mode: int, problem: str
) -> None:
    """Neither one that others can read nor one that holds something else; it stays as it is."""
    (file := tmp_path / "roles.json").write_text(content)
    file.chmod(mode)
    answer = fermata("migrate", "--roles", "--passwords", str(file))
    assert (2, content) == (answer.code, file.read_text())
    assert problem in answer.complaint


def test_a_url_keeps_its_place_and_options() -> None:
    """Only role, password and database change; a password may hold any sign."""
    url = "postgresql+asyncpg://postgres:p%40w@db.example:6432/postgres?ssl=require"
    assert url_of(url, "app", "a/b@c", "fermata") == (
        "postgresql+asyncpg://app:a%2Fb%40c@db.example:6432/fermata?ssl=require"
    )
