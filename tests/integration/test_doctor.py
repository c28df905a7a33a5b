"""`fermata doctor`: each rule over made-up facts, then the whole of it on real servers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings, load
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.doctor import (
    Check,
    ServerSeen,
    Status,
    artifact_checks,
    clock_distance,
    diagnosis_of,
    redis_checks,
    schema_checks,
    server_checks,
    settings_checks,
)
from worker.local.waiting import finished
from worker.queue.inspection import Epoch, RedisServer
from worker.store.doctoring import SchemaFacts, ServerFacts

SETTINGS = load({}, environment="development")

GOOD_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "superuser_reserved_connections": "3",
    "server_encoding": "UTF8",
    "default_transaction_read_only": "off",
}
SERVER = ServerFacts(
    version="18.6",
    version_number=180_006,
    role="fermata_app",
    superuser=False,
    in_recovery=False,
    clock=datetime(2026, 12, 1, tzinfo=UTC),
    connections=10,
    migrated=True,
    settings=GOOD_SETTINGS,
)
SCHEMA = SchemaFacts(
    revision="0001",
    head="0001",
    clock_body=" SELECT\n clock_timestamp() ",
    owner=False,
    default_rows=False,
    scheduler_seconds=1.0,
    lease_over_seconds=0.0,
    ends_by_over_seconds=0.0,
    unserved=(),
    hosts=("here",),
    workers=1,
    slots=2,
)
REDIS = RedisServer("valkey", "9.1.0", "master", 10, 0, "noeviction", appendonly=True)


def unwell(checks: Iterable[Check]) -> dict[str, Status]:
    """What is not as it should be. Each such check says what to do."""
    found = [check for check in checks if check.status is not Status.OK]
    assert all(check.todo for check in found)
    return {check.name: check.status for check in found}


def of_server(clock_seconds: float = 0.0, **facts: Any) -> dict[str, Status]:
    return unwell(server_checks(ServerSeen(replace(SERVER, **facts), clock_seconds), SETTINGS))


def of_schema(settings: Settings = SETTINGS, **facts: Any) -> dict[str, Status]:
    return unwell(schema_checks(replace(SCHEMA, **facts), settings))


def test_a_healthy_deployment_is_well() -> None:
    """No rule complains without a reason."""
    assert ({}, {}, {}) == (of_server(), of_schema(), unwell(redis_checks(REDIS, "1.5")))


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"version": "14.9", "version_number": 140_009}, {"PostgreSQL": Status.BAD}),
        ({"in_recovery": True}, {"takes writes": Status.BAD}),
        ({"settings": {**GOOD_SETTINGS, "fsync": "off"}}, {"durable": Status.BAD}),
        ({"settings": {**GOOD_SETTINGS, "synchronous_commit": "off"}}, {"durable": Status.BAD}),
        ({"settings": {**GOOD_SETTINGS, "full_page_writes": "off"}}, {"durable": Status.BAD}),
        ({"settings": {**GOOD_SETTINGS, "server_encoding": "SQL_ASCII"}}, {"encoding": Status.BAD}),
        ({"settings": {**GOOD_SETTINGS, "default_transaction_read_only": "on"}}, {"takes writes": Status.BAD}),
        ({"superuser": True, "role": "postgres"}, {"role": Status.WARN}),
        ({"clock_seconds": 1.0}, {}),
        ({"clock_seconds": 1.1}, {"clock": Status.WARN}),
        ({"connections": 88}, {}),
        ({"connections": 89}, {"connections": Status.WARN}),
        (
            {"settings": {**GOOD_SETTINGS, "fsync": "off"}, "in_recovery": True},
            {"takes writes": Status.BAD, "durable": Status.BAD},
        ),
    ],
)
def test_a_server_is_judged(facts: dict[str, Any], found: dict[str, Status]) -> None:
    """What can lose a commit is bad, what only hinders is a warning."""
    assert found == of_server(**facts)


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"head": "0002"}, {"schema": Status.BAD}),
        ({"clock_body": "SELECT clock_timestamp() + '1h'"}, {"fermata_now()": Status.BAD}),
        ({"clock_body": None}, {"fermata_now()": Status.BAD}),
        ({"owner": True}, {"rights": Status.WARN}),
        ({"default_rows": True}, {"partitions": Status.WARN}),
        ({"scheduler_seconds": None}, {"scheduler": Status.WARN}),
        ({"scheduler_seconds": 40.0}, {}),
        ({"scheduler_seconds": 41.0}, {"scheduler": Status.WARN}),
        ({"workers": 0, "slots": 0, "hosts": ()}, {"workers": Status.WARN}),
        ({"unserved": ("stem_split",)}, {"workers": Status.WARN}),
        ({"lease_over_seconds": 91.0}, {"overdue": Status.BAD}),
        ({"ends_by_over_seconds": 91.0}, {"overdue": Status.BAD}),
        ({"ends_by_over_seconds": 90.0}, {}),
        ({"deaf": 1, "dead_deliveries": 2}, {"webhooks": Status.WARN}),
    ],
)
def test_a_schema_is_judged(facts: dict[str, Any], found: dict[str, Status]) -> None:
    """Tables that are not ours are bad, and so is a hold that nobody ends."""
    assert found == of_schema(**facts)


def test_databases_of_tests_may_be_what_they_are() -> None:
    """Their clock and their missing durability are warnings there, and nowhere else."""
    testing = load({}, environment="test")
    assert of_schema(testing, clock_body="SELECT now()") == {"fermata_now()": Status.WARN}
    seen = ServerSeen(replace(SERVER, settings={**GOOD_SETTINGS, "fsync": "off"}), 0.0)
    assert unwell(server_checks(seen, testing)) == {"durable": Status.WARN}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"policy": "allkeys-lru"}, {"Redis": Status.BAD}),
        ({"appendonly": False}, {"Redis": Status.WARN}),
        ({"role": "slave"}, {"Redis": Status.BAD}),
        ({"version": "6.2.0"}, {"Redis": Status.BAD}),
    ],
)
def test_a_redis_is_judged(change: dict[str, Any], found: dict[str, Status]) -> None:
    """What can lose a whole queue is bad; without persistence hints are only sent again."""
    assert found == {
        check.name: check.status
        for check in redis_checks(replace(REDIS, **change), None)
        if check.status is not Status.OK
    }


@pytest.mark.parametrize(
    ("owner", "ours", "status", "said"),
    [
        (None, "1.5", Status.OK, "nobody's just now; this is deployment 1.5"),
        ("1.5", "1.5", Status.OK, "f:__epoch__ is of deployment 1.5, this one"),
        ("1.6", "1.5", Status.BAD, "f:__epoch__ is of deployment 1.6; this is 1.5"),
    ],
)
def test_a_namespace_is_one_deployments(owner: str | None, ours: str, status: Status, said: str) -> None:
    """Two of them would take each other's hints. It says whose it is, which this one is, and how long to wait."""
    epoch = Epoch("f:__epoch__", owner, 42.0) if owner else None
    found = {check.name: check for check in redis_checks(replace(REDIS, epoch=epoch), ours)}["namespace"]
    assert (status, said) == (found.status, found.what)
    if status is Status.BAD:
        assert "FERMATA_NAMESPACE" in str(found.todo)
        assert "wait 42 s" in str(found.todo)
    assert "namespace" not in {check.name for check in redis_checks(REDIS, None)}


