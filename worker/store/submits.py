"""Submitting jobs: quote, pin and store, a batch in one transaction. No Redis, no credits move.

Promise 13: the same idempotency key with the same body is the same job again; with another body a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.plans import Plan
from worker.credits.price_book import PriceBook
from worker.store.affordability import Affordability
from worker.store.database import reading, transaction
from worker.store.errors import Conflict, InsufficientCredits, UnknownAccount
from worker.store.plan_books import PlanBooks
from worker.store.prices import PriceBooks
from worker.store.turns import take_turns
from worker.store.voices import VoiceTerms, read_voice_terms

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """What was measured of an artifact when it was stored."""

    artifact_id: UUID
    name: str
    media_type: str
    storage_key: str
    sha256: bytes
    frames: int
    sample_rate: int
    channels: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SubmitView:
    """What a submit may look at: the account's plan, its artifacts, the book in force, the database's clock.

    `terms` says what the plan allows; None for accounts without one, whose jobs no plan restricts.
    """

    plan: str | None
    artifacts: Mapping[UUID, ArtifactFacts]
    book_id: int
    book: PriceBook
    now: datetime
    terms: Plan | None = None
    #: Of the voices that were asked for, those that there are.
    voices: Mapping[str, VoiceTerms] = field(default_factory=dict)

    @property
    def priority(self) -> int:
        """Of the account's plan; higher goes first."""
        return 0 if self.terms is None else self.terms.priority


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be stored, quoted. `ends_by` None: `job_seconds` after its earliest start, by the database's clock."""

    job_id: UUID
    kind: str
    queue: str
    request: Mapping[str, Any]
    inputs: Mapping[str, str]
    metadata: Mapping[str, Any]
    quoted: int
    book_id: int
    plan: str | None
    on_insufficient: str
    max_credits: int | None
    run_at: datetime | None
    ends_by: datetime | None
    job_seconds: float
    failures_max: int
    actor: str
    retry_of: UUID | None = None
    #: Turn it down now if the account could not pay it now. The claim decides anyway.
    check_credits: bool = False
    traceparent: str | None = None
    priority: int = 0  # higher goes first


class Submission(Protocol):
    """One job asked for. `decide` is pure: it quotes, or raises what is wrong with it."""

    @property
    def account_id(self) -> str: ...

    @property
    def idempotency_key(self) -> str: ...

    @property
    def body_hash(self) -> bytes: ...

    @property
    def artifact_ids(self) -> Sequence[UUID]: ...

    @property
    def voice(self) -> str | None: ...

    def decide(self, view: SubmitView) -> NewJob: ...


@dataclass(frozen=True, slots=True)
class Submitted:
    """The answer to a submit. A replay of its key is told of the same job, in the state that it has by then."""

    job_id: UUID
    account_id: str
    kind: str
    state: str
    quoted: int
    book_id: int
    replayed: bool

    def shown(self, key: str) -> dict[str, Any]:
        """The public document of a submit, wherever it was made; `key` is its idempotency key."""
        return {
            "id": self.job_id,
            "account": self.account_id,
            "kind": self.kind,
            "state": self.state,
            "quoted": self.quoted,
            "book": self.book_id,
            "replayed": self.replayed,
            "key": key,
        }


