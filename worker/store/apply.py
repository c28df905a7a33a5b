"""Apply: write what the pages of a batch decided, one statement a table however many pages there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.account_ledger import Reservation
from worker.credits.lots import BrokenInvariant, LotsUnread
from worker.credits.page import Page
from worker.credits.states import ReservationState
from worker.store.apply_seldom import has_seldom, write_seldom
from worker.store.driver import Driver, Statement, driver_of, rows_of, run
from worker.store.notices import write_notices
from worker.store.texts import storable

_encode = msgspec.json.Encoder().encode

#: (account, provisional lot id) -> the id that the database gave it
LotIds = Mapping[tuple[str, int], int]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Write:
    """One statement, and where its rows come from: a row has one value a named array, account first."""

    statement: Statement
    arrays: tuple[str, ...]
    rows: Callable[[Sequence[Page], LotIds], Iterable[Row]]
    #: Which of the lists that most pages don't have it writes; None: what all have.
    of: str | None = None
    #: Each row must change exactly one row of the table, or the books and the page disagree.
    exactly: bool = False
    #: What is raised where one did not.
    otherwise: type[Exception] = BrokenInvariant
    timed: bool = False


async def write(connection: AsyncConnection, pages: Sequence[Page]) -> None:
    """Write all pages. Raises `BrokenInvariant` where a row was not as the page had it.

    `LotsUnread` where lots that were not read are not as whoever spends a whole hold takes them to be: charged back, or
    with less held.
    """
    if not pages:
        return
    now = pages[0].now
    driver = driver_of(connection)
    lot_ids = await _insert_lots(driver, pages, now)
    having = _pages_having(pages)
    if told := having.get("notices"):
        await write_notices(connection, told, lot_ids, now)
    written = {
        write.statement: await _run(driver, write, having.get(write.of, ()) if write.of else pages, lot_ids, now)
        for write in _WRITES
    }
    if seldom := [page for page in pages if has_seldom(page)]:
        await write_seldom(connection, seldom, lot_ids, now)
    room = [
        page.account_id
        for page in pages
        if page.running_max is not None and (page.writes.attempts or page.writes.more_room)
    ]
    if room:
        await run(driver, _MAKE_ROOM, {"accounts": room})
    if room or written[_INSERT_DUE]:
        await run(driver, _NOTIFY_DUE)
    if written[_ASK_CANCEL]:
        await run(driver, _NOTIFY_CANCEL)
    given_up = [str(job_id) for page in having.get("given_up", ()) for job_id in page.writes.given_up]
    for first in range(0, len(given_up), _IDS_MAX):
        await run(driver, _NOTIFY_GIVEN_UP, {"ids": " ".join(given_up[first : first + _IDS_MAX])})


def _pages_having(pages: Sequence[Page]) -> Mapping[str, Sequence[Page]]:
    """The pages by what they write of all that most don't."""
    having: dict[str, list[Page]] = {}
    for page in pages:
        for name in vars(page.writes):
            if name in having:
                having[name].append(page)
            else:
                having[name] = [page]
    return having


async def _run(driver: Driver, write: _Write, pages: Sequence[Page], lot_ids: LotIds, now: datetime) -> int:
    rows = list(write.rows(pages, lot_ids))
    if not rows:
        return 0
    # A column of nulls travels as an empty array: unnest fills it up to the length of the others.
    arrays: dict[str, Any] = {
        name: [] if column[0] is None and column.count(None) == len(column) else column
        for name, column in zip(write.arrays, zip(*rows, strict=True), strict=True)
    }
    if write.timed:
        arrays["now"] = now
    changed = await run(driver, write.statement, arrays)
    if write.exactly and changed != len(rows):
        raise write.otherwise(f"{changed} rows changed where {len(rows)} were meant")
    return len(rows)


