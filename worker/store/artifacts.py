"""The register of artifacts: what was measured of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading, transaction
from worker.store.errors import UnknownAccount
from worker.store.submits import ArtifactFacts, read_artifacts


class Artifacts:
    """Reads and writes rows of `artifacts`. Outputs are registered by the settle that sells them, not here."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, account_id: str, facts: ArtifactFacts, actor: str) -> None:
        """Register an input. Raises `UnknownAccount`."""
        async with transaction(self._engine, "add_artifact") as connection:
            if not await connection.scalar(_ACCOUNT_EXISTS, {"account": account_id}):
                raise UnknownAccount(account_id)
            await connection.execute(
                _INSERT,
                {
                    "account": account_id,
                    "artifact": facts.artifact_id,
                    "name": facts.name,
                    "media_type": facts.media_type,
                    "storage_key": facts.storage_key,
                    "sha256": facts.sha256,
                    "frames": facts.frames,
                    "sample_rate": facts.sample_rate,
                    "channels": facts.channels,
                    "bytes": facts.bytes,
                    "actor": actor,
                },
            )

    async def read(self, account_id: str, artifact_ids: Sequence[UUID]) -> Mapping[UUID, ArtifactFacts]:
        """Those of the account's artifacts that exist."""
        async with reading(self._engine) as connection:
            found = await read_artifacts(connection, [(account_id, artifact_id) for artifact_id in artifact_ids])
        return found.get(account_id, {})

    async def live_tokens(self, tokens: Sequence[UUID]) -> frozenset[UUID]:
        """Of these attempts, those that run."""
        async with reading(self._engine) as connection:
            rows = await connection.execute(_LIVE_TOKENS, {"tokens": list(tokens)})
            return frozenset(rows.scalars())

    async def sold_tokens(self, pairs: Sequence[tuple[UUID, UUID]]) -> frozenset[UUID]:
        """Of these (job, token) pairs, the tokens whose outputs are registered."""
        keys = {"jobs": [job for job, _ in pairs], "tokens": [token for _, token in pairs]}
        async with reading(self._engine) as connection:
            return frozenset((await connection.execute(_SOLD_TOKENS, keys)).scalars())


_ACCOUNT_EXISTS = text("SELECT 1 FROM accounts WHERE account_id = :account")

_INSERT = text("""
    INSERT INTO artifacts (account_id, artifact_id, name, media_type, storage_key, sha256, frames, sample_rate,
                           channels, bytes, created_at, actor)
    VALUES (:account, :artifact, :name, :media_type, :storage_key, :sha256, :frames, :sample_rate, :channels,
            :bytes, fermata_now(), :actor)
""")

_LIVE_TOKENS = text("""
    SELECT token
    FROM live
    WHERE token = ANY(CAST(:tokens AS uuid[]))
""")

_SOLD_TOKENS = text("""
    SELECT DISTINCT a.token
    FROM unnest(CAST(:jobs AS uuid[]), CAST(:tokens AS uuid[])) AS u (job_id, token)
    JOIN jobs AS j ON j.job_id = u.job_id
    JOIN artifacts AS a ON a.account_id = j.account_id AND a.job_id = u.job_id AND a.token = u.token
""")
