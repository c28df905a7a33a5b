"""News of jobs for all who follow one here: one look at the books for all of them together, whoever many they are."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from worker.store.api_keys import KeyShown, Role
from worker.store.errors import StoreError
from worker.store.reads_following import FollowingReads, Pulse
from worker.web.problems import Problem

log = structlog.get_logger(__name__)

#: Seconds between looks, while anybody follows anything.
TICK_SECONDS = 0.25
#: Followers of one process.
FOLLOWERS_MAX = 5_000


@dataclass(slots=True, eq=False)
class Follower:
    """One who waits for news of one job."""

    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self._news.set()

    async def news(self, seconds: float) -> bool:
        """Wait for news, for so long; whether there are any. News that came before this call count."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        told = self._news.is_set()
        self._news.clear()
        return told


@dataclass(slots=True)
class _Watched:
    followers: set[Follower] = field(default_factory=set)
    pulse: Pulse | None = None


@dataclass(slots=True)
class Watcher:
    """The jobs that somebody follows here, and the one task that looks."""

    reads: FollowingReads
    #: Followers that one key may have here, and one customer's token.
    per_key: int
    per_token: int
    _watched: dict[UUID, _Watched] = field(default_factory=dict)
    #: This process stops: who follows comes back to another one.
    closed: bool = False
    _count: int = 0
    _by_key: Counter[UUID] = field(default_factory=Counter)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def following(self, job_id: UUID, key: KeyShown) -> Iterator[Follower]:
        """Hear of a job for as long as the block. Raises `Problem` 503 where too many do already, 429 where that key
        has had its share.
        """
        most = self.per_token if key.role is Role.CUSTOMER else self.per_key
        if self._by_key[key.id] >= most:
            raise Problem(429, f"this key follows {most:,} jobs here already", headers={"Retry-After": "5"})
        if self._count >= FOLLOWERS_MAX:
            raise Problem(503, "too many follow jobs here: try again", headers={"Retry-After": "5"})
        follower = Follower()
        watched = self._watched.setdefault(job_id, _Watched())
        watched.followers.add(follower)
        self._count += 1
        self._by_key[key.id] += 1
        self._wake.set()
        try:
            yield follower
        finally:
            self._count -= 1
            self._by_key[key.id] -= 1
            if not self._by_key[key.id]:
                del self._by_key[key.id]
            watched.followers.discard(follower)
            if not watched.followers:
                self._watched.pop(job_id, None)

    def close(self) -> None:
        """Let everybody go, who then hear no more here."""
        self.closed = True
        for watched in self._watched.values():
            for follower in watched.followers:
                follower.tell()

    async def run(self) -> None:
        """Look until cancelled. While the books are away nobody hears anything, and nobody is cut off."""
        while True:
            if not self._watched:
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._look()
            except StoreError as error:
                log.warning("followers hear nothing", error=str(error))
            await asyncio.sleep(TICK_SECONDS)

    async def _look(self) -> None:
        pulses = await self.reads.pulses(list(self._watched))
        for job_id, pulse in pulses.items():
            watched = self._watched.get(job_id)
            if watched is not None and watched.pulse != pulse:
                watched.pulse = pulse
                for follower in watched.followers:
                    follower.tell()