async def _insert_lots(driver: Driver, pages: Sequence[Page], now: datetime) -> LotIds:
    """Give new lots their ids and write them."""
    new = [(page.account_id, lot_id) for page in pages for lot_id in page.ledger.new_lots]
    if not new:
        return {}
    ids = await rows_of(driver, _NEXT_LOT_IDS, {"count": len(new)})
    lot_ids = {key: lot_id for key, (lot_id,) in zip(new, ids, strict=True)}
    await _run(driver, _NEW_LOTS, pages, lot_ids, now)
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
                # Most have nothing expired or revoked: those columns don't travel.
                yield (
                    *(page.account_id, lot_id, lot.available, lot.held, lot.spent),
                    *(lot.expired or None, lot.revoked or None),
                )


def _spent_unread(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for lot_id, spent in page.ledger.spent_unread.items():
            yield page.account_id, lot_id, spent


def _made_reservations(pages: Sequence[Page], lot_ids: LotIds) -> Iterable[Row]:
    for page in pages:
        for job_id in page.ledger.made:
            made = page.ledger.reservations[job_id]
            lots = [draw.lot_id for draw in made.draws]
            if lot_ids:
                lots = [lot_ids.get((page.account_id, lot_id), lot_id) for lot_id in lots]
            # unnest flattens arrays of arrays, so several draws travel as the texts of arrays. Most are one: the whole.
            lot, *texts = (lots[0], None, None) if len(lots) == 1 else (None, *_draws_as_text(made, lots))
            # What is only held travels as nothing at all.
            settled = made.state is not ReservationState.HELD
            yield (
                *(page.account_id, job_id, made.amount, lot, *texts, made.charged or None),
                *((made.state, page.now, made.reason) if settled else (None, None, None)),
            )


def _draws_as_text(made: Reservation, lots: Sequence[int]) -> tuple[str, str]:
    return f"{{{','.join(map(str, lots))}}}", f"{{{','.join([str(draw.amount) for draw in made.draws])}}}"


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
            lot_id = lot_ids.get((page.account_id, entry.lot_id), entry.lot_id) if lot_ids else entry.lot_id
            yield page.account_id, lot_id, entry.move, entry.amount, line.job_id, entry.reason, line.actor


def _changed_jobs(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for change in page.writes.jobs:
            if not change.ended:
                job = change.job
                yield page.account_id, job.job_id, job.attempt, change.state, change.failures


def _ended_jobs(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for change in page.writes.jobs:
            if change.ended:
                job = change.job
                yield (
                    *(page.account_id, job.job_id, job.attempt, change.state, change.failures, change.reason),
                    *(storable(change.message), change.charged, change.partial or None, _json(change.outputs)),
                )


def _started_jobs(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.live:
            job = row.job
            yield (
                *(page.account_id, job.job_id, job.attempt, row.token, row.worker_id, row.lease_until),
                _json(row.engine_state),
            )


def _ended_attempts(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.attempts:
            yield page.account_id, row.job_id, row.ending, storable(row.message), _json(row.usage)


def _due(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for row in page.writes.due:
            job = row.job
            yield page.account_id, job.job_id, job.queue, job.kind, job.priority, row.not_before, job.ends_by


def _parked(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for job in page.writes.parked:
            yield page.account_id, job.job_id, job.queue, job.kind, job.quoted, job.ends_by


def _artifacts(pages: Sequence[Page], _: LotIds) -> Iterable[Row]:
    for page in pages:
        for job_id, token, made in page.writes.artifacts:
            yield (
                *(page.account_id, made.artifact_id, made.name, made.media_type, made.storage_key, made.sha256),
                *(made.frames, made.sample_rate, made.channels, made.bytes, job_id, token),
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
# What every job pays for takes its arrays apart by `SELECT unnest(…), unnest(…)`: side by side row by row, the shorter
# ones filled up with nulls. `FROM unnest(…, …)` does the same by way of a store an array: a row of the journal 6.6
# instead of 6.0 µs.
#
# Rows to change are found by `= ANY(ARRAY[key])`: with sequential scans off (`gather.lock_accounts`) that leaves the
# planner nothing but one index look-up a key. Given `= key` it once multiplied 500 keys by all 30,000 rows of `due`:
# the table had been empty when it was analyzed last, and was thought to be so still.

_NEXT_LOT_IDS = Statement("""
    SELECT nextval('lot_ids')
    FROM generate_series(1, :count)
""")

_INSERT_LOTS = Statement("""
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

_UPDATE_LOTS = Statement("""
    UPDATE lots AS l
    SET available = u.available, held = u.held, spent = u.spent,
        expired = COALESCE(u.expired, 0), revoked = COALESCE(u.revoked, 0)
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:lots AS bigint[])) AS lot_id,
               unnest(CAST(:available AS bigint[])) AS available, unnest(CAST(:held AS bigint[])) AS held,
               unnest(CAST(:spent AS bigint[])) AS spent, unnest(CAST(:expired AS bigint[])) AS expired,
               unnest(CAST(:revoked AS bigint[])) AS revoked
    ) AS u
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.lot_id = ANY(ARRAY[u.lot_id])
""")

_SPEND_UNREAD = Statement("""
    UPDATE lots AS l
    SET held = l.held - u.spent, spent = l.spent + u.spent
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:lots AS bigint[])) AS lot_id,
               unnest(CAST(:spent AS bigint[])) AS spent
    ) AS u
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.lot_id = ANY(ARRAY[u.lot_id])
      AND l.held >= u.spent
      AND NOT l.charged_back
""")

_CLOSE_LOTS = Statement("""
    UPDATE lots AS l
    SET closed = true
    FROM unnest(CAST(:accounts AS text[]), CAST(:lots AS bigint[])) AS u (account_id, lot_id)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.lot_id = ANY(ARRAY[u.lot_id])
      AND l.available = 0
      AND l.held = 0
""")

_INSERT_RESERVATIONS = Statement("""
    INSERT INTO reservations (account_id, job_id, amount, state, charged, draw_lots, draw_amounts, reserved_at,
                              settled_at, reason)
    SELECT u.account_id, u.job_id, u.amount, COALESCE(u.state, 'held'), COALESCE(u.charged, 0),
           COALESCE(CAST(u.lots AS bigint[]), ARRAY[u.lot_id]), COALESCE(CAST(u.draws AS bigint[]), ARRAY[u.amount]),
           :now, u.settled_at, u.reason
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id,
               unnest(CAST(:amounts AS bigint[])) AS amount, unnest(CAST(:lot AS bigint[])) AS lot_id,
               unnest(CAST(:lots AS text[])) AS lots, unnest(CAST(:draws AS text[])) AS draws,
               unnest(CAST(:charged AS bigint[])) AS charged, unnest(CAST(:states AS text[])) AS state,
               unnest(CAST(:settled AS timestamptz[])) AS settled_at, unnest(CAST(:reasons AS text[])) AS reason
    ) AS u
""")

_END_RESERVATIONS = Statement("""
    UPDATE reservations AS r
    SET state = u.state, charged = u.charged, settled_at = :now, reason = u.reason
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id,
               unnest(CAST(:states AS text[])) AS state, unnest(CAST(:charged AS bigint[])) AS charged,
               unnest(CAST(:reasons AS text[])) AS reason
    ) AS u
    WHERE r.account_id = ANY(ARRAY[u.account_id])
      AND r.job_id = ANY(ARRAY[u.job_id])
      AND r.state = 'held'
""")

_INSERT_JOURNAL = Statement("""
    INSERT INTO journal (account_id, at, lot_id, move, amount, job_id, reason, actor)
    SELECT u.account_id, :now, u.lot_id, u.move, u.amount, u.job_id, u.reason, u.actor
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:lots AS bigint[])) AS lot_id,
               unnest(CAST(:moves AS text[])) AS move, unnest(CAST(:amounts AS bigint[])) AS amount,
               unnest(CAST(:jobs AS uuid[])) AS job_id, unnest(CAST(:reasons AS text[])) AS reason,
               unnest(CAST(:actors AS text[])) AS actor,
               generate_subscripts(CAST(:accounts AS text[]), 1) AS position
    ) AS u
    ORDER BY u.position
