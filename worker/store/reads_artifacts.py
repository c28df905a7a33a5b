"""Which audio an account has, and where one piece of it lies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.errors import UnknownArtifact
from worker.store.reads_accounts import check_account, check_limit
from worker.store.snapshots import snapshot


@dataclass(frozen=True, slots=True)
class ArtifactShown:
    """One artifact. `job`: of which it is an output; None for what a customer put in."""

    artifact: UUID
    account: str
    name: str
    media_type: str
    seconds: float
    sample_rate: int
    channels: int
    bytes: int
    sha256: str
    job: UUID | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ArtifactsPage:
    """Some artifacts, the newest first. `next`: give it as `after` to go on; None at the end."""

    artifacts: tuple[ArtifactShown, ...]
    next: UUID | None


@dataclass(frozen=True, slots=True)
class ArtifactPlace:
    """Where an artifact lies, for whoever may read it."""

    shown: ArtifactShown
    storage_key: str


class ArtifactReads:
    """Reads about artifacts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def artifacts(self, account_id: str, limit: int = 50, after: UUID | None = None) -> ArtifactsPage:
        """A page of the account's artifacts, the newest first. Raises `UnknownAccount`."""
        check_limit(limit)
        values = {"account": account_id, "after": after, "limit": limit + 1}
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_OF_ACCOUNT, values)).all()
            if not rows:
                await check_account(connection, account_id)
        shown = tuple(_shown(row) for row in rows[:limit])
        return ArtifactsPage(shown, shown[-1].artifact if len(rows) > limit else None)

    async def place(self, artifact_id: UUID) -> ArtifactPlace:
        """One artifact and where it lies. Raises `UnknownArtifact`."""
        async with snapshot(self._engine) as connection:
            row = (await connection.execute(_PLACE, {"artifact": artifact_id})).first()
        if row is None:
            raise UnknownArtifact(artifact_id)
        return ArtifactPlace(_shown(row), row.storage_key)

    async def same_input(self, account_id: str, sha256: bytes) -> UUID | None:
        """What the account put in before, byte for byte the same; None if nothing is."""
        async with snapshot(self._engine) as connection:
            found: UUID | None = await connection.scalar(_SAME_INPUT, {"account": account_id, "sha256": sha256})
        return found


def _shown(row: Any) -> ArtifactShown:
    return ArtifactShown(
        artifact=row.artifact_id,
        account=row.account_id,
        name=row.name,
        media_type=row.media_type,
        seconds=round(row.frames / row.sample_rate, 6),
        sample_rate=row.sample_rate,
        channels=row.channels,
        bytes=row.bytes,
        sha256=bytes(row.sha256).hex(),
        job=row.job_id,
        created_at=row.created_at,
    )


_OF_ACCOUNT = text("""
    SELECT artifact_id, account_id, name, media_type, frames, sample_rate, channels, bytes, sha256, job_id, created_at
    FROM artifacts
    WHERE account_id = :account
      AND (CAST(:after AS uuid) IS NULL OR artifact_id < :after)
    ORDER BY artifact_id DESC
    LIMIT :limit
""")

_PLACE = text("""
    SELECT artifact_id, account_id, name, media_type, frames, sample_rate, channels, bytes, sha256, job_id,
           created_at, storage_key
    FROM artifacts
    WHERE artifact_id = :artifact
""")

_SAME_INPUT = text("""
    SELECT artifact_id
    FROM artifacts
    WHERE account_id = :account
      AND sha256 = :sha256
      AND job_id IS NULL
    ORDER BY artifact_id
    LIMIT 1
""")
