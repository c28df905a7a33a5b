"""Apply: write what the pages of a batch decided, one statement a table however many pages there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.lots import BrokenInvariant
from worker.credits.page import Page
from worker.credits.states import ReservationState
from worker.store.apply_seldom import has_seldom, write_seldom
from worker.store.texts import storable

_encode = msgspec.json.Encoder().encode

#: (account, provisional lot id) -> the id that the database gave it
LotIds = Mapping[tuple[str, int], int]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Write:
    """One statement, and where its rows come from: a row has one value a named array, account first."""

    statement: TextClause
    arrays: tuple[str, ...]
    rows: Callable[[Sequence[Page], LotIds], Iterable[Row]]
    #: Each row must change exactly one row of the table, or the books and the page disagree.
    exactly: bool = False
    timed: bool = False


async def write(connection: AsyncConnection, pages: Sequence[Page]) -> None:
    """Write all pages. Raises `BrokenInvariant` where a row was not as the page had it."""
    if not pages:
        return
    now = pages[0].now
    lot_ids = await _insert_lots(connection, pages, now)
    written = {write.statement: await _run(connection, write, pages, lot_ids, now) for write in _WRITES}
    if seldom := [page for page in pages if has_seldom(page)]:
        await write_seldom(connection, seldom, lot_ids, now)
    room = [page.account_id for page in pages if page.writes.live_gone and page.running_max is not None]
    if room:
        await connection.execute(_MAKE_ROOM, {"accounts": room})
    if room or written[_INSERT_DUE]:
        await connection.execute(_NOTIFY_DUE)
    if written[_ASK_CANCEL]:
        await connection.execute(_NOTIFY_CANCEL)


async def _run(
    connection: AsyncConnection, write: _Write, pages: Sequence[Page], lot_ids: LotIds, now: datetime
) -> int:
    rows = list(write.rows(pages, lot_ids))
    if not rows:
        return 0
    # A column of nulls travels as an empty array: unnest fills it up to the length of the others.
    arrays: dict[str, Any] = {
        name: [] if column.count(None) == len(column) else column
        for name, column in zip(write.arrays, zip(*rows, strict=True), strict=True)
    }
    if write.timed:
        arrays["now"] = now
    result = await connection.execute(write.statement, arrays)
    if write.exactly and result.rowcount != len(rows):
        raise BrokenInvariant(f"{result.rowcount} rows changed where {len(rows)} were meant")
    return len(rows)


async def _insert_lots(connection: AsyncConnection, pages: Sequence[Page], now: datetime) -> LotIds:
    """Give new lots their ids and write them."""
    new = [(page.account_id, lot_id) for page in pages for lot_id in page.ledger.new_lots]
    if not new:
        return {}
    ids = (await connection.execute(_NEXT_LOT_IDS, {"count": len(new)})).scalars().all()
    lot_ids = dict(zip(new, ids, strict=True))
    await _run(connection, _NEW_LOTS, pages, lot_ids, now)
    return lot_ids


def _json(value: Any) -> str | None:
    return None if value is None else _encode(value).decode()


# --- rows: what each table is told, from a page ----------------------------------------------------------------


def _new_lots(pages: Sequence[Page], lot_ids: LotIds) -> Iterable[Row]:
    for page in pages:
        for provisional, told in page.ledger.new_lots.items():
            lot = page.ledger.lots[provisional]
            yield (
                *(page.account_id, lot_ids[page.account_id, provisional], told.source),
                *(lot.granted, lot.available, lot.held, lot.spent, lot.expired, lot.revoked),
                *(lot.expires_at, told.cycle_starts_at, told.reference, told.job_id, told.reason, told.note),
            )


def _changed_lots(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for lot_id in page.ledger.changed_lots:
            if lot_id not in page.ledger.new_lots:
                lot = page.ledger.lots[lot_id]
                yield page.account_id, lot_id, lot.available, lot.held, lot.spent, lot.expired, lot.revoked


def _made_reservations(pages: Sequence[Page], lot_ids: LotIds) -> Iterable[Row]:
    for page in pages:
        for job_id in page.ledger.made:
            made = page.ledger.reservations[job_id]
            # unnest flattens arrays of arrays, so each draw list travels as the text of an array.
            lots = ",".join([str(lot_ids.get((page.account_id, draw.lot_id), draw.lot_id)) for draw in made.draws])
            amounts = ",".join([str(draw.amount) for draw in made.draws])
            settled_at = None if made.state is ReservationState.HELD else page.now
            yield (
                *(page.account_id, job_id, made.amount, made.state, made.charged, f"{{{lots}}}", f"{{{amounts}}}"),
                *(settled_at, made.reason),
            )


def _ended_reservations(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        made_here = set(page.ledger.made)
        for job_id in page.ledger.settled:
            if job_id not in made_here:
                ended = page.ledger.reservations[job_id]
                yield page.account_id, job_id, ended.state, ended.charged, ended.reason


def _journal(pages: Sequence[Page], lot_ids: LotIds) -> Iterable[Row]:
    for page in pages:
        for line in page.ledger.lines:
            entry = line.entry
            lot_id = lot_ids.get((page.account_id, entry.lot_id), entry.lot_id)
            yield page.account_id, lot_id, entry.move, entry.amount, line.job_id, entry.reason, line.actor


def _jobs(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for job in page.writes.jobs:
            yield (
                *(page.account_id, job.job_id, job.state, job.attempt, job.failures, job.started_at),
                *(page.now if job.ended else None, job.reason, storable(job.message), job.charged, job.partial),
                _json(job.outputs),
            )


def _due(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.due:
            job = row.job
            yield page.account_id, job.job_id, job.queue, job.kind, job.priority, row.not_before, job.ends_by


def _live(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.live:
            job = row.job
            yield (
                *(page.account_id, job.job_id, row.token, job.queue, job.kind, row.worker_id, row.lease_until),
                *(job.ends_by, row.attempt, _json(row.engine_state or None)),
            )


def _parked(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for job in page.writes.parked:
            yield page.account_id, job.job_id, job.queue, job.kind, job.quoted, job.ends_by


def _attempts(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.attempts:
            lease = row.lease
            yield (
                *(page.account_id, row.job_id, lease.attempt, lease.token, lease.worker_id, lease.started_at),
                *(row.ending, storable(row.message), _json(row.usage), _json(lease.engine_state)),
            )


def _artifacts(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for job_id, token, made in page.writes.artifacts:
            yield (
                *(page.account_id, made.artifact_id, made.name, made.media_type, made.storage_key, made.sha256),
                *(made.frames, made.sample_rate, made.channels, made.bytes, job_id, token),
            )


def _events(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for event in page.writes.events:
            job_id, kind, queue = (event.job.job_id, event.job.kind, event.job.queue) if event.job else (None,) * 3
            yield (
                *(page.account_id, event.what, job_id, event.state, kind, queue, event.reason, event.charged),
                _json(event.body),
            )


def _gone(table: str) -> Callable[[Sequence[Page], LotIds], Iterable[Row]]:
    """The jobs, or lots, that `page.writes` lists under that name by their ids alone."""

    def rows(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
        return [(page.account_id, gone) for page in pages for gone in getattr(page.writes, table)]

    return rows


def _told(table: str) -> Callable[[Sequence[Page], LotIds], Iterable[Row]]:
    """What `page.writes` lists under that name as rows."""

    def rows(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
        return [(page.account_id, *row) for page in pages for row in getattr(page.writes, table)]

    return rows


# --- statements ------------------------------------------------------------------------------------------------
#
# Rows to change are found by `= ANY(ARRAY[key])`: with sequential scans off (`gather.lock_accounts`) that leaves the
# planner nothing but one index look-up a key. Given `= key` it once multiplied 500 keys by all 30,000 rows of `due`:
# the table had been empty when it was analyzed last, and was thought to be so still.

_NEXT_LOT_IDS = text("""
    SELECT nextval('lot_ids')
    FROM generate_series(1, :count)