""")

_CHANGE_JOBS = Statement("""
    UPDATE jobs AS j
    SET state = u.state, failures = u.failures
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:attempts AS integer[]),
                CAST(:states AS text[]), CAST(:failures AS smallint[]))
         AS u (account_id, job_id, attempt, state, failures)
    WHERE j.account_id = ANY(ARRAY[u.account_id])
      AND j.job_id = ANY(ARRAY[u.job_id])
      AND j.attempt = u.attempt
      AND j.ended_at IS NULL
""")

#: The event says again what the job's row says, so it is made of it.
_END_JOBS = Statement("""
    WITH ended AS (
        UPDATE jobs AS j
        SET state = u.state, failures = u.failures, ended_at = :now, reason = u.reason, message = u.message,
            charged = u.charged, partial = COALESCE(u.partial, false), outputs = u.outputs
        FROM (
            SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id,
                   unnest(CAST(:attempts AS integer[])) AS attempt, unnest(CAST(:states AS text[])) AS state,
                   unnest(CAST(:failures AS smallint[])) AS failures, unnest(CAST(:reasons AS text[])) AS reason,
                   unnest(CAST(:messages AS text[])) AS message, unnest(CAST(:charged AS bigint[])) AS charged,
                   unnest(CAST(:partial AS boolean[])) AS partial, unnest(CAST(:outputs AS jsonb[])) AS outputs
        ) AS u
        WHERE j.account_id = ANY(ARRAY[u.account_id])
          AND j.job_id = ANY(ARRAY[u.job_id])
          AND j.attempt = u.attempt
          AND j.ended_at IS NULL
        RETURNING j.account_id, j.job_id, j.state, j.kind, j.queue, j.reason, j.charged
    )
    INSERT INTO events (account_id, at, what, job_id, state, kind, queue, reason, charged)
    SELECT account_id, :now, 'ended', job_id, state, kind, queue, reason, charged
    FROM ended
