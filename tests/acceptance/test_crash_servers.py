"""The crash table, servers: Redis flushed, full and away; PostgreSQL restarted, killed and away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
import redis

from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import Stage, Zygote, opened_stage, until
from tests.servers import TEST_CLOCK, Database, scratch_folder
from worker.local.roles import dsn
from worker.local.system import LocalServers
from worker.local.valkey import EmbeddedValkey

#: Hints are repeated so late that what runs sooner runs for another reason.
NO_REPETITION = {"hint_repeat_seconds": 60}
#: A worker that stands still for a while is neither reaped nor taken for dead.
LONG_LEASE = {"lease_seconds": 30, "renew_seconds": 10}

# --- Redis


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A Redis that the test may stop and fill."""
    with scratch_folder() as folder:
        server = EmbeddedValkey(folder / "valkey")
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def stage_of_valkey(
    database: Database, environment: dict[str, str], tmp_path: Path, zygote: Zygote, valkey: EmbeddedValkey
) -> AsyncIterator[Stage]:
    """A deployment on that Redis."""
    environment = {**environment, "FERMATA_REDIS_URL": valkey.url()}
    async with opened_stage(database, environment, tmp_path, zygote) as opened:
        yield opened
    await assert_books_exact(database)


async def test_a_flushed_redis_loses_no_job(stage: Stage) -> None:
    """Given hints that nobody has taken yet, when Redis is flushed, then they are sent again at once.

    What runs meanwhile settles: Redis is not in its way.
    """
    gate = stage.gate()
    stage.scheduler(**NO_REPETITION, **LONG_LEASE)
    worker = stage.worker(slots=8, **LONG_LEASE)
    running_id = await stage.submit("gated", gate=str(gate))
    await stage.becomes(running_id, "running")
    worker.freeze()
    job_ids = await stage.submit_many(5)
    await stage.until(lambda: stage.value("SELECT count(*) = 5 FROM due WHERE hinted_at IS NOT NULL"), "all hinted")
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        await stage.until(lambda: client.llen("fermata:null") > 0, "hints lie in Redis")
        client.flushdb()
    worker.thaw()
    gate.touch()
    seen = await stage.all_ended([running_id, *job_ids], seconds=20)
    assert [["succeeded"]] * 6 == [job.endings for job in seen]


async def test_a_hint_that_got_lost_is_repeated(stage: Stage) -> None:
    """Given a hint that vanished from a Redis that is otherwise well, then it is sent again after a while."""
    scheduler = stage.scheduler(**LONG_LEASE, hint_repeat_seconds=1)
    worker = stage.worker(**LONG_LEASE)
    await stage.becomes(await stage.submit(), "succeeded")
    worker.freeze()
    job_id = await stage.submit()
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        await stage.until(lambda: client.delete("fermata:null"), "the hint was sent, and lost")
    worker.thaw()
    assert ["succeeded"] == (await stage.becomes(job_id, "succeeded")).endings
    assert scheduler.alive


async def test_submits_work_while_redis_is_away(stage_of_valkey: Stage, valkey: EmbeddedValkey) -> None:
    """Given Redis away, then submits are taken, what runs settles, and the queued jobs run once Redis is back.

    The scheduler asks for it about once a second, however much it is woken.
    """
    stage, gate = stage_of_valkey, stage_of_valkey.gate()
    scheduler = stage.scheduler(**NO_REPETITION)
    stage.worker()
    running_id = await stage.submit("gated", gate=str(gate))
    await stage.becomes(running_id, "running")
    valkey.stop()
    job_ids = await stage.submit_many(5)
    gate.touch()
    await stage.becomes(running_id, "succeeded")
    await stage.until(lambda: scheduler.said.count("Redis is out of reach") >= 3, "the scheduler has asked three times")
    assert ["queued"] * 5 == [(await stage.job(job_id)).state for job_id in job_ids]
    times = [float(second) for second in re.findall(r"Redis is out of reach.*?T\d\d:\d\d:(\d\d\.\d+)Z", scheduler.said)]
    assert len(times) >= 3
    assert all((later - earlier) % 60 > 0.9 for earlier, later in pairwise(times))
    valkey.start()
    assert [["succeeded"]] * 5 == [job.endings for job in await stage.all_ended(job_ids, seconds=20)]