""")

_INSERT_LOTS = text("""
    INSERT INTO lots (account_id, lot_id, source, granted, available, held, spent, expired, revoked, expires_at,
                      created_at, cycle_starts_at, reference, job_id, reason, note)
    SELECT u.account_id, u.lot_id, u.source, u.granted, u.available, u.held, u.spent, u.expired, u.revoked,
           u.expires_at, :now, u.cycle_starts_at, u.reference, u.job_id, u.reason, u.note
    FROM unnest(CAST(:accounts AS text[]), CAST(:lots AS bigint[]), CAST(:sources AS text[]),
                CAST(:granted AS bigint[]), CAST(:available AS bigint[]), CAST(:held AS bigint[]),
                CAST(:spent AS bigint[]), CAST(:expired AS bigint[]), CAST(:revoked AS bigint[]),
                CAST(:expires AS timestamptz[]), CAST(:cycles AS timestamptz[]), CAST(:refs AS text[]),
                CAST(:jobs AS uuid[]), CAST(:reasons AS text[]), CAST(:notes AS text[]))
         AS u (account_id, lot_id, source, granted, available, held, spent, expired, revoked, expires_at,
               cycle_starts_at, reference, job_id, reason, note)
""")

_UPDATE_LOTS = text("""
    UPDATE lots AS l
    SET available = u.available, held = u.held, spent = u.spent, expired = u.expired, revoked = u.revoked
    FROM unnest(CAST(:accounts AS text[]), CAST(:lots AS bigint[]), CAST(:available AS bigint[]),
                CAST(:held AS bigint[]), CAST(:spent AS bigint[]), CAST(:expired AS bigint[]),
                CAST(:revoked AS bigint[]))
         AS u (account_id, lot_id, available, held, spent, expired, revoked)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.lot_id = ANY(ARRAY[u.lot_id])
