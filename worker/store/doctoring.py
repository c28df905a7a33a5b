"""What `doctor` asks a database: how the server is set up, whether the schema is ours, what lies around too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading
from worker.store.dispatching import deployment_of


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server and our role on it. Needs no table of ours."""

    version: str
    version_number: int  # 180001
    role: str
    superuser: bool
    in_recovery: bool
    clock: datetime  # the machine's own, not ours
    connections: int  # of this database, by whomever
    migrated: bool
    settings: Mapping[str, str]
    #: As the mark in Redis has it.
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """Our tables and what stands in them."""

    revision: str
    head: str  # the newest revision that this version of ours knows
    clock_body: str | None  # of fermata_now()
    owner: bool  # whether our role owns the tables
    default_rows: bool  # whether entries found no partition of their month
    scheduler_seconds: float | None  # since a scheduler left a sign; None: never
    #: For how long the most overdue lease has been over, and the most overdue job past its `ends_by`; 0: none is.
    lease_over_seconds: float
    ends_by_over_seconds: float
    #: Unfinished jobs whose queue no living worker serves.
    unserved: tuple[str, ...]
    #: Machines, processes and slots of living workers.
    hosts: tuple[str, ...]
    workers: int
    slots: int
    #: Endpoints with events that they did not take and that are not told again by themselves, and how many events.
    deaf: int = 0
    dead_deliveries: int = 0
    #: Tiers of queued jobs that workers serve the queue of and none makes: "kind/tier", "kind/" for the default one.
    unmade: tuple[str, ...] = ()


class Doctoring:
    """Reads only."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def server(self) -> ServerFacts:
        """How the server is set up. Raises `LedgerUnavailable`."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_SERVER)).one()
            settings = (await connection.execute(_SETTINGS)).all()
            deployment = await deployment_of(connection)
        return ServerFacts(
            version=row.version,
            version_number=row.version_number,
            role=row.role,
            superuser=row.superuser,
            in_recovery=row.in_recovery,
            clock=row.clock,
            connections=row.connections,
            migrated=row.migrated,
            settings={setting.name: setting.setting for setting in settings},
            deployment=deployment,
        )

    async def schema(self, alive_seconds: float) -> SchemaFacts:
        """What stands in our tables. Only for a database that is migrated."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_SCHEMA)).one()
            work = (await connection.execute(_WORK, {"alive": alive_seconds})).one()
        return SchemaFacts(
            revision=row.revision,
            head=known_head(),
            clock_body=row.clock_body,
            owner=row.owner,
            default_rows=row.default_rows,
            scheduler_seconds=row.scheduler_seconds,
            lease_over_seconds=work.lease_over,
            ends_by_over_seconds=work.ends_by_over,
            unserved=tuple(work.unserved),
            unmade=tuple(work.unmade),
            hosts=tuple(work.hosts),
            workers=work.workers,
            slots=work.slots,
            deaf=row.deaf,
            dead_deliveries=row.dead,
        )


async def read_revision(engine: AsyncEngine) -> str | None:
    """The migration that the database is at; None where there is none."""
    async with reading(engine) as connection:
        if await connection.scalar(_IS_MIGRATED) is None:
            return None
        return str(await connection.scalar(_REVISION))


@cache
def known_head() -> str:
    """The newest migration that is shipped."""
    from alembic.script import ScriptDirectory

    from worker.store.migrate import alembic_config

    return str(ScriptDirectory.from_config(alembic_config()).get_current_head())


_IS_MIGRATED = text("SELECT to_regclass('alembic_version')")
_REVISION = text("SELECT version_num FROM alembic_version")

_SERVER = text("""
    SELECT current_setting('server_version') AS version,
           CAST(current_setting('server_version_num') AS integer) AS version_number,
           current_user AS role,
           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
           pg_is_in_recovery() AS in_recovery,
           clock_timestamp() AS clock,
           (SELECT CAST(count(*) AS integer) FROM pg_stat_activity WHERE datname = current_database()) AS connections,
           to_regclass('alembic_version') IS NOT NULL AS migrated
""")

_SETTINGS = text("""
    SELECT name, setting
    FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'TimeZone', 'max_connections',
                   'superuser_reserved_connections', 'server_encoding', 'default_transaction_read_only')
""")

_SCHEMA = text("""
    SELECT (SELECT version_num FROM alembic_version) AS revision,
           (SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure('fermata_now()')) AS clock_body,
           (SELECT pg_has_role(current_user, relowner, 'MEMBER') FROM pg_class
            WHERE oid = to_regclass('accounts')) AS owner,
           EXISTS (SELECT FROM journal_default) OR EXISTS (SELECT FROM events_default) AS default_rows,
           (SELECT CAST(EXTRACT(EPOCH FROM fermata_now() - ran_at) AS double precision)
            FROM duty_runs
            WHERE duty = 'scheduler') AS scheduler_seconds,
           dead.endpoints AS deaf, dead.deliveries AS dead
    FROM (
        SELECT count(DISTINCT webhook_id) AS endpoints, count(*) AS deliveries
        FROM deliveries
        WHERE state = 'dead'
    ) AS dead
""")

_WORK = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), alive AS MATERIALIZED (
        SELECT w.host, w.slots, w.queues, w.lacks
        FROM workers AS w
        CROSS JOIN clock
        WHERE w.stopped_at IS NULL
          AND NOT w.draining
          AND w.seen_at > clock.now - make_interval(secs => :alive)
    ), unfinished AS (
        SELECT queue, ends_by FROM due
        UNION ALL
        SELECT queue, ends_by FROM live
        UNION ALL
        SELECT queue, ends_by FROM parked
    )
    SELECT (SELECT CAST(COALESCE(GREATEST(EXTRACT(EPOCH FROM max(clock.now - l.lease_until)), 0), 0)
                        AS double precision)
            FROM live AS l) AS lease_over,
           (SELECT CAST(COALESCE(GREATEST(EXTRACT(EPOCH FROM max(clock.now - u.ends_by)), 0), 0) AS double precision)
            FROM unfinished AS u) AS ends_by_over,
           ARRAY(SELECT DISTINCT u.queue
                 FROM unfinished AS u
                 WHERE NOT EXISTS (SELECT FROM alive AS a WHERE u.queue = ANY(a.queues))
                 ORDER BY u.queue) AS unserved,
           ARRAY(SELECT l.tier
                 FROM (SELECT DISTINCT unnest(a.lacks) AS tier FROM alive AS a) AS l
                 WHERE EXISTS (
                     SELECT
                     FROM (
                         SELECT account_id, job_id, queue
                         FROM due
                         WHERE kind = split_part(l.tier, '/', 1)
                         LIMIT 10000
                     ) AS d
                     JOIN jobs AS j ON j.account_id = ANY(ARRAY[d.account_id]) AND j.job_id = ANY(ARRAY[d.job_id])
                     WHERE COALESCE(j.request ->> 'model', '') = split_part(l.tier, '/', 2)
                       AND EXISTS (SELECT FROM alive AS a WHERE d.queue = ANY(a.queues))
                       AND NOT EXISTS (SELECT FROM alive AS a WHERE d.queue = ANY(a.queues) AND l.tier <> ALL(a.lacks))
                 )
                 ORDER BY l.tier) AS unmade,
           ARRAY(SELECT DISTINCT a.host FROM alive AS a ORDER BY a.host) AS hosts,
           (SELECT CAST(count(*) AS integer) FROM alive) AS workers,
           (SELECT CAST(COALESCE(sum(a.slots), 0) AS integer) FROM alive AS a) AS slots
    FROM clock
""")