async def test_a_full_redis_drains_and_submits_work(stage_of_valkey: Stage, valkey: EmbeddedValkey) -> None:
    """Given Redis full, then hints in it are taken, submits are taken, and all run once there is room again."""
    stage = stage_of_valkey
    scheduler = stage.scheduler(**NO_REPETITION, **LONG_LEASE)
    worker = stage.worker(slots=8, **LONG_LEASE)
    await stage.becomes(await stage.submit(), "succeeded")
    worker.freeze()
    hinted = await stage.submit_many(4)
    with redis.Redis.from_url(valkey.url()) as client:
        await stage.until(lambda: client.llen("fermata:null") > 0, "hints lie in Redis")
        await stage.until(lambda: stage.value("SELECT count(*) = 4 FROM due WHERE hinted_at IS NOT NULL"), "all hinted")
        client.config_set("maxmemory", 1)
        worker.thaw()
        assert [["succeeded"]] * 4 == [job.endings for job in await stage.all_ended(hinted, seconds=20)]
        later = await stage.submit_many(5)
        await stage.until(lambda: "Redis is out of reach" in scheduler.said, "the scheduler was refused")
        assert ["queued"] * 5 == [(await stage.job(job_id)).state for job_id in later]
        client.config_set("maxmemory", 0)
    assert [["succeeded"]] * 5 == [job.endings for job in await stage.all_ended(later, seconds=20)]


async def test_a_message_that_is_no_hint_stops_nobody(stage: Stage) -> None:
    """Given rubbish in the queue before and between hints, then it is put aside and the jobs run."""
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        for number, rubbish in enumerate([b"\x80\x04no json", b"{}", b'{"actor_name": "fermata.run"}', b"[" * 5000]):
            client.hset("fermata:null.msgs", f"rubbish-{number}", rubbish)
            client.rpush("fermata:null", f"rubbish-{number}")
        client.rpush("fermata:null", "an id without a message")
        stage.scheduler(**NO_REPETITION)
        stage.worker()
        seen = await stage.all_ended(await stage.submit_many(10), seconds=20)
        assert [["succeeded"]] * 10 == [job.endings for job in seen]
        assert 4 == client.llen("fermata:__quarantine__")


# --- PostgreSQL


@pytest.fixture
async def stage_of_postgres(own_servers: LocalServers, tmp_path: Path, zygote: Zygote) -> AsyncIterator[Stage]:
    """A deployment on a PostgreSQL that the test may kill."""
    own = own_servers
    name = own.database_url.rpartition("/")[2]
    database = Database(name, own.database_url, own.owner_database_url)
    async with database.connection(as_owner=True) as connection:
        await connection.execute(TEST_CLOCK)
    environment = {
        "PATH": "/usr/bin:/bin",
        "FERMATA_ENVIRONMENT": "test",
        "FERMATA_DATABASE_URL": dsn(own.database_url),
        "FERMATA_REDIS_URL": own.redis_url,
        "FERMATA_ARTIFACTS_URL": (tmp_path / "artifacts").as_uri(),
    }
    async with opened_stage(database, environment, tmp_path, zygote) as opened:
        yield opened
    await assert_books_exact(database)


@pytest.mark.parametrize("how", ["restarted", "killed"])
async def test_postgresql_comes_back(stage_of_postgres: Stage, own_servers: LocalServers, how: str) -> None:
    """Given sixty jobs under way, when PostgreSQL is restarted or killed, then all succeed and none has failed."""
    stage, postgres = stage_of_postgres, own_servers.postgres
    assert postgres is not None
    stage.scheduler()
    stage.worker(slots=4)
    stage.worker(slots=4)
    job_ids = await stage.submit_many(60)
    await stage.until(lambda: stage.value("SELECT count(*) > 5 FROM jobs WHERE state = 'succeeded'"), "some ended")
    if how == "restarted":
        postgres.restart()
    else:
        postgres.kill()
        postgres.start()
    await stage.reconnect()
    seen = await stage.all_ended(job_ids)
    assert ["succeeded"] * 60 == [job.state for job in seen]
    # An interruption of ours may cost an attempt, never a failure.
    assert {"succeeded", "outage"} >= {ending for job in seen for ending in job.endings}


#: Makes each write of an attempt raise, as a disk or a table would.
RAISING = """
    CREATE FUNCTION turned_away() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'turned away' USING ERRCODE = '{code}'; END $$;
    CREATE TRIGGER turned_away BEFORE INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION turned_away();
"""
MENDED = "DROP TRIGGER turned_away ON attempts"


