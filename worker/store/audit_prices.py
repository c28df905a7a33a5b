"""What the audit asks of prices: that a quote and a charge are what the job's own book makes of request and use.

By the very functions that quote and settle, row by row, in portions by key: memory stays flat however many jobs there
are. Quotes are asked of unfinished jobs only: a release may change what a kind uses at most, and what ended before it
is no error. What was used is on record, so finished work is priced again for as long as it is kept, and costs more
than its quote if the quote was too small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.credits.outcomes import Basis, Ending, charge_for
from worker.credits.prices import PriceBook, PriceTooHigh, UnknownPrice, Usage, price
from worker.store.reads_receipts import QuotedUsage
from worker.store.submits import ArtifactFacts, read_artifacts

#: Jobs of one portion. Their processor time is what whoever shares our event loop waits at a time: some 50 ms.
PORTION_JOBS = 1_000

#: A job can't be quoted or settled by a book that never was. Books are never deleted, however old their jobs.
BOOKS = text("""
    WITH broken AS MATERIALIZED (
        SELECT format('job %s of %s (%s) names price book %s, which is not there', job_id, account_id, state,
                      book_id) AS what
        FROM jobs AS j
        WHERE NOT EXISTS (SELECT FROM price_books AS b WHERE b.book_id = j.book_id)
    )
    SELECT 'book_is_there' AS rule, what
    FROM broken
    LIMIT :limit
""")

#: By its word: looking it up takes a tenth of `Ending(word)`.
_ENDINGS = {ending.value: ending for ending in Ending}

T = TypeVar("T")


class _Part(msgspec.Struct):
    """What one output used, as the attempt's row has it; `rejected` is set of one that was not good enough."""

    seconds_in: str
    seconds_out: str
    rejected: str | None = None


_document = msgspec.json.Decoder(dict[str, Any])
_parts = msgspec.json.Decoder(list[_Part])
_inputs = msgspec.json.Decoder(dict[str, UUID])


class _Unreadable(ValueError):
    """A document of the job's is not what anybody of ours writes."""


async def wrong_prices(
    connection: AsyncConnection,
    books: Mapping[int, PriceBook],
    since: datetime,
    quoted_usage: QuotedUsage,
    most: int,
) -> list[tuple[str, str]]:
    """(rule, what) of each unfinished job with a wrong quote and each sold one, ended since then, with a wrong charge.

    `books`: those that can be read; jobs of others are left out, and so is what a kind that is gone was quoted, work
    whose use was not recorded, and what an erasure took the request of. At most so many.
    """
    found: list[tuple[str, str]] = []
    async for rows in _portions(connection, since):
        artifacts = await _artifacts_of(connection, rows)
        for row in rows:
            book = books.get(row.book_id)
            if book is not None:
                problems = _judged(row, book, quoted_usage, artifacts)
                found += [(rule, f"{_named(row)}: {problem}") for rule, problem in problems]
        if len(found) >= most:
            break
    return found[:most]


async def _portions(connection: AsyncConnection, since: datetime) -> AsyncIterator[Sequence[Any]]:
    after: tuple[str, UUID] = ("", UUID(int=0))
    while True:
        values = {"account": after[0], "job": after[1], "since": since, "most": PORTION_JOBS}
        rows = (await connection.execute(_PORTION, values)).all()
        if rows:
            yield rows
        if len(rows) < PORTION_JOBS:
            return
        after = rows[-1].account_id, rows[-1].job_id


async def _artifacts_of(connection: AsyncConnection, rows: Sequence[Any]) -> Mapping[str, Mapping[UUID, ArtifactFacts]]:
    """What was measured of the inputs of unfinished jobs."""
    pairs = []
    for row in rows:
        if not row.is_sold and row.inputs != "{}":
            try:
                pairs += [(row.account_id, artifact_id) for artifact_id in _inputs.decode(row.inputs).values()]
            except msgspec.MsgspecError:
                continue  # said when the job is judged
    return await read_artifacts(connection, pairs) if pairs else {}


def _judged(
    row: Any, book: PriceBook, quoted_usage: QuotedUsage, artifacts: Mapping[str, Mapping[UUID, ArtifactFacts]]
) -> Sequence[tuple[str, str]]:
    try:
        if row.is_sold:
            return _charge_problems(row, book)
        return [("quote_is_price", problem) for problem in _quote_problems(row, book, quoted_usage, artifacts)]
    except _Unreadable as error:
        return [("charge_is_price" if row.is_sold else "quote_is_price", str(error))]


