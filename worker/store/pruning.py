"""What has been kept long enough: counted, or deleted, by functions of the database that refuse what is too young.

Each method is one short transaction over a bounded part: whoever is killed between two of them goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from config.settings import Settings
from worker.store.database import Transient, reading, transaction
from worker.store.snapshots import snapshot

#: Rows of one transaction.
_ROWS = 1000
#: Artifacts among which one transaction looks for inputs: each time it reads all jobs of their accounts.
_INPUTS = 10_000
#: Ends of jobs that one statement of a dry run looks at.
_LOOKED_AT = 10_000
#: Accounts whose checkpoints of a month are written in one transaction.
_ACCOUNTS = 2000
#: The longest that one statement may take: counting the entries of a month is the longest.
PATIENCE_SECONDS = 600
#: Days for which a customer's token is kept after it ended.
_TOKENS_KEPT_DAYS = 7
FIRST = ("", UUID(int=0))


@dataclass(frozen=True, slots=True)
class Old:
    """What may go now: rows, and bytes of the sound that goes with them."""

    jobs: int
    outputs: int
    inputs: int
    bytes: int
    events: int
    deliveries: int
    rehearsals: int
    tokens: int
    audit_log: int
    #: Months of the journal that are over without checkpoints, and those that may be detached.
    months_to_close: int
    months_to_detach: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some jobs in the order of their ends: how many were forgotten, and where to go on; None at the end."""

    gone: int
    next: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some artifacts in order: the files of those that were deleted, and where to go on; None at the end."""

    files: Sequence[str]
    next: tuple[str, UUID] | None


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact's row, as far as its file is concerned."""

    account_id: str
    artifact_id: UUID
    storage_key: str


