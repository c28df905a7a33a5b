"""`fermata doctor`: is everything here fit for other people's money? Looks at each part, changes nothing.

Looking is apart from judging: the rules below are plain functions over what was found, and each that does not hold
says what to do.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import parse_qsl, urlsplit

from config.settings import Settings
from worker.artifacts.places import store_at
from worker.artifacts.store import ArtifactError, ArtifactStore, StoreUnavailable
from worker.compiled import build_here
from worker.queue.connection import QueueUnavailable
from worker.queue.inspection import Epoch, QueueInspector, RedisServer, problems_of
from worker.store.database import make_engine
from worker.store.doctoring import Doctoring, SchemaFacts, ServerFacts
from worker.store.errors import StoreError
from worker.store.leases import CLOCK_BODY
from worker.store.reads_jobs import ALIVE_SECONDS

POSTGRES_MIN = 150_000

#: Clocks that differ by more make logs hard to read. Credits are judged by the database's clock alone.
CLOCK_SECONDS_MAX = 1.0

#: A lease or a job that is over for longer has no reaper: twice what the slowest promise allows.
OVERDUE_SECONDS_MAX = 90.0

#: A scheduler leaves a sign every renewal; this many missed ones are a scheduler that is gone.
_SIGNS_MISSED_MAX = 4

#: Room below which a store of audio is nearly full.
FREE_BYTES_MIN = 2 * 1024**3

#: One pool may overflow by two, and listens on one more.
_BEYOND_POOL = 3

_PACKAGES = ("fermata-worker", "dramatiq", "redis", "SQLAlchemy", "asyncpg", "pydantic")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost", "", None})


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    AWAY = "away"  # could not be looked at: a server can't be reached


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `todo` says what to do about it, where there is something to do."""

    name: str
    status: Status
    what: str
    todo: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks. `ok`: none of them is bad."""

    ok: bool
    checks: tuple[Check, ...]

    @property
    def away(self) -> bool:
        """Whether a server could not be reached."""
        return any(check.status is Status.AWAY for check in self.checks)


def diagnosis_of(checks: Sequence[Check]) -> Diagnosis:
    """The verdict on all checks."""
    return Diagnosis(all(check.status in (Status.OK, Status.WARN) for check in checks), tuple(checks))


async def examine(settings: Settings) -> Diagnosis:
    """Look at everything that these settings name. A part that can't be reached is a finding, not an error."""
    postgres, redis = await asyncio.gather(_look_at_postgres(settings), _look_at_redis(settings))
    hosts = next((found.hosts for found in postgres if isinstance(found, SchemaFacts)), ())
    checks: list[Check] = [*python_checks(), *settings_checks(settings)]
    for found in postgres:
        match found:
            case Check():
                checks.append(found)
            case ServerSeen():
                checks += server_checks(found, settings)
            case SchemaFacts():
                checks += schema_checks(found, settings)
    deployment = next((found.facts.deployment for found in postgres if isinstance(found, ServerSeen)), None)
    checks += [redis] if isinstance(redis, Check) else redis_checks(redis, deployment)
    checks += await artifact_checks(settings, hosts)
    return diagnosis_of(checks)


# Looking


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """The server's facts, and how far its clock was from ours at least."""

    facts: ServerFacts
    clock_seconds: float


async def _look_at_postgres(settings: Settings) -> list[Check | ServerSeen | SchemaFacts]:
    if settings.database_url is None:
        return [Check("PostgreSQL", Status.AWAY, "FERMATA_DATABASE_URL is not given", _START)]
    engine = make_engine(settings, name="fermata-doctor", pool_size=1)
    found: list[Check | ServerSeen | SchemaFacts] = []
    doctoring = Doctoring(engine)
    try:
        await doctoring.server()  # the first one also connects, which would blur the clocks
        before = time.time()
        facts = await doctoring.server()
        found.append(ServerSeen(facts, clock_distance(facts.clock, before, time.time())))
        if not facts.migrated:
            return [*found, Check("schema", Status.BAD, "this database has no tables of ours", "run `fermata migrate`")]
        return [*found, await doctoring.schema(ALIVE_SECONDS)]
    except StoreError as error:
        return [*found, Check("PostgreSQL", Status.AWAY, str(error), "see FERMATA_DATABASE_URL, or start the server")]
    finally:
        await engine.dispose()


async def _look_at_redis(settings: Settings) -> RedisServer | Check:
    if settings.redis_url is None:
        return Check("Redis", Status.AWAY, "FERMATA_REDIS_URL is not given", _START)
    inspector = QueueInspector(settings.redis_url.get_secret_value(), settings.namespace)
    try:
        return await inspector.server()
    except QueueUnavailable as error:
        return Check(
            "Redis", Status.AWAY, str(error), "see FERMATA_REDIS_URL, or start the server; jobs wait meanwhile"
        )
    finally:
        await inspector.close()


_START = "set it, or start `fermata up` in this folder"


def clock_distance(database: datetime, before: float, after: float) -> float:
    """Seconds that two clocks are apart at least: the database's was read at some moment between the two others."""
    seconds = database.timestamp()
    return max(before - seconds, seconds - after, 0.0)