""")

_CLOSE_LOTS = text("""
    UPDATE lots AS l
    SET closed = true
    FROM unnest(CAST(:accounts AS text[]), CAST(:lots AS bigint[])) AS u (account_id, lot_id)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.lot_id = ANY(ARRAY[u.lot_id])
      AND l.available = 0
      AND l.held = 0
""")

_INSERT_RESERVATIONS = text("""
    INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at,
                              settled_at, reason)
    SELECT u.account_id, u.job_id, u.amount, u.state, u.charged, CAST(u.lots AS bigint[]),
           CAST(u.draws AS bigint[]), :now, u.settled_at, u.reason
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:amounts AS bigint[]),
                CAST(:states AS text[]), CAST(:charged AS bigint[]), CAST(:lots AS text[]), CAST(:draws AS text[]),
                CAST(:settled AS timestamptz[]), CAST(:reasons AS text[]))
         AS u (account_id, job_id, amount, state, charged, lots, draws, settled_at, reason)
""")

_END_RESERVATIONS = text("""
    UPDATE reservations AS r
    SET state = u.state, charged = u.charged, settled_at = :now, reason = u.reason
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:states AS text[]),
                CAST(:charged AS bigint[]), CAST(:reasons AS text[]))
         AS u (account_id, job_id, state, charged, reason)
    WHERE r.account_id = ANY(ARRAY[u.account_id])
      AND r.job_id = ANY(ARRAY[u.job_id])
      AND r.state = 'held'
""")

_INSERT_JOURNAL = text("""
    INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
    SELECT u.account_id, :now, u.lot_id, u.move, u.amount, u.job_id, u.reason, u.actor
    FROM unnest(CAST(:accounts AS text[]), CAST(:lots AS bigint[]), CAST(:moves AS text[]),
                CAST(:amounts AS bigint[]), CAST(:jobs AS uuid[]), CAST(:reasons AS text[]),
                CAST(:actors AS text[]))
         WITH ORDINALITY AS u (account_id, lot_id, move, amount, job_id, reason, actor, position)
    ORDER BY u.position
""")

_UPDATE_JOBS = text("""
    UPDATE jobs AS j
    SET state = u.state, attempt = u.attempt, failures = u.failures, started_at = u.started_at,
        ended_at = u.ended_at, reason = u.reason, message = u.message, charged = u.charged,
        partial = u.partial, outputs = u.outputs
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:states AS text[]),
                CAST(:attempts AS integer[]), CAST(:failures AS smallint[]), CAST(:started AS timestamptz[]),
                CAST(:ended AS timestamptz[]), CAST(:reasons AS text[]), CAST(:messages AS text[]),
                CAST(:charged AS bigint[]), CAST(:partial AS boolean[]), CAST(:outputs AS jsonb[]))
         AS u (account_id, job_id, state, attempt, failures, started_at, ended_at, reason, message, charged,
               partial, outputs)
    WHERE j.account_id = ANY(ARRAY[u.account_id])
      AND j.job_id = ANY(ARRAY[u.job_id])
      AND j.ended_at IS NULL
""")

_DELETE_DUE = text("""
    DELETE FROM due AS d
    USING unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    WHERE d.account_id = ANY(ARRAY[u.account_id])
      AND d.job_id = ANY(ARRAY[u.job_id])
""")

_DELETE_LIVE = text("""
    DELETE FROM live AS l
    USING unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.job_id = ANY(ARRAY[u.job_id])
""")

_DELETE_PARKED = text("""
    DELETE FROM parked AS p
    USING unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    WHERE p.account_id = ANY(ARRAY[u.account_id])
      AND p.job_id = ANY(ARRAY[u.job_id])