def _quote_problems(
    row: Any, book: PriceBook, quoted_usage: QuotedUsage, artifacts: Mapping[str, Mapping[UUID, ArtifactFacts]]
) -> Sequence[str]:
    if row.max_credits is not None and row.quoted > row.max_credits:
        return [f"quoted {row.quoted}, above the {row.max_credits} that were allowed"]
    request, inputs = _decoded(_document, row.request, "request"), _decoded(_inputs, row.inputs, "inputs")
    facts = artifacts.get(row.account_id, {})
    if any(artifact_id not in facts for artifact_id in inputs.values()):
        return ()
    usages = quoted_usage(row.kind, request, {name: facts[artifact_id] for name, artifact_id in inputs.items()})
    if usages is None:
        return ()
    total = _total(book, row, usages, request)
    return [f"quoted {row.quoted}, where the most that it can use costs {total}"] if row.quoted != total else ()


def _charge_problems(row: Any, book: PriceBook) -> Sequence[tuple[str, str]]:
    """As the settle came to its charge. Percentages, and what is free, other rules look at."""
    ending = _ENDINGS.get(row.reason)
    if ending is None or charge_for(book, ending, started=True).basis is not Basis.MEASURED or row.usage is None:
        return ()
    parts = _decoded(_parts, row.usage, "use")
    sold = [_usage_of(part) for part in parts if part.rejected is None]
    request = _decoded(_document, row.request, "request")
    # What had no output of its own to sell costs nothing.
    total = _total(book, row, sold, request) if sold else 0
    if total == row.charged <= row.quoted:
        return ()
    if not isinstance(total, int) or row.charged != min(total, row.quoted):
        return [("charge_is_price", f"charged {row.charged} of the {row.quoted} quoted, where its use costs {total}")]
    return [("quote_is_price", f"quoted {row.quoted}, where what it used costs {total}")]


def _total(book: PriceBook, row: Any, usages: Sequence[Usage], request: Mapping[str, Any]) -> int | str:
    try:
        return price(book, row.kind, usages, request, row.plan).total
    except (UnknownPrice, PriceTooHigh) as error:
        return f"what nobody can be asked for ({error})"


def _usage_of(part: _Part) -> Usage:
    try:
        return Usage(Decimal(part.seconds_in), Decimal(part.seconds_out))
    except (ValueError, InvalidOperation):
        raise _Unreadable(f"what it used can't be read: {part}") from None


def _decoded(decoder: msgspec.json.Decoder[T], document: str, what: str) -> T:
    try:
        return decoder.decode(document)
    except msgspec.MsgspecError as error:
        raise _Unreadable(f"its {what} can't be read: {error}") from None


def _named(row: Any) -> str:
    return f"job {row.job_id} of {row.account_id} ({row.kind}, price book {row.book_id}, plan {row.plan})"


#: Unfinished jobs, and those that were sold; charges of all others the outcome table tells.
_PORTION = text("""
    SELECT j.account_id, j.job_id, j.book_id, j.kind, j.plan, j.reason, j.quoted, j.charged, j.max_credits,
           j.ended_at IS NOT NULL AS is_sold,
           CAST(j.request AS text) AS request, CAST(j.inputs AS text) AS inputs, CAST(a.usage AS text) AS usage
    FROM (
        SELECT account_id, job_id, book_id, kind, plan, request, inputs, reason, quoted, charged, max_credits, attempt,
               ended_at
        FROM jobs
        WHERE (account_id, job_id) > (:account, CAST(:job AS uuid))
          AND (ended_at IS NULL OR (state = 'succeeded' AND ended_at >= :since))
          AND NOT EXISTS (
              SELECT FROM erasures AS e
              WHERE e.account_id = jobs.account_id
                AND e.at > jobs.ended_at
          )
        ORDER BY account_id, job_id
        LIMIT :most
    ) AS j
    LEFT JOIN LATERAL (
        SELECT usage
        FROM attempts
        WHERE account_id = j.account_id
          AND job_id = j.job_id
          AND attempt = j.attempt
          AND j.ended_at IS NOT NULL
        OFFSET 0
    ) AS a ON true
    ORDER BY j.account_id, j.job_id
""")