def test_unwise_settings_are_warned_of() -> None:
    """A Redis for everybody, and an owner who runs the app."""
    url = "postgresql://fermata:secret@db/fermata"
    unwise = load({}, redis_url="redis://queue.example:6379/0", database_url=url, owner_database_url=url)
    assert unwell(settings_checks(unwise)) == {"Redis password": Status.WARN, "roles": Status.WARN}
    assert unwell(settings_checks(load({}, redis_url="redis://127.0.0.1:6379/0"))) == {}


async def test_a_store_that_can_not_be_written_is_bad(tmp_path: Path) -> None:
    """And one that other machines need is a warning to share it."""
    (file := tmp_path / "file").touch()
    assert unwell(await artifact_checks(load({}, artifacts_url=f"{file}/x"), [])) == {"artifacts": Status.BAD}
    assert unwell(await artifact_checks(load({}), [])) == {"artifacts": Status.BAD}
    good = load({}, artifacts_url=str(tmp_path / "store"))
    shared = unwell(await artifact_checks(good, ["elsewhere"]))
    assert shared["artifacts shared"] is Status.WARN


@pytest.mark.parametrize(
    ("database", "before", "after", "apart"),
    [(100.0, 99.0, 101.0, 0.0), (98.5, 99.0, 101.0, 0.5), (104.0, 99.0, 101.0, 3.0)],
)
def test_clocks_differ_by_what_the_round_trip_does_not_explain(
    database: float, before: float, after: float, apart: float
) -> None:
    """A slow answer is no wrong clock."""
    assert apart == clock_distance(datetime.fromtimestamp(database, UTC), before, after)


def test_only_what_is_bad_or_away_makes_it_unwell() -> None:
    """Warnings are for people to weigh."""
    checks = [Check("a", Status.OK, ""), Check("b", Status.WARN, "", "do")]
    assert diagnosis_of(checks).ok
    assert not diagnosis_of([*checks, Check("c", Status.BAD, "", "do")]).ok
    assert diagnosis_of([Check("d", Status.AWAY, "", "do")]).away