class Submits:
    """Stores batches of submissions."""

    def __init__(self, engine: AsyncEngine, price_books: PriceBooks, plan_books: PlanBooks | None = None) -> None:
        self._engine = engine
        self._price_books = price_books
        self._plan_books = plan_books or PlanBooks()
        self._affordability = Affordability(self._plan_books)

    async def apply(self, submissions: Sequence[Submission], wait: bool) -> list[Any]:
        """One answer a submission: `Submitted`, or the exception that turned it down (nothing stored of it)."""
        del wait  # a submit takes no account lock
        # One statement a transaction: until the INSERT nobody could wait for us, whatever becomes of this process.
        async with transaction(self._engine, "take_turns", at_once=True) as connection:
            before = await _read_replayed(connection, submissions)
            views = await self._views(connection, submissions)
            decided = [_decided(submission, before.get(_identity(submission)), views) for submission in submissions]
            decided = await self._affordable(connection, submissions, decided)
            new = [(s, job) for s, job in zip(submissions, decided, strict=True) if isinstance(job, NewJob)]
            turns = await _turns(connection, new, views) if new else {}
        stored: set[UUID] = set()
        after: Mapping[Any, Any] = {}
        short = [s for s, job in zip(submissions, decided, strict=True) if isinstance(job, InsufficientCredits)]
        if new or short:
            async with transaction(self._engine, "submit") as connection:
                stored = await _insert(connection, new, turns) if new else set()
                # Whoever lost a race for a key reads the winner's row, also where the winner's job took the credits.
                lost = [s for s, job in new if job.job_id not in stored] + short
                after = await _read_replayed(connection, lost) if lost else {}
        return [_answer(submission, job, stored, after) for submission, job in zip(submissions, decided, strict=True)]

    async def _affordable(
        self, connection: AsyncConnection, submissions: Sequence[Submission], decided: list[Any]
    ) -> list[Any]:
        """The same, with a refusal in place of each job that asked for it and could not be paid now."""
        # One request, however often it came at once, is one job to pay.
        asked = {
            _identity(submission): (submission.account_id, job.quoted)
            for submission, job in zip(submissions, decided, strict=True)
            if isinstance(job, NewJob) and job.check_credits
        }
        if not asked:
            return decided
        short = await self._affordability.turned_down(connection, list(asked.values()))
        places = list(asked)
        turned_down = {places[place]: refusal for place, refusal in short.items()}
        return [
            turned_down.get(_identity(submission), job) if isinstance(job, NewJob) else job
            for submission, job in zip(submissions, decided, strict=True)
        ]

    async def view(self, account_id: str | None, artifact_ids: Sequence[UUID], voice: str | None = None) -> SubmitView:
        """What a submit of this account would look at now; for quotes. Raises `UnknownAccount`."""
        async with reading(self._engine) as connection:
            book_id, book, now = await self._price_books.current(connection)
            voices = await read_voice_terms(connection, [] if voice is None else [voice])
            if account_id is None:
                return SubmitView(None, {}, book_id, book, now, voices=voices)
            plans = await self._plans(connection, [account_id])
            if account_id not in plans:
                raise UnknownAccount(account_id)
            plan, terms = plans[account_id]
            artifacts = await read_artifacts(connection, [(account_id, artifact_id) for artifact_id in artifact_ids])
            return SubmitView(plan, artifacts.get(account_id, {}), book_id, book, now, terms, voices)

    async def _views(self, connection: AsyncConnection, submissions: Sequence[Submission]) -> Mapping[str, SubmitView]:
        book_id, book, now = await self._price_books.current(connection)
        accounts = sorted({submission.account_id for submission in submissions})
        plans = await self._plans(connection, accounts)
        wanted = [(s.account_id, artifact_id) for s in submissions for artifact_id in s.artifact_ids]
        artifacts = await read_artifacts(connection, wanted)
        voices = await read_voice_terms(connection, sorted({s.voice for s in submissions if s.voice is not None}))
        return {
            account_id: SubmitView(plan, artifacts.get(account_id, {}), book_id, book, now, terms, voices)
            for account_id, (plan, terms) in plans.items()
        }

    async def _plans(
        self, connection: AsyncConnection, accounts: Sequence[str]
    ) -> dict[str, tuple[str | None, Plan | None]]:
        """Each account's plan by name, and its terms in the plan book in force. Unknown accounts are missing."""
        rows = (await connection.execute(_READ_PLANS, {"accounts": accounts})).all()
        if not rows:
            return {}
        book = await self._plan_books.numbered(connection, rows[0].plan_book)
        terms = await self._plan_books.terms(connection, {row.plan for row in rows if row.plan}, book)
        return {row.account_id: (row.plan, terms.get(row.plan)) for row in rows}


async def read_artifacts(
    connection: AsyncConnection, wanted: Sequence[tuple[str, UUID]]
) -> dict[str, dict[UUID, ArtifactFacts]]:
    """The artifacts of these (account, id) pairs that exist, by account and id."""
    found: dict[str, dict[UUID, ArtifactFacts]] = {}
    if wanted:
        keys = {"accounts": [pair[0] for pair in wanted], "artifacts": [pair[1] for pair in wanted]}
        for row in await connection.execute(_READ_ARTIFACTS, keys):
            found.setdefault(row.account_id, {})[row.artifact_id] = ArtifactFacts(*row[1:])
    return found