""")

#: A job that comes back (a retry, a woken one) comes at its queue's turn, ahead of what was submitted since; several
#: of one account woken at once take the turns from there on.
_INSERT_DUE = text("""
    INSERT INTO due (account_id, job_id, queue, kind, priority, turn, since, not_before, ends_by, waits_for)
    SELECT u.account_id, u.job_id, u.queue, u.kind, u.priority,
           COALESCE(q.turn, 0) - 1
               + row_number() OVER (PARTITION BY u.account_id, u.queue, u.priority ORDER BY u.job_id),
           j.since, u.not_before, u.ends_by, CASE WHEN u.not_before > :now THEN 'backoff' END
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:queues AS text[]),
                CAST(:kinds AS text[]), CAST(:priorities AS smallint[]), CAST(:not_before AS timestamptz[]),
                CAST(:ends_by AS timestamptz[]))
         AS u (account_id, job_id, queue, kind, priority, not_before, ends_by)
    CROSS JOIN LATERAL (
        SELECT GREATEST(run_at, created_at) AS since
        FROM jobs
        WHERE account_id = u.account_id
          AND job_id = u.job_id
        OFFSET 0
    ) AS j
    LEFT JOIN LATERAL (
        SELECT turn
        FROM queue_turns
        WHERE queue = u.queue
          AND priority = u.priority
        OFFSET 0
    ) AS q ON true
""")

_INSERT_LIVE = text("""
    INSERT INTO live (account_id, job_id, token, queue, kind, worker_id, started_at, lease_until, ends_by,
                      attempt, engine_state)
    SELECT u.account_id, u.job_id, u.token, u.queue, u.kind, u.worker_id, :now, u.lease_until, u.ends_by,
           u.attempt, u.engine_state
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[]),
                CAST(:queues AS text[]), CAST(:kinds AS text[]), CAST(:workers AS text[]),
                CAST(:leases AS timestamptz[]), CAST(:ends_by AS timestamptz[]), CAST(:attempts AS integer[]),
                CAST(:states AS jsonb[]))
         AS u (account_id, job_id, token, queue, kind, worker_id, lease_until, ends_by, attempt, engine_state)
""")

_INSERT_PARKED = text("""
    INSERT INTO parked (account_id, job_id, queue, kind, parked_at, needed, ends_by)
    SELECT u.account_id, u.job_id, u.queue, u.kind, :now, u.needed, u.ends_by
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:queues AS text[]),
                CAST(:kinds AS text[]), CAST(:needed AS bigint[]), CAST(:ends_by AS timestamptz[]))
         AS u (account_id, job_id, queue, kind, needed, ends_by)
""")

_UNHINT = text("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL, waits_for = u.waits_for
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:waits_for AS text[]))
         AS u (account_id, job_id, waits_for)
    WHERE d.account_id = ANY(ARRAY[u.account_id])
      AND d.job_id = ANY(ARRAY[u.job_id])
""")

_ASK_CANCEL = text("""
    UPDATE live AS l
    SET cancel_asked_at = COALESCE(l.cancel_asked_at, :now), cancel_reason = COALESCE(l.cancel_reason, u.reason)
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:reasons AS text[]))
         AS u (account_id, job_id, reason)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.job_id = ANY(ARRAY[u.job_id])
""")

_INSERT_ATTEMPTS = text("""
    INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending, message,
                          usage, engine_state)
    SELECT u.account_id, u.job_id, u.attempt, u.token, u.worker_id, u.started_at, :now, u.ending, u.message,
           u.usage, u.engine_state
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:attempts AS integer[]),
                CAST(:tokens AS uuid[]), CAST(:workers AS text[]), CAST(:started AS timestamptz[]),
                CAST(:endings AS text[]), CAST(:messages AS text[]), CAST(:usage AS jsonb[]),
                CAST(:states AS jsonb[]))
         AS u (account_id, job_id, attempt, token, worker_id, started_at, ending, message, usage, engine_state)
""")

_INSERT_ARTIFACTS = text("""
    INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate,
                           channels, bytes, created_at, job_id, token, actor)
    SELECT u.account_id, u.artifact_id, u.name, u.media_type, u.storage_key, u.sha256, u.frames, u.sample_rate,
           u.channels, u.bytes, :now, u.job_id, u.token, 'settle'
    FROM unnest(CAST(:accounts AS text[]), CAST(:artifacts AS uuid[]), CAST(:names AS text[]),
                CAST(:types AS text[]), CAST(:storage AS text[]), CAST(:hashes AS bytea[]),
                CAST(:frames AS bigint[]), CAST(:rates AS integer[]), CAST(:channels AS smallint[]),
                CAST(:sizes AS bigint[]), CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[]))
         AS u (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate, channels,
               bytes, job_id, token)
""")

