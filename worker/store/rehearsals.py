"""Rehearsals that were made: of which document, when, by whom, and what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.credits.price_changes import large_changes
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

    Raises `Refused` for others: with each kind that changes by more than `percent_max` percent for some request, and
    each ending that charges that much more or less of the hold.
    """

    async def approve(connection: AsyncConnection, before: str, follower: Follower) -> None:
        old, new = (parse_price_book(document, bounds=WIDEST_BOUNDS) for document in (before, follower.document))
        large = large_changes(old, new, percent_max)
        if not large or follower.forced is not None:
            return
        if await connection.scalar(_LATEST, {"digest": follower.digest}) is None:
            raise Refused("rehearsal", _refusal(large, percent_max, follower))

    return approve


def _refusal(large: Sequence[str], percent_max: int, follower: Follower) -> str:
    changes = f"{'; '.join(large)}: more than {percent_max} % (FERMATA_PRICE_CHANGE_PERCENT_MAX)"
    if follower.book is None:
        return f"{changes}. Try this very document out with `fermata prices rehearse`, or say with --force why not"
    return (
        f"the planned book {follower.book} would then bring a large change: {changes}. Withdraw it first, or try its "
        f"document (`fermata prices show --book {follower.book}`) out with `fermata prices rehearse`"
    )


_KEEP = text("""
    INSERT INTO rehearsals (digest, against, since, until, at, actor, outcome)
    VALUES (:digest, :against, :since, :until, fermata_now(), :actor, CAST(:outcome AS jsonb))
    RETURNING rehearsal_id
""")

_LATEST = text("""
    SELECT rehearsal_id
    FROM rehearsals
    WHERE digest = :digest
    ORDER BY rehearsal_id DESC
    LIMIT 1
""")
