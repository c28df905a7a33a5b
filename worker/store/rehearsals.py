"""Rehearsals that were made: of which document, when, by whom, and what they found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.price_changes import KindChange, changes_above
from worker.credits.prices import WIDEST_BOUNDS, parse_price_book
from worker.credits.rehearsal import Outcome
from worker.store.book_shelf import Approval, Follower
from worker.store.database import transaction
from worker.store.errors import Refused
from worker.store.past_jobs import Period


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A draft was tried out on the jobs of a period. `against`: the book in force then."""

    rehearsal: int
    digest: str
    against: int
    since: datetime
    until: datetime
    outcome: Outcome


class Rehearsals:
    """The book of rehearsals."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def keep(self, digest: str, against: int, period: Period, outcome: Outcome, actor: str) -> Rehearsed:
        """Write down that this document was rehearsed, and what came of it."""
        values = {
            "digest": digest,
            "against": against,
            "since": period.since,
            "until": period.until,
            "actor": actor,
            "outcome": msgspec.json.encode(outcome).decode(),
        }
        async with transaction(self._engine, "keep_rehearsal") as connection:
            number = (await connection.execute(_KEEP, values)).scalar_one()
        return Rehearsed(number, digest, against, period.since, period.until, outcome)


def rehearsed_or_forced(percent_max: int) -> Approval:
    """Lets a book follow another that changes nothing much, or was rehearsed as it is, or is forced with a reason.

    A rehearsal counts for the kinds of which it looked at a job: over nothing it says nothing. Raises `Refused` for
    others: with each kind that changes by more than `percent_max` percent for some request, and each ending that
    charges that much more or less of the hold.
    """

    async def approve(connection: AsyncConnection, before: str, follower: Follower) -> None:
        old, new = (parse_price_book(document, bounds=WIDEST_BOUNDS) for document in (before, follower.document))
        large = changes_above(old, new, percent_max)
        if not large or follower.forced is not None:
            return
        looked_at = [row.kinds for row in await connection.execute(_LOOKED_AT, {"digest": follower.digest})]
        changed = {change.kind for change in large if isinstance(change, KindChange)}
        unseen = changed.difference(*looked_at)
        if any(looked_at) and not unseen:
            return
        said = f"{'; '.join(map(str, large))}: more than {percent_max} % (FERMATA_PRICE_CHANGE_PERCENT_MAX)"
        raise Refused("rehearsal", _refusal(said, follower, _short_of(looked_at, unseen)))

    return approve


def _short_of(looked_at: Sequence[Sequence[str]], unseen: Collection[str]) -> str | None:
    """What the document's rehearsals did not look at; None if there was none."""
    if not looked_at:
        return None
    return f"no job of {', '.join(sorted(unseen))}" if any(looked_at) else "no job at all"


def _refusal(changes: str, follower: Follower, short_of: str | None) -> str:
    planned = f"the planned book {follower.book} would then bring a large change: " if follower.book is not None else ""
    if short_of is not None:
        way = (
            f"withdraw it first (`fermata prices withdraw {follower.book}`)"
            if planned
            else "say with --force why it goes without"
        )
        return (
            f"{planned}{changes}. It was rehearsed, but on {short_of}: look further back (`fermata prices rehearse … "
            f"--since 52w`) or, where none ever ran, {way}"
        )
    if not planned:
        return f"{changes}. Try this very document out with `fermata prices rehearse`, or say with --force why not"
    return (
        f"{planned}{changes}. Withdraw it first (`fermata prices withdraw {follower.book}`), or try its document "
        f"(`fermata prices show --book {follower.book}`) out with `fermata prices rehearse`"
    )


_KEEP = text("""
    INSERT INTO rehearsals (digest, against, since, until, at, actor, outcome)
    VALUES (:digest, :against, :since, :until, fermata_now(), :actor, CAST(:outcome AS jsonb))
    RETURNING rehearsal_id
""")

#: Of each rehearsal the kinds of which it priced jobs; of one that found none, or could price none, no kind.
_LOOKED_AT = text("""
    SELECT CASE
               WHEN CAST(outcome->>'jobs' AS bigint) > CAST(outcome->>'unpriced' AS bigint)
               THEN ARRAY(SELECT kind->>'name' FROM jsonb_array_elements(outcome->'kinds') AS kind)
               ELSE CAST(ARRAY[] AS text[])
           END AS kinds
    FROM rehearsals
    WHERE digest = :digest
""")