_INSERT_EVENTS = text("""
    INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged, body)
    SELECT u.account_id, :now, u.what, u.job_id, u.state, u.kind, u.queue, u.reason, u.charged, u.body
    FROM unnest(CAST(:accounts AS text[]), CAST(:what AS text[]), CAST(:jobs AS uuid[]), CAST(:states AS text[]),
                CAST(:kinds AS text[]), CAST(:queues AS text[]), CAST(:reasons AS text[]),
                CAST(:charged AS bigint[]), CAST(:bodies AS jsonb[]))
         WITH ORDINALITY AS u (account_id, what, job_id, state, kind, queue, reason, charged, body, position)
    ORDER BY u.position
""")

_MAKE_ROOM = text("""
    UPDATE due AS d
    SET waits_for = NULL
    FROM accounts AS a
    CROSS JOIN LATERAL (
        SELECT w.account_id, w.job_id
        FROM due AS w
        WHERE w.account_id = a.account_id
          AND w.waits_for = 'account_limit'
        ORDER BY w.priority DESC, w.turn, w.job_id
        LIMIT a.running_max
        FOR UPDATE SKIP LOCKED
    ) AS next
    WHERE a.account_id = ANY(CAST(:accounts AS text[]))
      AND d.account_id = ANY(ARRAY[next.account_id])
      AND d.job_id = ANY(ARRAY[next.job_id])
""")

_NOTIFY_DUE = text("SELECT pg_notify('fermata_due', '')")

_NOTIFY_CANCEL = text("SELECT pg_notify('fermata_cancel', '')")


_NEW_LOTS = _Write(
    _INSERT_LOTS,
    ("accounts", "lots", "sources", "granted", "available", "held", "spent", "expired", "revoked", "expires")
    + ("cycles", "refs", "jobs", "reasons", "notes"),
    _new_lots,
    timed=True,
)

_KEYS = ("accounts", "jobs")

#: In the order they are run: what goes before what comes, so that a job may leave a table and enter it again.
_WRITES = (
    _Write(
        _UPDATE_LOTS,
        ("accounts", "lots", "available", "held", "spent", "expired", "revoked"),
        _changed_lots,
        exactly=True,
    ),
    _Write(
        _CLOSE_LOTS,
        ("accounts", "lots"),
        _gone("lots_closed"),
        exactly=True,
    ),
    _Write(
        _INSERT_RESERVATIONS,
        (*_KEYS, "amounts", "states", "charged", "lots", "draws", "settled", "reasons"),
        _made_reservations,
        timed=True,
    ),
    _Write(
        _END_RESERVATIONS,
        (*_KEYS, "states", "charged", "reasons"),
        _ended_reservations,
        exactly=True,
        timed=True,
    ),
    _Write(
        _INSERT_JOURNAL, ("accounts", "lots", "moves", "amounts", "jobs", "reasons", "actors"), _journal, timed=True
    ),
    _Write(_DELETE_DUE, _KEYS, _gone("due_gone"), exactly=True),
    _Write(_DELETE_LIVE, _KEYS, _gone("live_gone"), exactly=True),
    _Write(_DELETE_PARKED, _KEYS, _gone("parked_gone"), exactly=True),
    _Write(
        _UPDATE_JOBS,
        (*_KEYS, "states", "attempts", "failures", "started", "ended", "reasons", "messages", "charged", "partial")
        + ("outputs",),
        _jobs,
        exactly=True,
    ),
    _Write(_INSERT_DUE, (*_KEYS, "queues", "kinds", "priorities", "not_before", "ends_by"), _due, timed=True),
    _Write(
        _INSERT_LIVE,
        (*_KEYS, "tokens", "queues", "kinds", "workers", "leases", "ends_by", "attempts", "states"),
        _live,
        timed=True,
    ),
    _Write(_INSERT_PARKED, (*_KEYS, "queues", "kinds", "needed", "ends_by"), _parked, timed=True),
    _Write(_UNHINT, (*_KEYS, "waits_for"), _told("unhinted")),
    _Write(_ASK_CANCEL, (*_KEYS, "reasons"), _told("cancel_asked"), timed=True),
    _Write(
        _INSERT_ATTEMPTS,
        (*_KEYS, "attempts", "tokens", "workers", "started", "endings", "messages", "usage", "states"),
        _attempts,
        timed=True,
    ),
    _Write(
        _INSERT_ARTIFACTS,
        ("accounts", "artifacts", "names", "types", "storage", "hashes", "frames", "rates", "channels", "sizes")
        + ("jobs", "tokens"),
        _artifacts,
        timed=True,
    ),
    _Write(
        _INSERT_EVENTS,
        ("accounts", "what", "jobs", "states", "kinds", "queues", "reasons", "charged", "bodies"),
        _events,
        timed=True,
    ),
)
