"""What an ended job had asked for, so that the same can be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.store.database import reading
from worker.store.errors import UnknownJob


@dataclass(frozen=True, slots=True)
class Asked:
    """A job's own words. Its prices and times are not among them: a retry is quoted afresh."""

    account_id: str
    kind: str
    state: str
    ended: bool
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    metadata: Mapping[str, Any]
    on_insufficient: str
    max_credits: int | None


class Retries:
    """Reads for `retry`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def asked(self, job_id: UUID) -> Asked:
        """What the job had asked for. Raises `UnknownJob`."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_ASKED, {"job": job_id})).one_or_none()
        if row is None:
            raise UnknownJob(job_id)
        return Asked(*row)


_ASKED = text("""
    SELECT account_id, kind, state, ended_at IS NOT NULL, request, inputs, metadata, on_insufficient, max_credits
    FROM jobs
    WHERE job_id = :job
""")
