"""What runs have to do with providers elsewhere: links to give them, and their word that work is done.

Their word is only a hint to look at once. It may be lost, doubled, early, or of another attempt.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from worker.artifacts.store import ArtifactStore
from worker.links import Links

#: Seconds between two looks at least, whatever a provider says and how often.
LOOK_SECONDS_MIN = 0.25


@dataclass(frozen=True, slots=True)
class Stored:
    """An input as it is stored."""

    artifact_id: UUID
    storage_key: str


@dataclass(slots=True)
class Outside:
    """The providers' side of one process's runs."""

    artifacts: ArtifactStore
    links: Links | None
    #: Seconds that a link to an input holds: as long as an attempt may take.
    link_seconds: float
    _listening: dict[UUID, tuple[UUID, asyncio.Event]] = field(default_factory=dict)

    def heard(self, payload: str) -> None:
        """Of these jobs somebody said that they may be done; nothing said: maybe of any."""
        named = set(payload.split())
        for job_id, event in self._listening.values():
            if not named or str(job_id) in named:
                event.set()

    def listen(self, token: UUID, job_id: UUID) -> None:
        """Keep what is heard of an attempt's job from here on, also while nobody waits for it."""
        self._listening[token] = (job_id, asyncio.Event())

    def stop_listening(self, token: UUID) -> None:
        self._listening.pop(token, None)

    async def pause(self, token: UUID, seconds: float) -> None:
        """Wait so long, or less if something is heard or was heard since the last pause."""
        _, event = self._listening[token]
        rest = min(seconds, LOOK_SECONDS_MIN)
        await asyncio.sleep(rest)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - rest):
                await event.wait()
        event.clear()

    def completion_url(self, job_id: UUID) -> str | None:
        """Where a provider may say that this job's work is done."""
        return self.links.completion(job_id) if self.links else None

    async def input_url(self, stored: Stored) -> str | None:
        """Where a provider can fetch this input: at the bucket that it lies in, or through our API."""
        found = await self.artifacts.link(stored.storage_key, self.link_seconds)
        if found is None and self.links is not None:
            found = self.links.input(stored.artifact_id, int(time.time() + self.link_seconds))
        return found
