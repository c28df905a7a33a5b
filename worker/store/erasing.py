"""Erasing an account: what people wrote and made goes, what was paid stays. Functions of the database do it.

A part is one transaction; whoever dies between two of them begins again, and what is gone stays gone. The first part
is its moment: nothing that was submitted, sold or put since goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading, transaction
from worker.store.errors import Refused, UnknownAccount

#: Jobs or artifacts of one transaction.
_ROWS = 500
#: Entries of the log that one transaction looks at; few of them are of one account.
_ENTRIES = 10_000


class Erasing:
    """The steps of an erasure, in their order."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def begin(self, account_id: str, actor: str, reason: str) -> None:
        """Note who erases it and why; its refusals, deliveries, endpoints and tokens go at once, and notes about it.

        Raises `UnknownAccount`, and `Refused` while it has unfinished jobs or a voice that is made of its sound.
        """
        values = {"account": account_id, "actor": actor, "reason": reason}
        async with transaction(self._engine, "erase_account") as connection:
            # Else somebody's submit may come between the look and the function, which has no words for it.
            if (await connection.execute(_LOCKED, values)).one_or_none() is None:
                raise UnknownAccount(account_id)
            found = (await connection.execute(_STANDING, values)).one()
            if found.unfinished:
                raise Refused(
                    "account",
                    f"{account_id} has {found.unfinished:,} unfinished job(s): let them end, or end them first with "
                    f"`fermata jobs cancel-many --account {account_id} --reason …`; nothing was erased",
                )
            if found.voice is not None:
                raise Refused(
                    "account",
                    f"the voice {found.voice!r} is made of its sound: take that away first with "
                    f"`fermata voices remove {found.voice}`; nothing was erased",
                )
            await connection.execute(_BEGIN, values)

    async def jobs(self, account_id: str, after: UUID, kept_fields: Sequence[str]) -> UUID | None:
        """Scrub the next jobs after that one; returns where to go on, None at the end."""
        values = {"account": account_id, "after": after, "kept": list(kept_fields), "most": _ROWS}
        async with transaction(self._engine, "erase_jobs") as connection:
            return (await connection.execute(_JOBS, values)).scalar_one_or_none()

    async def log(self, account_id: str, after: int) -> int | None:
        """Take its words out of the next entries of the log; returns where to go on, None at the end."""
        values = {"account": account_id, "after": after, "most": _ENTRIES}
        async with transaction(self._engine, "erase_log") as connection:
            return (await connection.execute(_LOG, values)).scalar_one_or_none()

    async def artifacts(self, account_id: str, after: UUID) -> Sequence[tuple[UUID, str]]:
        """The next artifacts after that one, of those that were there when it began, with their storage keys."""
        values = {"account": account_id, "after": after, "most": _ROWS}
        async with reading(self._engine) as connection:
            return [(row.artifact_id, row.storage_key) for row in await connection.execute(_ARTIFACTS, values)]

    async def forget(self, account_id: str, artifact_ids: Sequence[UUID]) -> int:
        """Delete the rows of artifacts whose files are gone; returns how many."""
        values = {"account": account_id, "artifacts": list(artifact_ids)}
        async with transaction(self._engine, "erase_artifacts") as connection:
            return int((await connection.execute(_FORGET, values)).scalar_one())


_LOCKED = text("""
    SELECT account_id
    FROM accounts
    WHERE account_id = :account
    FOR UPDATE
""")

_STANDING = text("""
    SELECT (SELECT count(*) FROM due WHERE account_id = :account)
           + (SELECT count(*) FROM live WHERE account_id = :account)
           + (SELECT count(*) FROM parked WHERE account_id = :account) AS unfinished,
           (SELECT min(name) FROM voices WHERE account_id = :account AND removed_at IS NULL) AS voice
""")

_BEGIN = text("SELECT fermata_erase_account(:account, :actor, :reason)")

_JOBS = text("SELECT fermata_erase_jobs(:account, :after, CAST(:kept AS text[]), :most)")

_LOG = text("SELECT fermata_erase_log(:account, :after, :most)")

_ARTIFACTS = text("""
    SELECT artifact_id, storage_key
    FROM artifacts
    WHERE account_id = :account
      AND artifact_id > :after
      AND created_at < (SELECT e.at FROM erasures AS e WHERE e.account_id = :account)
    ORDER BY artifact_id
    LIMIT :most
""")

_FORGET = text("SELECT fermata_erase_artifacts(:account, CAST(:artifacts AS uuid[]))")