""")

#: From `due` to `live`, and `running` on the job's row.
_START_JOBS = Statement("""
    WITH gone AS (
        DELETE FROM due AS d
        USING (
            SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id,
                   unnest(CAST(:attempts AS integer[])) AS attempt, unnest(CAST(:tokens AS uuid[])) AS token,
                   unnest(CAST(:workers AS text[])) AS worker_id,
                   unnest(CAST(:leases AS timestamptz[])) AS lease_until,
                   unnest(CAST(:states AS jsonb[])) AS engine_state
        ) AS u
        WHERE d.account_id = ANY(ARRAY[u.account_id])
          AND d.job_id = ANY(ARRAY[u.job_id])
        RETURNING d.account_id, d.job_id, d.queue, d.kind, d.ends_by, u.attempt, u.token, u.worker_id,
                  u.lease_until, u.engine_state
    ), running AS (
        INSERT INTO live (account_id, job_id, token, queue, kind, worker_id, started_at, lease_until, ends_by,
                          attempt, engine_state)
        SELECT account_id, job_id, token, queue, kind, worker_id, :now, lease_until, ends_by, attempt, engine_state
        FROM gone
    )
    UPDATE jobs AS j
    SET state = 'running', attempt = gone.attempt, started_at = COALESCE(j.started_at, :now)
    FROM gone
    WHERE j.account_id = ANY(ARRAY[gone.account_id])
      AND j.job_id = ANY(ARRAY[gone.job_id])
      AND j.state = 'queued'
