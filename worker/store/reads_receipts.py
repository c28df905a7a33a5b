"""A job's receipt: which lots paid, by which rules of which book, what was measured, and why the rest came back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, assert_never
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.allocation import Draw, split
from worker.credits.lots import LotSource, Move
from worker.credits.outcomes import Basis, Charge, Ending, charge_for, rule_sentence, sentence_for
from worker.credits.page import REJECTED
from worker.credits.prices import Line, PriceBook, UnknownPrice, Usage, price
from worker.credits.refusals import Refusal
from worker.credits.states import JobState
from worker.store.prices import PriceBooks
from worker.store.reads_jobs import read_job
from worker.store.refusals import kept_refusal
from worker.store.snapshots import snapshot
from worker.store.submits import ArtifactFacts, read_artifacts

#: (kind, request, inputs by name) -> the most that the request could use, or None where nobody knows the kind.
QuotedUsage = Callable[[str, Mapping[str, Any], Mapping[str, ArtifactFacts]], Sequence[Usage] | None]


def no_usage(_kind: str, _request: Mapping[str, Any], _inputs: Mapping[str, ArtifactFacts]) -> None:
    """For processes that know no kinds: their receipts show the quote as one sum."""


@dataclass(frozen=True, slots=True)
class LotPaid:
    """One lot's part. `expired`, `revoked`: so much of what was returned expired with its lot, or was taken back since
    its purchase had been charged back. While it is held none of them is set."""

    lot: int
    source: str
    expires_at: datetime | None
    reserved: int
    charged: int
    returned: int
    expired: int
    revoked: int = 0


@dataclass(frozen=True, slots=True)
class LotGiven:
    """Credits that this job brought: a make-good for a lot that expired meanwhile, or a compensation."""

    lot: int
    credits: int
    reason: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Movement:
    """Credits of one lot that moved for this job: reserved, committed, refunded, made good; by whom and why."""

    at: datetime
    move: str
    amount: int
    lot: int
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class AttemptShown:
    """One run that ended. `usage`: what was measured of each output that it finished.

    `rejected`: what was measured of what its quality gates turned down, and why.
    """

    attempt: int
    worker: str
    started_at: datetime
    ended_at: datetime
    ending: str
    message: str | None
    usage: tuple[Mapping[str, str], ...]
    rejected: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything that explains a job's price. The lines of each list sum to its amount."""

    id: UUID
    account: str
    kind: str
    state: JobState
    reason: str | None
    sentence: str | None  # for the customer; None until it ended
    message: str | None
    partial: bool
    book: int
    plan: str | None
    quoted: int
    reserved: int
    charged: int
    refunded: int
    outcome: str | None  # what the book charges for this ending: "measured", "nothing", "25%"
    quote_lines: tuple[Line, ...]
    charge_lines: tuple[Line, ...]
    lots: tuple[LotPaid, ...]  # in the order in which they pay
    given: tuple[LotGiven, ...]
    attempts: tuple[AttemptShown, ...]
    created_at: datetime
    ended_at: datetime | None
    shortfall: Refusal | None  # of a job that was refused for want of credits
    rule: str | None  # what the book says of this way of ending, for the customer
    request: Mapping[str, Any]
    inputs: Mapping[str, str]
    movements: tuple[Movement, ...]  # the history of the hold, in order
    balance_before: int | None  # all that was available right before the hold; None if there was none
    balance_after: int | None  # all that was available once it was settled, other jobs' movements included


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What a receipt is made of."""

    job: Any
    draws: Sequence[Any]
    gone: Mapping[tuple[int, str], int]  # what a purchase's lot lost again of what came back to it
    given: Sequence[Any]
    attempts: Sequence[Any]
    book: PriceBook
    inputs: Mapping[str, ArtifactFacts]
    shortfall: Refusal | None
    movements: tuple[Movement, ...]
    balances: tuple[int | None, int | None]


class ReceiptReads:
    """Reads of what jobs cost, and why."""

    def __init__(self, engine: AsyncEngine, quoted_usage: QuotedUsage = no_usage) -> None:
        self._engine = engine
        self.quoted_usage = quoted_usage
        self._price_books = PriceBooks()

    async def receipt(self, job_id: UUID, account_id: str | None = None) -> Receipt:
        """The receipt of one job, finished or not. Raises `UnknownJob`, as `job` does."""
        async with snapshot(self._engine) as connection:
            gathered = await self._gather(connection, job_id, account_id)
        job = gathered.job
        charge = None
        if job.ended_at is not None:
            charge = charge_for(gathered.book, Ending(job.reason), started=job.attempt > 0)
        refunded = job.reserved - job.charged if job.settled_at is not None else 0
        return Receipt(
            id=job.job_id,
            account=job.account_id,
            kind=job.kind,
            state=JobState(job.state),
            reason=job.reason,
            sentence=sentence_for(Ending(job.reason), job.charged, refunded) if charge else None,
            message=job.message,
            partial=job.partial,
            book=job.book_id,
            plan=job.plan,
            quoted=job.quoted,
            reserved=job.reserved or 0,
            charged=job.charged or 0,
            refunded=refunded,
            outcome=charge.words if charge else None,
            quote_lines=self._quote_lines(gathered),
            charge_lines=_charge_lines(gathered, charge) if charge else (),
            lots=_lots_paid(job, gathered.draws, gathered.gone),
            given=tuple(LotGiven(*row) for row in gathered.given),
            attempts=tuple(_attempt_of(row) for row in gathered.attempts),
            created_at=job.created_at,
            ended_at=job.ended_at,
            shortfall=gathered.shortfall,
            rule=rule_sentence(charge, started=job.attempt > 0) if charge else None,
            request=job.request,
            inputs=job.inputs,
            movements=gathered.movements,
            balance_before=gathered.balances[0],
            balance_after=gathered.balances[1] if job.settled_at is not None else None,
        )

    async def _gather(self, connection: AsyncConnection, job_id: UUID, account_id: str | None) -> _Gathered:
        job = await read_job(connection, _JOB, job_id, account_id)
        key = {"account": job.account_id, "job": job.job_id}
        draws = (await connection.execute(_DRAWS, key)).all()
        gone = await _gone(connection, job, draws)
        given = (await connection.execute(_GIVEN, key)).all()
        attempts = (await connection.execute(_ATTEMPTS, key)).all()
        book = (await self._price_books.load(connection, [job.book_id]))[job.book_id]
        wanted = {name: UUID(artifact_id) for name, artifact_id in job.inputs.items()}
        found = await read_artifacts(connection, [(job.account_id, artifact_id) for artifact_id in wanted.values()])
        facts = found.get(job.account_id, {})
        inputs = {name: facts[artifact_id] for name, artifact_id in wanted.items() if artifact_id in facts}
        refused = job.reason == Ending.INSUFFICIENT_CREDITS
        shortfall = await kept_refusal(connection, job.account_id, job.job_id) if refused else None
        moved = (await connection.execute(_MOVEMENTS, key | {"since": job.created_at})).all()
        movements = tuple(Movement(*row[1:]) for row in moved)
        balances = await _balances(connection, job.account_id, [row.seq for row in moved if row.move in _OF_HOLD])
        return _Gathered(job, draws, gone, given, attempts, book, inputs, shortfall, movements, balances)

    def _quote_lines(self, gathered: _Gathered) -> tuple[Line, ...]:
        job = gathered.job
        usages = None
        if len(gathered.inputs) == len(job.inputs):  # an input that is gone can't be priced again
            usages = self.quoted_usage(job.kind, job.request, gathered.inputs)
        lines = () if usages is None else _priced(gathered, usages)
        return _summing_to(job.quoted, lines, "as quoted")


async def _balances(connection: AsyncConnection, account_id: str, seqs: Sequence[int]) -> tuple[int | None, int | None]:
    """What was available before the first and after the last of these entries: what there is now, counted back."""
    if not seqs:
        return None, None
    values = {"account": account_id, "first": seqs[0], "last": seqs[-1]}
    before, after = (await connection.execute(_BALANCES, values)).one()
    return before, after


def _attempt_of(row: Any) -> AttemptShown:
    return AttemptShown(
        *(row.attempt, row.worker_id, row.started_at, row.ended_at, row.ending, row.message),
        usage=_used(row),
        rejected=tuple(part for part in row.usage or () if REJECTED in part),
    )


def _used(attempt: Any) -> tuple[Mapping[str, str], ...]:
    """What an attempt's finished outputs used: what a gate has turned down is not among them."""
    return tuple(part for part in attempt.usage or () if REJECTED not in part)