@pytest.mark.parametrize("code", ["58030", "42501"])
async def test_a_result_waits_for_an_operator(stage: Stage, code: str) -> None:
    """Given a finished run, when PostgreSQL can't write it as it stands, then it says so and keeps the result for then.

    Nothing is wrong with what was asked, so nothing is thrown away, and the lease is kept as while the books are away.
    """
    stage.scheduler()
    worker = stage.worker()
    job_id = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(job_id, "running")
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute(RAISING.format(code=code))
        stage.gate().touch()
        await stage.until(lambda: "settle waits" in worker.said, "it says that its result waits")
        assert code in worker.said
        assert "running" == (await stage.job(job_id)).state
        await owner.execute(MENDED)
    seen = await stage.becomes(job_id, "succeeded")
    assert (["succeeded"], 10, ["take"]) == (seen.endings, seen.charged, seen.outputs)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        (
            "ALTER TABLE attempts ADD CONSTRAINT no_success CHECK (ending <> 'succeeded')",
            "ALTER TABLE attempts DROP CONSTRAINT no_success",
        ),
        (
            "UPDATE lots SET held = 0, available = available + 10",
            "UPDATE lots SET held = 10, available = available - 10",
        ),
    ],
    ids=["the schema", "our own guard"],
)
async def test_a_result_that_is_refused_is_a_failure_of_ours(stage: Stage, broken: str, mended: str) -> None:
    """Given a finished run whose result would make the books wrong, then it is tried again at once, not reaped late."""
    stage.scheduler(**LONG_LEASE)
    worker = stage.worker(**LONG_LEASE, backoff_first_seconds=2, backoff_max_seconds=2)
    job_id = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(job_id, "running")
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute(broken)
        stage.gate().touch()
        await stage.until(lambda: stage.value("SELECT failures > 0 FROM jobs WHERE job_id = $1", job_id), "it failed")
        await owner.execute(mended)
    seen = await stage.becomes(job_id, "succeeded")
    assert (["internal_error", "succeeded"], 10) == (seen.endings, seen.charged)
    assert "settle refused" in worker.said


async def test_connections_that_are_cut_at_random(stage: Stage) -> None:
    """Given sixty jobs, when all connections are cut whenever a few have ended, then all succeed, paid once.

    Some cuts fall between a COMMIT and its answer. Then the row tells what happened.
    """
    stage.scheduler()
    stage.worker(slots=4)
    stage.worker(slots=4)
    job_ids = await stage.submit_many(60)
    cut = 0
    for ended in range(0, 60, 6):
        await stage.until(
            partial(stage.value, "SELECT count(*) >= $1 FROM jobs WHERE ended_at IS NOT NULL", ended),
            f"{ended} jobs ended",
        )
        cut += await stage.cut("application_name LIKE 'fermata-%' AND application_name NOT LIKE 'fermata-client%'")
    seen = await stage.all_ended(job_ids)
    assert cut > 10
    assert {("succeeded", 0, 10)} == {(job.state, job.failures, job.charged) for job in seen}
    assert {"succeeded", "outage"} >= {ending for job in seen for ending in job.endings}


#: Longer than a lease, than what a run may wait, and than any retry of ours.
AWAY_SECONDS = 8


async def test_postgresql_away_for_a_while(stage_of_postgres: Stage, own_servers: LocalServers) -> None:
    """Given jobs that run, when PostgreSQL is away for four leases (two minutes of a deployment with its own times).

    Then nothing starts meanwhile; what ends meanwhile settles afterwards, what the engine wants remembered too; a run
    that goes on beyond `outage_max` is stopped, handed back uncounted and done again; nobody's failure is counted.
    """
    stage, postgres = stage_of_postgres, own_servers.postgres
    assert postgres is not None
    short, long = stage.gate("short"), stage.gate("long")
    patient = {"outage_max_seconds": 60}
    scheduler = stage.scheduler()
    worker = stage.worker("gated", slots=2, **patient)
    impatient = stage.worker("remembering", slots=2, outage_max_seconds=3)
    settles = await stage.submit("gated", gate=str(short), remembers="still there")
    goes_on = await stage.submit("gated", gate=str(long))
    stopped = await stage.submit("remembering", gate=str(stage.gate("never")))
    for job_id in (settles, goes_on, stopped):
        await stage.becomes(job_id, "running")
    queued = await stage.submit("gated", gate=str(long))
    await stage.rows.close()
    postgres.stop()
    away_since = monotonic()
    short.touch()
    await until(lambda: "leases not renewed" in worker.said, "the worker noticed")
    await until(lambda: monotonic() - away_since > AWAY_SECONDS, "the outage is over")
    assert impatient.alive
    assert worker.alive
    assert scheduler.alive
    said_before = worker.said
    assert 2 == said_before.count('"event": "running"')  # nothing started
    postgres.start()
    await stage.reconnect()
    assert ["succeeded"] == (await stage.becomes(settles, "succeeded")).endings
    long.touch()
    assert ["succeeded"] == (await stage.becomes(goes_on, "succeeded")).endings
    assert ["succeeded"] == (await stage.becomes(queued, "succeeded")).endings
    handed_back = await stage.becomes(stopped, "succeeded")
    assert ["outage", "succeeded"] == handed_back.endings
    assert 0 == handed_back.failures


async def test_a_lost_listener_costs_a_tick(stage: Stage) -> None:
    """Given the scheduler's and the worker's LISTEN connections cut, then a job is still picked up by the next tick."""
    stage.scheduler(dispatch_tick_seconds=0.5)
    stage.worker()
    await stage.becomes(await stage.submit(), "succeeded")
    assert await stage.cut("query LIKE 'LISTEN%'") == 2
    await stage.becomes(await stage.submit(), "succeeded", seconds=5)
