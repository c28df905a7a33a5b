"""Whether a process may be given work: what `/readyz` answers, as facts that anybody may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.queue.connection import QueueUnavailable, connect_async, surfacing
from worker.store.doctoring import known_head
from worker.store.errors import StoreError

#: Seconds after which a server that does not answer counts as away: whoever asks wants to know soon.
ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was looked at. `needed`: without it nothing should be sent here."""

    name: str
    ok: bool
    what: str
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Readiness:
    """All facts. `ready`: all that is needed holds."""

    ready: bool
    facts: tuple[Fact, ...]

    @property
    def why_not(self) -> str:
        """What is missing, on one line; empty if ready."""
        return "; ".join(f"{fact.name}: {fact.what}" for fact in self.facts if fact.needed and not fact.ok)


async def readiness_of(
    revision: Callable[[], Awaitable[str | None]], redis_url: str | None, draining: Callable[[], bool] = lambda: False
) -> Readiness:
    """Look at PostgreSQL, its migrations, Redis, and whether this process is about to end.

    `revision` asks the database for the migration it is at. Redis is told, not needed: submits, looks and cancels
    are taken without it, and hints follow later.
    """
    facts = (*await _books(revision), await _redis(redis_url), _staying(draining()))
    return Readiness(all(fact.ok for fact in facts if fact.needed), facts)


async def _books(ask: Callable[[], Awaitable[str | None]]) -> tuple[Fact, ...]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            revision = await ask()
    except (StoreError, TimeoutError) as error:
        return (Fact("PostgreSQL", ok=False, what=str(error) or "no answer in time"),)
    head = known_head()
    what = f"at {revision}" if revision == head else f"the schema is at {revision}, not {head}: run `fermata migrate`"
    return Fact("PostgreSQL", ok=True, what="answers"), Fact("migrations", ok=revision == head, what=what)


async def _redis(url: str | None) -> Fact:
    if url is None:
        return Fact("Redis", ok=False, what="not given", needed=False)
    client = connect_async(url)
    try:
        with surfacing():
            async with asyncio.timeout(ANSWER_SECONDS):
                await client.ping()
    except (QueueUnavailable, TimeoutError) as error:
        return Fact("Redis", ok=False, what=str(error) or "no answer in time", needed=False)
    finally:
        await client.aclose()
    return Fact("Redis", ok=True, what="answers", needed=False)


def _staying(draining: bool) -> Fact:
    return Fact("draining", ok=not draining, what="about to end" if draining else "no")