def _decided(submission: Submission, replayed: Any, views: Mapping[str, SubmitView]) -> Any:
    if replayed is not None:
        return _replay(submission, replayed)
    view = views.get(submission.account_id)
    if view is None:
        return UnknownAccount(submission.account_id)
    try:
        return submission.decide(view)
    except Exception as error:
        return error


def _replay(submission: Submission, row: Any) -> Submitted | Conflict:
    if bytes(row.body_hash) != submission.body_hash:
        key = submission.idempotency_key
        return Conflict("key", key, "was used before for another request; use a new key for a new job")
    return Submitted(row.job_id, row.account_id, row.kind, row.state, row.quoted, row.book_id, replayed=True)


def _identity(submission: Submission) -> tuple[str, str]:
    return submission.account_id, submission.idempotency_key


def _answer(submission: Submission, job: Any, stored: set[UUID], after: Mapping[Any, Any]) -> Any:
    if isinstance(job, NewJob) and job.job_id in stored:
        return Submitted(job.job_id, submission.account_id, job.kind, "queued", job.quoted, job.book_id, replayed=False)
    if isinstance(job, NewJob | InsufficientCredits):
        row = after.get(_identity(submission))
        return job if row is None else _replay(submission, row)
    return job


async def _read_replayed(connection: AsyncConnection, submissions: Sequence[Submission]) -> dict[tuple[str, str], Any]:
    keys = {
        "accounts": [submission.account_id for submission in submissions],
        "keys": [submission.idempotency_key for submission in submissions],
    }
    return {(row.account_id, row.idempotency_key): row for row in await connection.execute(_READ_BY_KEY, keys)}


async def _turns(
    connection: AsyncConnection, new: Sequence[tuple[Submission, NewJob]], views: Mapping[str, SubmitView]
) -> dict[UUID, int]:
    """The turn of each job that may run now. One for later takes its turn when its time has come."""
    now = [(s, job) for s, job in new if job.run_at is None or job.run_at <= views[s.account_id].now]
    taken = await take_turns(connection, [(s.account_id, job.queue, job.priority) for s, job in now]) if now else []
    return {job.job_id: turn for (_, job), turn in zip(now, taken, strict=True)}


async def _insert(
    connection: AsyncConnection, new: Sequence[tuple[Submission, NewJob]], turns: Mapping[UUID, int]
) -> set[UUID]:
    # In (account, key) order: two batches that share keys must meet them in the same order.
    new = sorted(new, key=lambda pair: (pair[0].account_id, pair[0].idempotency_key))
    columns = {
        "accounts": [s.account_id for s, _ in new],
        "keys": [s.idempotency_key for s, _ in new],
        "hashes": [s.body_hash for s, _ in new],
        "jobs": [job.job_id for _, job in new],
        "kinds": [job.kind for _, job in new],
        "queues": [job.queue for _, job in new],
        "requests": [_encode(job.request).decode() for _, job in new],
        "inputs": [_encode(job.inputs).decode() for _, job in new],
        "metadata": [_encode(job.metadata).decode() for _, job in new],
        "quoted": [job.quoted for _, job in new],
        "books": [job.book_id for _, job in new],
        "plans": [job.plan for _, job in new],
        "priorities": [job.priority for _, job in new],
        "turns": [turns.get(job.job_id) for _, job in new],
        "on_insufficient": [job.on_insufficient for _, job in new],
        "max_credits": [job.max_credits for _, job in new],
        "run_at": [job.run_at for _, job in new],
        "ends_by": [job.ends_by for _, job in new],
        "seconds": [job.job_seconds for _, job in new],
        "retry_of": [job.retry_of for _, job in new],
        "actors": [job.actor for _, job in new],
        "traces": [job.traceparent for _, job in new],
        "failures_max": [job.failures_max for _, job in new],
    }
    return set((await connection.execute(_INSERT_JOBS, columns)).scalars())


#: The number of the plan book comes along, once a statement: a statement of its own would cost more than both.
_READ_PLANS = text("""
    SELECT account_id, plan,
           (
               SELECT book_id
               FROM plan_books
               WHERE effective_at <= fermata_now()
                 AND withdrawn_at IS NULL
               ORDER BY effective_at DESC
               LIMIT 1
           ) AS plan_book
    FROM accounts
    WHERE account_id = ANY(CAST(:accounts AS text[]))
""")