""")

#: From `live` to `attempts`, the row's own facts with it. Its token was compared when the row was locked.
_END_ATTEMPTS = Statement("""
    WITH gone AS (
        DELETE FROM live AS l
        USING (
            SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:jobs AS uuid[])) AS job_id,
                   unnest(CAST(:endings AS text[])) AS ending, unnest(CAST(:messages AS text[])) AS message,
                   unnest(CAST(:usage AS jsonb[])) AS usage
        ) AS u
        WHERE l.account_id = ANY(ARRAY[u.account_id])
          AND l.job_id = ANY(ARRAY[u.job_id])
        RETURNING l.account_id, l.job_id, l.attempt, l.token, l.worker_id, l.started_at, u.ending, u.message,
                  u.usage, l.engine_state
    )
    INSERT INTO attempts (account_id, job_id, attempt, token, worker_id, started_at, ended_at, ending, message,
                          usage, engine_state)
    SELECT account_id, job_id, attempt, token, worker_id, started_at, :now, ending, message, usage, engine_state
    FROM gone
""")

_DELETE_DUE = Statement("""
    DELETE FROM due AS d
    USING unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    WHERE d.account_id = ANY(ARRAY[u.account_id])
      AND d.job_id = ANY(ARRAY[u.job_id])
""")

_DELETE_PARKED = Statement("""
    DELETE FROM parked AS p
    USING unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[])) AS u (account_id, job_id)
    WHERE p.account_id = ANY(ARRAY[u.account_id])
      AND p.job_id = ANY(ARRAY[u.job_id])
""")

#: A job that comes back (a retry, a woken one) comes at its queue's turn, ahead of what was submitted since; several
#: of one account woken at once take the turns from there on.
_INSERT_DUE = Statement("""
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

_INSERT_PARKED = Statement("""
    INSERT INTO parked (account_id, job_id, queue, kind, parked_at, needed, ends_by)
    SELECT u.account_id, u.job_id, u.queue, u.kind, :now, u.needed, u.ends_by
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:queues AS text[]),
                CAST(:kinds AS text[]), CAST(:needed AS bigint[]), CAST(:ends_by AS timestamptz[]))
         AS u (account_id, job_id, queue, kind, needed, ends_by)
""")

_UNHINT = Statement("""
    UPDATE due AS d
    SET hinted_at = NULL, hint_again_at = NULL, waits_for = u.waits_for
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:waits_for AS text[]))
         AS u (account_id, job_id, waits_for)
    WHERE d.account_id = ANY(ARRAY[u.account_id])
      AND d.job_id = ANY(ARRAY[u.job_id])
""")

_ASK_CANCEL = Statement("""
    UPDATE live AS l
    SET cancel_asked_at = COALESCE(l.cancel_asked_at, :now), cancel_reason = COALESCE(l.cancel_reason, u.reason)
    FROM unnest(CAST(:accounts AS text[]), CAST(:jobs AS uuid[]), CAST(:reasons AS text[]))
         AS u (account_id, job_id, reason)
    WHERE l.account_id = ANY(ARRAY[u.account_id])
      AND l.job_id = ANY(ARRAY[u.job_id])
""")

_INSERT_ARTIFACTS = Statement("""
    INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate,
                           channels, bytes, created_at, job_id, token, actor)
    SELECT u.account_id, u.artifact_id, u.name, u.media_type, u.storage_key, u.sha256, u.frames, u.sample_rate,
           u.channels, u.bytes, :now, u.job_id, u.token, 'settle'
    FROM (
        SELECT unnest(CAST(:accounts AS text[])) AS account_id, unnest(CAST(:artifacts AS uuid[])) AS artifact_id,
               unnest(CAST(:names AS text[])) AS name, unnest(CAST(:types AS text[])) AS media_type,
               unnest(CAST(:storage AS text[])) AS storage_key, unnest(CAST(:hashes AS bytea[])) AS sha256,
               unnest(CAST(:frames AS bigint[])) AS frames, unnest(CAST(:rates AS integer[])) AS sample_rate,
               unnest(CAST(:channels AS smallint[])) AS channels, unnest(CAST(:sizes AS bigint[])) AS bytes,
               unnest(CAST(:jobs AS uuid[])) AS job_id, unnest(CAST(:tokens AS uuid[])) AS token
    ) AS u
""")