def _charge_lines(gathered: _Gathered, charge: Charge) -> tuple[Line, ...]:
    """How the charge came about, by the same rules as the settle that made it."""
    job = gathered.job
    match charge.basis:
        case Basis.NOTHING:
            lines: tuple[Line, ...] = ()
        case Basis.HOLD:
            held = job.reserved or 0
            share = Decimal(charge.percent) / 100
            part = Line(f"{charge.percent}% of what was reserved", Decimal(held), share, held * share)
            lines = _summing_to(charge.amount(held=held, measured=0), (part,), "rounded up")
        case Basis.MEASURED:
            lines = _priced(gathered, _measured(gathered))
            above = sum((line.amount for line in lines), Decimal(0)) > job.quoted
            lines = _summing_to(job.quoted, lines, "not above the quote") if above else lines
        case _:
            assert_never(charge.basis)
    return _summing_to(job.charged, lines, "as settled")


def _measured(gathered: _Gathered) -> list[Usage]:
    """What the attempt that settled the job used."""
    job = gathered.job
    settled = [row for row in gathered.attempts if row.attempt == job.attempt]
    parts = _used(settled[0]) if settled else ()
    return [Usage(Decimal(part["seconds_in"]), Decimal(part["seconds_out"])) for part in parts]


def _priced(gathered: _Gathered, usages: Sequence[Usage]) -> tuple[Line, ...]:
    job = gathered.job
    try:
        return price(gathered.book, job.kind, usages, job.request, job.plan).lines if usages else ()
    except UnknownPrice:
        return ()