# Judging


def python_checks() -> Iterator[Check]:
    """What runs here."""
    yield Check("Python", Status.OK, f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}")
    yield Check("packages", Status.OK, ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    build = build_here()
    yield Check("hot path", Status.OK, f"{build} ({len(build.modules)} modules)" if build.modules else str(build))


def settings_checks(settings: Settings) -> Iterator[Check]:
    """Settings that were read can still be unwise."""
    yield Check("settings", Status.OK, f"{settings.environment}; none is unknown, none contradicts another")
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if url and not urlsplit(url).password and urlsplit(url).hostname not in _LOOPBACK:
        yield Check("Redis password", Status.WARN, "FERMATA_REDIS_URL has no password", "let Redis ask for one")
    if settings.database_url and settings.owner_database_url == settings.database_url:
        yield Check(
            *("roles", Status.WARN, "FERMATA_OWNER_DATABASE_URL is the app's own"),
            "run `fermata migrate --roles`, so that not even a bug can rewrite the journal",
        )


def server_checks(seen: ServerSeen, settings: Settings) -> Iterator[Check]:
    """Whether a commit survives a power cut, and whether we fit in."""
    facts, values = seen.facts, seen.facts.settings
    old = facts.version_number < POSTGRES_MIN
    yield _verdict("PostgreSQL", not old, facts.version, "15 or newer is needed")
    yield _verdict(
        "takes writes",
        not facts.in_recovery and values.get("default_transaction_read_only") == "off",
        "no: it is a standby or read-only" if facts.in_recovery else "yes",
        "name the primary in FERMATA_DATABASE_URL",
    )
    losing = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if values.get(name) == "off"]
    yield _verdict(
        "durable",
        not losing,
        f"{', '.join(losing)} off: a power cut can lose what was committed"
        if losing
        else "commits survive a power cut",
        f"switch {', '.join(losing)} on",
        # Databases of tests are thrown away.
        otherwise=Status.WARN if settings.environment == "test" else Status.BAD,
    )
    yield _verdict("encoding", values.get("server_encoding") == "UTF8", values.get("server_encoding", "?"), "use UTF8")
    yield _verdict(
        "role",
        not facts.superuser,
        f"{facts.role}{', a superuser' if facts.superuser else ''}",
        "connect as fermata_app: `fermata migrate --roles` makes it",
        otherwise=Status.WARN,
    )
    yield _verdict(
        "clock",
        seen.clock_seconds <= CLOCK_SECONDS_MAX,
        f"{seen.clock_seconds:.3f} s or more from this machine's" if seen.clock_seconds else "as this machine's",
        "let both keep time by NTP. Credits and leases go by the database's clock alone",
        otherwise=Status.WARN,
    )
    room = int(values.get("max_connections", 0)) - int(values.get("superuser_reserved_connections", 0))
    one = settings.pool_size + _BEYOND_POOL
    yield _verdict(
        "connections",
        facts.connections + one <= room,
        f"{facts.connections} used of {room}; one process of ours takes up to {one}",
        "raise max_connections or lower FERMATA_POOL_SIZE",
        otherwise=Status.WARN,
    )


def schema_checks(facts: SchemaFacts, settings: Settings) -> Iterator[Check]:
    """Whether the tables are ours, and whether anybody works on them."""
    yield _verdict(
        "schema",
        facts.revision == facts.head,
        f"revision {facts.revision}" + ("" if facts.revision == facts.head else f", and {facts.head} is the newest"),
        "run `fermata migrate`",
    )
    ours = re.sub(r"\s+", " ", facts.clock_body or "").strip() == CLOCK_BODY
    yield _verdict(
        "fermata_now()",
        ours,
        "the database's clock" if ours else "replaced by a clock of tests",
        "never use this database for real credits",
        otherwise=Status.WARN if settings.environment == "test" else Status.BAD,
    )
    yield _verdict(
        "rights",
        not facts.owner,
        "our role owns the tables" if facts.owner else "our role can't change tables or the journal",
        "run `fermata migrate --roles` and connect as fermata_app",
        otherwise=Status.WARN,
    )
    yield _verdict(
        "partitions",
        not facts.default_rows,
        "entries lie in a default partition" if facts.default_rows else "every month has its own",
        "see that a scheduler runs: its prune duty makes them ahead; then move these, docs/RUNBOOK.md: Entries "
        "without a month",
        otherwise=Status.WARN,
    )
    yield _scheduler_check(facts, settings)
    yield _verdict(
        "workers",
        not facts.unserved and facts.workers > 0,
        f"{facts.workers} alive on {len(facts.hosts)} machine(s), {facts.slots} slots"
        + (f"; nobody serves {', '.join(facts.unserved)}" if facts.unserved else ""),
        f"start `fermata worker{''.join(f' {queue}' for queue in facts.unserved)}`",
        otherwise=Status.WARN,
    )
    yield _verdict(
        "tiers",
        not facts.unmade,
        f"jobs wait, and no living worker makes {', '.join(_tier_named(tier) for tier in facts.unmade)}"
        if facts.unmade
        else "every queued job's is made by a living worker",
        "see `tier not started` in the workers' logs; give one what it lacks (docs/ENGINES.md), or cancel the jobs",
        otherwise=Status.WARN,
    )
    yield _verdict(
        "webhooks",
        not facts.dead_deliveries,
        f"{facts.dead_deliveries:,} events were not taken by {facts.deaf:,} endpoint(s), and are given up"
        if facts.dead_deliveries
        else "no event was given up",
        "see `fermata webhooks list`; once the endpoint is mended, `fermata webhooks redeliver WEBHOOK`",
        otherwise=Status.WARN,
    )
    worst = max(facts.lease_over_seconds, facts.ends_by_over_seconds)
    yield _verdict(
        "overdue",
        worst <= OVERDUE_SECONDS_MAX,
        f"a lease or job is over for {worst:,.0f} s" if worst > OVERDUE_SECONDS_MAX else "no lease and no job is",
        "see that a scheduler runs: its reap duty ends them and frees what they hold",
    )