_READ_ARTIFACTS = text("""
    SELECT a.account_id, a.artifact_id, a.name, a.media_type, a.storage_key, a.sha256, a.frames, a.sample_rate,
           a.channels, a.bytes
    FROM unnest(CAST(:accounts AS text[]), CAST(:artifacts AS uuid[])) AS wanted (account_id, artifact_id)
    JOIN artifacts AS a USING (account_id, artifact_id)
""")

_READ_BY_KEY = text("""
    SELECT wanted.account_id, wanted.idempotency_key, j.body_hash, j.job_id, j.kind, j.state, j.quoted, j.book_id
    FROM unnest(CAST(:accounts AS text[]), CAST(:keys AS text[])) AS wanted (account_id, idempotency_key)
    CROSS JOIN LATERAL (
        SELECT body_hash, job_id, kind, state, quoted, book_id
        FROM jobs
        WHERE account_id = wanted.account_id
          AND idempotency_key = wanted.idempotency_key
        OFFSET 0  -- a look-up for each key, whatever the statistics say
    ) AS j
""")

_INSERT_JOBS = text("""
    WITH clock AS MATERIALIZED (
        SELECT fermata_now() AS now
    ), asked AS MATERIALIZED (
        SELECT u.*
        FROM unnest(CAST(:accounts AS text[]), CAST(:keys AS text[]), CAST(:hashes AS bytea[]),
                    CAST(:jobs AS uuid[]), CAST(:kinds AS text[]), CAST(:queues AS text[]),
                    CAST(:requests AS jsonb[]), CAST(:inputs AS jsonb[]), CAST(:metadata AS jsonb[]),
                    CAST(:quoted AS bigint[]), CAST(:books AS integer[]), CAST(:plans AS text[]),
                    CAST(:priorities AS smallint[]), CAST(:on_insufficient AS text[]),
                    CAST(:max_credits AS bigint[]), CAST(:run_at AS timestamptz[]),
                    CAST(:ends_by AS timestamptz[]), CAST(:seconds AS double precision[]),
                    CAST(:retry_of AS uuid[]), CAST(:actors AS text[]), CAST(:traces AS text[]),
                    CAST(:failures_max AS smallint[]), CAST(:turns AS bigint[]))
             WITH ORDINALITY
             AS u (account_id, idempotency_key, body_hash, job_id, kind, queue, request, inputs, metadata, quoted,
                   book_id, plan, priority, on_insufficient, max_credits, run_at, ends_by, seconds, retry_of,
                   actor, traceparent, failures_max, turn, position)
    ), stored AS (
        INSERT INTO jobs (account_id, idempotency_key, body_hash, job_id, kind, queue, state, request, inputs,
                          metadata, quoted, book_id, plan, priority, on_insufficient, max_credits, run_at, ends_by,
                          retry_of, actor, traceparent, created_at, failures_max)
        SELECT u.account_id, u.idempotency_key, u.body_hash, u.job_id, u.kind, u.queue, 'queued', u.request,
               u.inputs, u.metadata, u.quoted, u.book_id, u.plan, u.priority, u.on_insufficient, u.max_credits,
               u.run_at,
               COALESCE(u.ends_by, GREATEST(u.run_at, clock.now) + make_interval(secs => u.seconds)),
               u.retry_of, u.actor, u.traceparent, clock.now, u.failures_max
        FROM asked AS u
        CROSS JOIN clock
        ORDER BY u.position
        ON CONFLICT DO NOTHING
        RETURNING job_id
    ), queued AS (
        INSERT INTO due (account_id, job_id, queue, kind, priority, turn, since, not_before, ends_by, waits_for)
        SELECT u.account_id, u.job_id, u.queue, u.kind, u.priority, COALESCE(u.turn, 0),
               GREATEST(u.run_at, clock.now), GREATEST(u.run_at, clock.now),
               COALESCE(u.ends_by, GREATEST(u.run_at, clock.now) + make_interval(secs => u.seconds)),
               CASE WHEN u.turn IS NULL THEN 'run_at' END
        FROM asked AS u
        CROSS JOIN clock
        WHERE (u.job_id IN (SELECT job_id FROM stored)) IS TRUE  -- hashed; as a join it would be each with each
    ), told AS MATERIALIZED (
        SELECT pg_notify('fermata_due', '')
        WHERE EXISTS (SELECT FROM stored)
    )
    SELECT stored.job_id
    FROM stored
    LEFT JOIN told ON true
""")