_MAKE_ROOM = Statement("""
    UPDATE due AS d
    SET waits_for = NULL
    FROM unnest(CAST(:accounts AS text[])) AS u (account_id)
    CROSS JOIN LATERAL (
        SELECT running_max
        FROM accounts
        WHERE account_id = u.account_id
        OFFSET 0
    ) AS a
    CROSS JOIN LATERAL (
        SELECT w.account_id, w.job_id
        FROM due AS w
        WHERE w.account_id = u.account_id
          AND w.waits_for = 'account_limit'
        ORDER BY w.priority DESC, w.turn, w.job_id
        LIMIT a.running_max
        FOR UPDATE SKIP LOCKED
    ) AS next
    WHERE d.account_id = ANY(ARRAY[next.account_id])
      AND d.job_id = ANY(ARRAY[next.job_id])
""")

_NOTIFY_DUE = Statement("SELECT pg_notify('fermata_due', '')")

_NOTIFY_CANCEL = Statement("SELECT pg_notify('fermata_cancel', '')")

#: Heard by workers, see `given_up.py`. Its payload: ids of jobs, with blanks between; PostgreSQL takes 8,000 bytes.
_NOTIFY_GIVEN_UP = Statement("SELECT pg_notify('fermata_given_up', :ids)")
_IDS_MAX = 200


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
    _Write(_SPEND_UNREAD, ("accounts", "lots", "spent"), _spent_unread, exactly=True, otherwise=LotsUnread),
    _Write(
        _CLOSE_LOTS,
        ("accounts", "lots"),
        _gone("lots_closed"),
        of="lots_closed",
        exactly=True,
    ),
    _Write(
        _INSERT_RESERVATIONS,
        (*_KEYS, "amounts", "lot", "lots", "draws", "charged", "states", "settled", "reasons"),
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
    _Write(_DELETE_DUE, _KEYS, _gone("due_gone"), of="due_gone", exactly=True),
    _Write(_DELETE_PARKED, _KEYS, _gone("parked_gone"), of="parked_gone", exactly=True),
    _Write(
        _END_ATTEMPTS,
        (*_KEYS, "endings", "messages", "usage"),
        _ended_attempts,
        exactly=True,
        timed=True,
    ),
    _Write(_CHANGE_JOBS, (*_KEYS, "attempts", "states", "failures"), _changed_jobs, exactly=True),
    _Write(
        _END_JOBS,
        (*_KEYS, "attempts", "states", "failures", "reasons", "messages", "charged", "partial", "outputs"),
        _ended_jobs,
        exactly=True,
        timed=True,
    ),
    _Write(
        _START_JOBS,
        (*_KEYS, "attempts", "tokens", "workers", "leases", "states"),
        _started_jobs,
        exactly=True,
        timed=True,
    ),
    _Write(_INSERT_DUE, (*_KEYS, "queues", "kinds", "priorities", "not_before", "ends_by"), _due, of="due", timed=True),
    _Write(_INSERT_PARKED, (*_KEYS, "queues", "kinds", "needed", "ends_by"), _parked, of="parked", timed=True),
    _Write(_UNHINT, (*_KEYS, "waits_for"), _told("unhinted"), of="unhinted"),
    _Write(_ASK_CANCEL, (*_KEYS, "reasons"), _told("cancel_asked"), of="cancel_asked", timed=True),
    _Write(
        _INSERT_ARTIFACTS,
        ("accounts", "artifacts", "names", "types", "storage", "hashes", "frames", "rates", "channels", "sizes")
        + ("jobs", "tokens"),
        _artifacts,
        of="artifacts",
        timed=True,
    ),
)