# On real servers


def found_by(answer: Any) -> dict[str, tuple[str, str]]:
    """What each check found."""
    return {check["name"]: (check["status"], check["what"]) for check in answer.document["checks"]}


def test_doctor_looks_at_everything(fermata: Fermata) -> None:
    """On servers of tests it ends with 0: nothing is worse than a warning."""
    answer = fermata("doctor", "--json")
    assert {"ok", "checks"} == answer.document.keys()
    assert {"name", "status", "what", "todo"} == answer.document["checks"][0].keys()
    assert (0, True) == (answer.code, answer.document["ok"]), answer.out
    found = found_by(answer)
    assert found.keys() >= {
        *("Python", "packages", "hot path", "settings", "PostgreSQL", "takes writes", "durable", "role", "clock"),
        *("connections", "schema", "fermata_now()", "rights", "partitions", "scheduler", "workers", "overdue", "Redis"),
        "artifacts",
    }
    assert found["fermata_now()"] == ("warn", "replaced by a clock of tests")
    assert found["role"] == ("ok", "fermata_app")


def test_doctor_is_readable(fermata: Fermata) -> None:
    """A table: check, status, what was found, what to do."""
    lines = fermata("doctor").out.splitlines()
    assert ["check", "status", "found", "to", "do"] == lines[0].split()
    assert any("start `fermata scheduler`" in line for line in lines)


def test_a_clock_of_tests_is_bad_outside_tests(fermata: Fermata, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is no."""
    monkeypatch.setenv("FERMATA_ENVIRONMENT", "development")
    answer = fermata("doctor", "--json")
    assert (1, False) == (answer.code, answer.document["ok"])
    assert found_by(answer)["fermata_now()"][0] == "bad"


def test_doctor_finds_what_nobody_works_on(fermata: Fermata) -> None:
    """A job without a worker, and one past its time without a reaper."""
    fermata.account("ada", 100)
    fermata.ok("jobs", "submit", "generation", "--account", "ada", "--param", "prompt=x", "--param", "seconds=20")
    assert "nobody serves generation" in found_by(fermata("doctor", "--json"))["workers"][1]
    finished(_overdue(fermata.database))
    answer = fermata("doctor", "--json")
    assert (1, "bad") == (answer.code, found_by(answer)["overdue"][0])


async def _overdue(database: Database) -> None:
    async with database.connection(as_owner=True) as connection:
        await connection.execute("UPDATE due SET ends_by = fermata_now() - interval '2 minutes'")


def test_the_owner_is_warned(fermata: Fermata, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs as the owner could rewrite the journal."""
    monkeypatch.setenv("FERMATA_DATABASE_URL", environment["FERMATA_OWNER_DATABASE_URL"])
    found = found_by(fermata("doctor", "--json"))
    assert ("warn", "warn") == (found["rights"][0], found["roles"][0])


@pytest.mark.parametrize(
    ("name", "value", "away"),
    [
        ("FERMATA_DATABASE_URL", "postgresql://a:CANARY@127.0.0.1:1/x", "PostgreSQL"),
        ("FERMATA_REDIS_URL", "redis://:CANARY@127.0.0.1:1/0", "Redis"),
    ],
)
def test_a_server_that_is_away_is_a_finding(
    fermata: Fermata, monkeypatch: pytest.MonkeyPatch, name: str, value: str, away: str
) -> None:
    """The rest is looked at all the same; exit code 3."""
    monkeypatch.setenv(name, value)
    answer = fermata("doctor", "--json")
    found = found_by(answer)
    assert (3, "away") == (answer.code, found[away][0])
    assert found["artifacts"][0] == "ok"
    assert "CANARY" not in answer.out + answer.err


def test_a_database_without_tables_is_bad(
    fermata: Fermata, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to run."""
    empty = environment["FERMATA_OWNER_DATABASE_URL"].rpartition("/")[0] + "/postgres"
    monkeypatch.setenv("FERMATA_DATABASE_URL", empty)
    answer = fermata("doctor", "--json")
    assert (1, ("bad", "this database has no tables of ours")) == (answer.code, found_by(answer)["schema"])


def test_settings_that_can_not_be_are_listed(fermata: Fermata, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one, on its own line; exit code 2, as for every verb."""
    monkeypatch.setenv("FERMATA_LEASE_SECNDS", "9")
    monkeypatch.setenv("FERMATA_SLOTS", "0")
    answer = fermata("doctor", "--json")
    assert (2, False) == (answer.code, answer.document["ok"])
    assert [("settings", "bad")] * 2 == [(check["name"], check["status"]) for check in answer.document["checks"]]
