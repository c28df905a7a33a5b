"""The registry of target voices: whose they are, who may use them, and the clip that each goes by.

A voice is never deleted: who removes one keeps new jobs from naming it; jobs that were taken before still run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.store.creations import Asked, made_before, note_made
from worker.store.database import reading, transaction
from worker.store.errors import Refused, UnknownVoice
from worker.store.reads_accounts import check_account


@dataclass(frozen=True, slots=True)
class VoiceTerms:
    """Who may use a voice. Both None: everybody."""

    name: str
    plans: tuple[str, ...] | None
    accounts: tuple[str, ...] | None
    removed: bool

    def allows(self, account_id: str, plan: str | None) -> bool:
        """Whether a new job of this account may name it: by its plan, or by itself."""
        if self.removed:
            return False
        if self.plans is None and self.accounts is None:
            return True
        return plan in (self.plans or ()) or account_id in (self.accounts or ())


@dataclass(frozen=True, slots=True)
class NewVoice:
    """A voice to be registered. `licence` and `consent` say by what right it is used, and who agreed to it."""

    name: str
    owner: str
    clip: UUID
    licence: str
    consent: str
    statistics: Mapping[str, str]
    plans: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class VoiceShown:
    """A voice as people see it."""

    name: str
    owner: str
    clip: UUID
    licence: str
    consent: str
    statistics: Mapping[str, str]
    plans: tuple[str, ...] | None
    accounts: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    removed_at: datetime | None


class Voices:
    """Reads and writes the registry."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, voice: NewVoice, actor: str, asked: Asked | None = None) -> VoiceShown:
        """Register a voice, once a request. Raises `Conflict`, and `Refused` if its name was used before, also by one
        that was removed.
        """
        async with transaction(self._engine, "add_voice") as connection:
            if await made_before(connection, asked) is not None:
                return _shown((await connection.execute(_ONE, {"name": voice.name})).one())
            row = (await connection.execute(_INSERT, _values(voice, actor))).one_or_none()
            if row is None:
                raise Refused("voice", f"there is or was a voice {voice.name!r}; choose another name")
            await note_made(connection, asked, voice.name)
            return _shown(row)

    async def listed(self, limit: int) -> tuple[VoiceShown, ...]:
        """Every voice, by name; those that were removed too."""
        async with reading(self._engine) as connection:
            return tuple(_shown(row) for row in await connection.execute(_LIST, {"limit": limit}))

    async def usable(self, account_id: str, limit: int) -> tuple[VoiceShown, ...]:
        """Those that a new job of this account may name, by name. Raises `UnknownAccount`."""
        async with reading(self._engine) as connection:
            rows = (await connection.execute(_USABLE, {"account": account_id, "limit": limit})).all()
            if not rows:
                await check_account(connection, account_id)
        return tuple(_shown(row) for row in rows)

    async def show(self, name: str) -> VoiceShown:
        """One voice. Raises `UnknownVoice`."""
        async with reading(self._engine) as connection:
            row = (await connection.execute(_ONE, {"name": name})).one_or_none()
        if row is None:
            raise UnknownVoice(name)
        return _shown(row)

    async def remove(self, name: str, actor: str) -> VoiceShown:
        """Let no new job name it. Once; the second time changes nothing. Raises `UnknownVoice`."""
        async with transaction(self._engine, "remove_voice") as connection:
            await connection.execute(_REMOVE, {"name": name, "actor": actor})
        return await self.show(name)


async def read_voice_terms(connection: AsyncConnection, names: Sequence[str]) -> Mapping[str, VoiceTerms]:
    """Of these voices, those that are or were there."""
    if not names:
        return {}
    rows = await connection.execute(_TERMS, {"names": list(names)})
    return {
        row.name: VoiceTerms(row.name, _tuple(row.plans), _tuple(row.accounts), row.removed_at is not None)
        for row in rows
    }


def _values(voice: NewVoice, actor: str) -> dict[str, Any]:
    return {
        "name": voice.name,
        "owner": voice.owner,
        "clip": voice.clip,
        "licence": voice.licence,
        "consent": voice.consent,
        "statistics": msgspec.json.encode(voice.statistics).decode(),
        "plans": None if voice.plans is None else list(voice.plans),
        "accounts": None if voice.accounts is None else list(voice.accounts),
        "actor": actor,
    }


def _shown(row: Any) -> VoiceShown:
    return VoiceShown(
        name=row.name,
        owner=row.account_id,
        clip=row.artifact_id,
        licence=row.licence,
        consent=row.consent,
        statistics=row.statistics,
        plans=_tuple(row.plans),
        accounts=_tuple(row.accounts),
        created_at=row.created_at,
        created_by=row.actor,
        removed_at=row.removed_at,
    )


def _tuple(found: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(found)


_INSERT = text("""
    INSERT INTO voices (name, account_id, artifact_id, licence, consent, statistics, plans, accounts, created_at, actor)
    VALUES (:name, :owner, :clip, :licence, :consent, CAST(:statistics AS jsonb), CAST(:plans AS text[]),
            CAST(:accounts AS text[]), fermata_now(), :actor)
    ON CONFLICT (name) DO NOTHING
    RETURNING name, account_id, artifact_id, licence, consent, statistics, plans, accounts, created_at, actor,
              removed_at
""")

_LIST = text("""
    SELECT name, account_id, artifact_id, licence, consent, statistics, plans, accounts, created_at, actor, removed_at
    FROM voices
    ORDER BY name
    LIMIT :limit
""")

#: As `VoiceTerms.allows` decides.
_USABLE = text("""
    SELECT v.name, v.account_id, v.artifact_id, v.licence, v.consent, v.statistics, v.plans, v.accounts, v.created_at,
           v.actor, v.removed_at
    FROM accounts AS a
    JOIN voices AS v
      ON v.removed_at IS NULL
     AND ((v.plans IS NULL AND v.accounts IS NULL) OR a.plan = ANY(v.plans) OR a.account_id = ANY(v.accounts))
    WHERE a.account_id = :account
    ORDER BY v.name
    LIMIT :limit
""")

_ONE = text("""
    SELECT name, account_id, artifact_id, licence, consent, statistics, plans, accounts, created_at, actor, removed_at
    FROM voices
    WHERE name = :name
""")

_REMOVE = text("""
    UPDATE voices
    SET removed_at = fermata_now(), changed_by = :actor
    WHERE name = :name
      AND removed_at IS NULL
""")

_TERMS = text("""
    SELECT name, plans, accounts, removed_at
    FROM voices
    WHERE name = ANY(CAST(:names AS text[]))
""")