class Pruning:
    """Counts and deletes what the settings no longer keep. Whatever deletes returns how much, 0 at the end."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    async def old(self) -> Old:
        """What would go now, in one snapshot."""
        kept = self._settings
        values: dict[str, Any] = {
            "inputs": kept.inputs_kept_days,
            "events": kept.events_kept_days,
            "deliveries": kept.deliveries_kept_days,
            "rehearsals": kept.rehearsals_kept_days,
            "tokens": _TOKENS_KEPT_DAYS,
            "audit_log": kept.audit_log_kept_days,
            "journal": kept.journal_kept_days,
        }
        async with snapshot(self._engine) as connection:
            values["now"] = (await connection.execute(_NOW)).scalar_one()
            jobs, outputs, bytes_ = await _old_jobs(connection, values["now"] - timedelta(days=kept.jobs_kept_days))
            rest = (await connection.execute(_OLD, values)).one()._asdict()
        return Old(jobs=jobs, outputs=outputs, bytes=bytes_ + rest.pop("bytes_of_inputs"), **rest)

    async def jobs(self, after: datetime | None) -> Part:
        """Forget jobs that ended long ago, with their reservations, attempts, outputs and ends, among the next.

        `after`: where the part before this one ended; None: from the first one on.
        """
        values = {"days": self._settings.jobs_kept_days, "after": after, "most": _ROWS}
        async with transaction(self._engine, "prune_jobs") as connection:
            return Part(*(await connection.execute(_PRUNE_JOBS, values)).one())

    async def inputs(self, after: tuple[str, UUID]) -> Page:
        """Forget inputs that no job names, among the next after that one."""
        values = {
            "days": self._settings.inputs_kept_days,
            "account": after[0],
            "artifact": after[1],
            "most": _INPUTS,
        }
        async with transaction(self._engine, "prune_inputs") as connection:
            rows = (await connection.execute(_PRUNE_INPUTS, values)).all()
        last = next(((row.account_id, row.artifact_id) for row in rows if row.storage_key is None), None)
        return Page([row.storage_key for row in rows if row.storage_key is not None], last)

    async def events(self) -> int:
        """Forget what accounts were told."""
        return await self._forget("events", self._settings.events_kept_days)

    async def deliveries(self) -> int:
        """Forget deliveries that ended."""
        return await self._forget("deliveries", self._settings.deliveries_kept_days)

    async def rehearsals(self) -> int:
        """Forget trials of price books."""
        return await self._forget("rehearsals", self._settings.rehearsals_kept_days)

    async def tokens(self) -> int:
        """Forget customers' tokens that ended."""
        return await self._forget("customer tokens", _TOKENS_KEPT_DAYS)

    async def audit_log(self) -> int:
        """Forget who changed what."""
        return await self._forget("audit log", self._settings.audit_log_kept_days)

    async def close_month(self) -> int:
        """Write checkpoints of the oldest month without them, for some accounts."""
        async with transaction(self._engine, "close_month") as connection:
            return await _number(connection, _CLOSE_MONTH, {"accounts": _ACCOUNTS})

    async def closed_months(self) -> int:
        """How many months have checkpoints."""
        async with reading(self._engine) as connection:
            return await _number(connection, _CLOSED_MONTHS, {})

    async def detach_month(self) -> str | None:
        """Detach the oldest month of the journal that may go; returns its table. None: none, or its lock is taken."""
        try:
            async with transaction(self._engine, "detach_month") as connection:
                values = {"days": self._settings.journal_kept_days}
                return (await connection.execute(_DETACH_MONTH, values)).scalar_one_or_none()
        except Transient:
            return None  # somebody reads or writes there: next time

    async def drop_empty_months(self) -> int:
        """Drop partitions of events in which nothing is left; 0 also if their lock is taken."""
        try:
            async with transaction(self._engine, "drop_empty_months") as connection:
                return await _number(connection, _DROP_EMPTY_MONTHS, {"days": self._settings.events_kept_days})
        except Transient:
            return 0  # next time

    async def known(self, artifact_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Of these artifacts, those that have a row."""
        async with reading(self._engine) as connection:
            return frozenset((await connection.execute(_KNOWN, {"artifacts": list(artifact_ids)})).scalars())

    async def stored(self, after: tuple[str, UUID], age_seconds_min: float) -> Sequence[Stored]:
        """The next artifacts after that one, of those that are at least that old."""
        values = {"account": after[0], "artifact": after[1], "age": age_seconds_min, "most": _ROWS}
        async with reading(self._engine) as connection:
            return [Stored(*row) for row in await connection.execute(_STORED, values)]

    async def _forget(self, what: str, days: int) -> int:
        async with transaction(self._engine, "forget_old") as connection:
            return await _number(connection, _FORGET, {"what": what, "days": days, "most": _ROWS})


async def _old_jobs(connection: AsyncConnection, cutoff: datetime) -> tuple[int, int, int]:
    """How many jobs that ended before then may go, their outputs, and the bytes of these. Looks part by part."""
    jobs, outputs, bytes_ = 0, 0, 0
    after: datetime | None = None
    while True:
        values = {"cutoff": cutoff, "after": after, "most": _LOOKED_AT}
        part = (await connection.execute(_OLD_JOBS, values)).one()
        if part.looked_to is None:
            return jobs, outputs, bytes_
        jobs, outputs, bytes_ = jobs + part.jobs, outputs + part.outputs, bytes_ + part.bytes
        after = part.looked_to


async def _number(connection: AsyncConnection, statement: TextClause, values: Mapping[str, object]) -> int:
    return int((await connection.execute(statement, values)).scalar_one())


_PRUNE_JOBS = text("SELECT gone, looked_to FROM fermata_prune_jobs(:days, CAST(:after AS timestamptz), :most)")

_PRUNE_INPUTS = text("""
    SELECT account_id, artifact_id, storage_key
    FROM fermata_prune_inputs(:days, :account, :artifact, :most)
""")

_FORGET = text("SELECT fermata_forget(:what, :days, :most)")

_CLOSE_MONTH = text("SELECT fermata_close_month(:accounts)")

_CLOSED_MONTHS = text("SELECT count(*) FROM journal_months WHERE closed_at IS NOT NULL")

_DETACH_MONTH = text("SELECT fermata_detach_month(:days)")

_DROP_EMPTY_MONTHS = text("SELECT fermata_drop_empty_months(:days)")

_KNOWN = text("SELECT artifact_id FROM artifacts WHERE artifact_id = ANY(CAST(:artifacts AS uuid[]))")

_STORED = text("""
    SELECT account_id, artifact_id, storage_key
    FROM artifacts
    WHERE (account_id, artifact_id) > (:account, CAST(:artifact AS uuid))
      AND created_at < fermata_now() - make_interval(secs => :age)
    ORDER BY account_id, artifact_id
    LIMIT :most
""")

_NOW = text("SELECT fermata_now()")

#: What of the next jobs `fermata_prune_jobs` would delete, by the same look.
_OLD_JOBS = text("""
    SELECT count(*) FILTER (WHERE e.may_go) AS jobs,
           CAST(COALESCE(sum(o.count) FILTER (WHERE e.may_go), 0) AS bigint) AS outputs,
           CAST(COALESCE(sum(o.bytes) FILTER (WHERE e.may_go), 0) AS bigint) AS bytes,
           max(e.at) AS looked_to
    FROM fermata_old_ends(
        CAST(:cutoff AS timestamptz), COALESCE(CAST(:after AS timestamptz), '-infinity'), :most
    ) AS e
    CROSS JOIN LATERAL (
        SELECT count(*), sum(a.bytes) AS bytes
        FROM artifacts AS a
        WHERE a.account_id = e.account_id
          AND a.job_id = e.job_id
    ) AS o
""")

#: Beside jobs: row by row what the functions of the same names delete.
_OLD = text("""
    WITH at AS MATERIALIZED (
        SELECT CAST(:now AS timestamptz) AS now
    ), named AS MATERIALIZED (
        SELECT j.account_id, i.artifact
        FROM jobs AS j
        CROSS JOIN LATERAL jsonb_each_text(j.inputs) AS i (name, artifact)
        WHERE j.inputs <> '{}'
    ), inputs AS (
        SELECT count(*) AS count, CAST(COALESCE(sum(a.bytes), 0) AS bigint) AS bytes
        FROM artifacts AS a
        LEFT JOIN named AS n ON n.account_id = a.account_id AND n.artifact = CAST(a.artifact_id AS text)
        WHERE a.job_id IS NULL
          AND a.created_at < (SELECT now - make_interval(days => :inputs) FROM at)
          AND n.artifact IS NULL
          AND NOT EXISTS (SELECT FROM voices AS v WHERE v.artifact_id = a.artifact_id)
    ), months AS (
        SELECT generate_series(
            COALESCE(
                (SELECT max(ends_at) FROM journal_months WHERE closed_at IS NOT NULL),
                date_trunc('month', LEAST((SELECT min(created_at) FROM accounts), (SELECT min(at) FROM journal)), 'UTC')
            ) AT TIME ZONE 'UTC',
            (SELECT now - INTERVAL '1 day' - INTERVAL '1 month' FROM at) AT TIME ZONE 'UTC',
            INTERVAL '1 month'
        ) AS starts_at
    )
    SELECT (SELECT count FROM inputs) AS inputs,
           (SELECT bytes FROM inputs) AS bytes_of_inputs,
           (SELECT count(*) FROM events AS e
            WHERE e.what <> 'ended' AND e.at < (SELECT now - make_interval(days => :events) FROM at)) AS events,
           (SELECT count(*) FROM deliveries AS d
            WHERE d.state <> 'pending'
              AND d.ended_at < (SELECT now - make_interval(days => :deliveries) FROM at)) AS deliveries,
           (SELECT count(*) FROM rehearsals AS r
            WHERE r.at < (SELECT now - make_interval(days => :rehearsals) FROM at)) AS rehearsals,
           (SELECT count(*) FROM api_keys AS k
            WHERE k.role = 'customer'
              AND k.expires_at < (SELECT now - make_interval(days => :tokens) FROM at)) AS tokens,
           (SELECT count(*) FROM audit_log AS l
            WHERE l.at < (SELECT now - make_interval(days => :audit_log) FROM at)) AS audit_log,
           (SELECT count(*) FROM months) AS months_to_close,
           (SELECT count(*) FROM journal_months AS m
            WHERE m.detached_at IS NULL
              AND m.closed_at IS NOT NULL
              AND m.ends_at < (SELECT now - make_interval(days => :journal) FROM at)
              AND NOT EXISTS (SELECT FROM reservations AS r WHERE r.settled_at < m.ends_at)) AS months_to_detach
""")