def redis_checks(server: RedisServer, deployment: str | None) -> Iterator[Check]:
    """Whether hints arrive, and whether they are ours: `deployment`, where it is known. None of it concerns credits."""
    problems = problems_of(server)
    yield Check("Redis", Status.OK, f"{server.product} {server.version}")
    for problem in problems:
        what, _, todo = problem.partition(": ")
        # Without persistence hints are only sent again; with another policy whole queues vanish.
        status = Status.WARN if what.startswith("appendonly") else Status.BAD
        yield Check("Redis", status, what, todo or None)
    if deployment is not None:
        yield _namespace_check(server.epoch, deployment)


def _namespace_check(epoch: Epoch | None, deployment: str) -> Check:
    if epoch is None:
        return Check("namespace", Status.OK, f"nobody's just now; this is deployment {deployment}")
    return _verdict(
        "namespace",
        epoch.deployment == deployment,
        f"{epoch.key} is of deployment {epoch.deployment}"
        + (", this one" if epoch.deployment == deployment else f"; this is {deployment}"),
        f"give one of them another FERMATA_NAMESPACE or Redis; if the other one is gone, wait {epoch.seconds:.0f} s",
    )


async def artifact_checks(settings: Settings, hosts: Sequence[str]) -> list[Check]:
    """Whether audio can be written, read and deleted, and whether every machine sees the same."""
    if settings.artifacts_url is None:
        return [Check("artifacts", Status.BAD, "FERMATA_ARTIFACTS_URL is not given", _START)]
    try:
        store = store_at(settings)
    except ArtifactError as error:
        return [Check("artifacts", Status.BAD, str(error), "correct it")]
    try:
        await store.prepare()
    except StoreUnavailable as error:
        return [Check("artifacts", Status.AWAY, str(error), "mend what it says, and look again")]
    except ArtifactError as error:
        return [Check("artifacts", Status.BAD, str(error), "name a place that this user may write")]
    finally:
        await store.close()
    return [
        Check("artifacts", Status.OK, f"{store.described}: can be written, read and deleted"),
        _room_check(store),
        *_sharing_checks(store, settings.artifacts_url, hosts),
    ]


def _room_check(store: ArtifactStore) -> Check:
    free = shutil.disk_usage(store.work).free
    return _verdict(
        "artifacts' room",
        free >= FREE_BYTES_MIN,
        f"{free / 1e9:.1f} GB free in {store.work}",
        "make room, or the next outputs can't be kept",
        otherwise=Status.WARN,
    )


def _sharing_checks(store: ArtifactStore, url: str, hosts: Sequence[str]) -> Iterator[Check]:
    others = [host for host in hosts if host != socket.gethostname()[:40] and host != socket.gethostname()]
    if others and store.work_is_shared:
        yield Check(
            *("artifacts shared", Status.WARN, f"workers run on {', '.join(others)} too"),
            "make sure that this folder is the same storage there",
        )
    endpoint = urlsplit(dict(parse_qsl(urlsplit(url).query)).get("endpoint", ""))
    if endpoint.scheme == "http" and endpoint.hostname not in _LOOPBACK:
        yield Check("artifacts' wire", Status.WARN, "audio and requests travel unencrypted", "give an https endpoint")


def _tier_named(tier: str) -> str:
    return f"{tier[:-1]}'s default tier" if tier.endswith("/") else tier


def _scheduler_check(facts: SchemaFacts, settings: Settings) -> Check:
    seconds = facts.scheduler_seconds
    alive = seconds is not None and seconds <= _SIGNS_MISSED_MAX * settings.renew_seconds
    what = "no sign of one, ever" if seconds is None else f"last sign {max(seconds, 0.0):.0f} s ago"
    todo = "start `fermata scheduler`: without it no job is sent to a worker"
    return _verdict("scheduler", alive, what, todo, otherwise=Status.WARN)


def _verdict(name: str, holds: bool, what: str, todo: str, *, otherwise: Status = Status.BAD) -> Check:
    return Check(name, Status.OK, what) if holds else Check(name, otherwise, what, todo)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