def _summing_to(total: int, lines: tuple[Line, ...], rule: str) -> tuple[Line, ...]:
    """The lines, and a last one of this name for what they don't explain: a receipt always adds up."""
    before = sum((line.amount for line in lines), Decimal(0))
    if before == total:
        return lines
    return (*lines, Line(rule, before, Decimal(1), total - before))


async def _gone(connection: AsyncConnection, job: Any, draws: Sequence[Any]) -> dict[tuple[int, str], int]:
    """By lot and move, from the journal: whether a purchase was frozen or charged back then, nobody else remembers.

    Seldom asked: only of bought lots that ever lost something so.
    """
    if job.settled_at is None or not any(row.source == LotSource.TOPUP and row.lost for row in draws):
        return {}
    key = {"account": job.account_id, "job": job.job_id, "at": job.settled_at}
    return {(row.lot_id, row.move): row.amount for row in await connection.execute(_GONE, key)}


def _lots_paid(job: Any, rows: Sequence[Any], gone: Mapping[tuple[int, str], int]) -> tuple[LotPaid, ...]:
    """In draw order. As long as the hold stands nothing is charged or returned."""
    if job.settled_at is None:
        return tuple(LotPaid(row.lot_id, row.source, row.expires_at, row.amount, 0, 0, 0) for row in rows)
    parts = split([Draw(row.lot_id, row.amount) for row in rows], job.reservation_charged)
    return tuple(
        LotPaid(
            row.lot_id,
            row.source,
            row.expires_at,
            row.amount,
            part.charged,
            part.returned,
            # Judged as the settle judged it: by its own instant.
            part.returned
            if row.expires_at is not None and row.expires_at <= job.settled_at
            else gone.get((row.lot_id, Move.EXPIRE), 0),
            gone.get((row.lot_id, Move.REVOKE), 0),
        )
        for row, part in zip(rows, parts, strict=True)
    )


#: The moves that make and end a hold; what is given for a job later is none of it.
_OF_HOLD = frozenset({"reserve", "commit", "refund"})

_JOB = text("""
    SELECT j.account_id, j.job_id, j.kind, j.state, j.reason, j.message, j.partial, j.book_id, j.plan, j.request,
           j.inputs, j.quoted, j.attempt, j.created_at, j.ended_at, j.charged,
           r.amount AS reserved, r.settled_at, r.charged AS reservation_charged
    FROM jobs AS j
    LEFT JOIN reservations AS r USING (account_id, job_id)
    WHERE j.job_id = :job
      AND (CAST(:account AS text) IS NULL OR j.account_id = :account)
""")

_DRAWS = text("""
    SELECT d.lot_id, l.source, l.expires_at, d.amount, l.expired + l.revoked > 0 AS lost
    FROM draws AS d
    JOIN lots AS l USING (account_id, lot_id)
    WHERE d.account_id = :account
      AND d.job_id = :job
    ORDER BY d.position
""")

_GONE = text("""
    SELECT lot_id, move, amount
    FROM journal
    WHERE account_id = :account
      AND at = :at
      AND job_id = :job
      AND move IN ('expire', 'revoke')
""")

_GIVEN = text("""
    SELECT lot_id, granted, reason, expires_at
    FROM lots
    WHERE account_id = :account
      AND job_id = :job
    ORDER BY lot_id
""")

_ATTEMPTS = text("""
    SELECT attempt, worker_id, started_at, ended_at, ending, message, usage
    FROM attempts
    WHERE account_id = :account
      AND job_id = :job
    ORDER BY attempt
""")

#: Since the job was submitted: older months of the journal are not looked at.
_MOVEMENTS = text("""
    SELECT seq, at, move, amount, lot_id, reason, actor
    FROM journal
    WHERE account_id = :account
      AND job_id = :job
      AND at >= :since
    ORDER BY seq
""")

_BALANCES = text("""
    WITH now AS (
        SELECT COALESCE(sum(available), 0) AS available
        FROM lots
        WHERE account_id = :account
    ), since AS (
        SELECT seq, CASE WHEN move IN ('grant', 'refund') THEN amount
                         WHEN move = 'commit' THEN 0
                         ELSE -amount END AS change
        FROM journal
        WHERE account_id = :account
          AND seq >= :first
    )
    SELECT CAST(now.available - (SELECT COALESCE(sum(change), 0) FROM since) AS bigint),
           CAST(now.available - (SELECT COALESCE(sum(change), 0) FROM since WHERE seq > :last) AS bigint)
    FROM now
""")
