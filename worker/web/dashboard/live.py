"""One look a second for everybody: however many watch, PostgreSQL is sent one statement, and none for nobody.

Every page that shows the overview, and every stream that keeps it moving, takes the latest look. A look that takes
long makes the pause before the next one longer: watching never takes more than a fifth of one connection's time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic
from uuid import UUID

import structlog

from worker.store.errors import StoreError
from worker.store.reads_overview import JobGlance, Now, OverviewReads, Slow
from worker.web.dashboard.history import History

log = structlog.get_logger(__name__)

#: Seconds between looks, and between looks at what moves slowly.
PAUSE_SECONDS, SLOW_SECONDS = 1.0, 5.0
#: The longest pause after looks that fail by a mistake of ours, each twice as long as the one before.
MISTAKEN_SECONDS_MAX = 60.0
#: A look may take at most this part of the time.
_SHARE = 5
#: The shortest and the longest pause, whatever a look took: who was frozen in one took no time of PostgreSQL.
_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 0.05, 10.0
#: A look that has no answer after so long is told of as one that fails; it goes on, its limit is much longer.
DOUBT_SECONDS = 5.0
#: A stream ends after so long and is opened anew by the page: then its session is checked again.
STREAM_SECONDS = 300.0

#: Whether whoever watches may still be shown anything.
Welcome = Callable[[], bool]


def everybody() -> bool:
    """Of streams that nobody needs to sign in for."""
    return True


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. `number` grows with each look; `away` says that the books did not answer since."""

    number: int
    now: Now
    slow: Slow
    history: History
    away: bool = False

    def glance(self, job_id: UUID) -> JobGlance | None:
        """A watched job, as it was seen."""
        return next((seen for seen in self.now.watched if seen.id == job_id), None)


def pause_after(took_seconds: float, pause_seconds: float, *, answered: bool) -> float:
    """Seconds until the next look. One without an answer waited, it cost PostgreSQL nothing: whoever watches is to see
    soon that it is back.
    """
    share = min(took_seconds * (_SHARE - 1), _PAUSE_SECONDS_MAX) if answered else 0.0
    return max(pause_seconds - took_seconds, share, _PAUSE_SECONDS_MIN)


@dataclass(slots=True)
class Live:
    """The shared look of one API process."""

    reads: OverviewReads
    pause_seconds: float = PAUSE_SECONDS
    doubt_seconds: float = DOUBT_SECONDS
    history: History = field(default_factory=History)
    #: Looks so far: tests and metrics count them.
    looks: int = 0
    _latest: Look | None = None
    _looked_at: float = float("-inf")
    #: The database's clock at a look, and ours right after it.
    _clock: tuple[datetime, float] | None = None
    _slow: Slow | None = None
    _slow_at: float = float("-inf")
    _viewers: int = 0
    #: Of these, who watches what runs.
    _in_hand: int = 0
    _watched: Counter[UUID] = field(default_factory=Counter)
    _looking: asyncio.Task[None] | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _one_look: asyncio.Lock = field(default_factory=asyncio.Lock)
    _parts: dict[str, bytes] = field(default_factory=dict)

    @property
    def viewers(self) -> int:
        """Streams that are open."""
        return self._viewers

    async def latest(self) -> Look:
        """The latest look, at most a second old. Many who ask at once wait for the same one."""
        async with self._one_look:
            if self._latest is None or self._latest.away or monotonic() - self._looked_at > self.pause_seconds:
                await self._look()
        assert self._latest is not None
        return self._latest

    def outdated(self) -> None:
        """Something was just changed from here: whoever comes next is to see it."""
        self._looked_at = float("-inf")

    async def now(self) -> datetime:
        """The database's clock, as of the latest look."""
        return (await self.latest()).now.now

    async def looks_from(
        self, watched: UUID | None = None, welcome: Welcome = everybody, *, in_hand: bool = False
    ) -> AsyncGenerator[Look]:
        """Each new look from the present one on; a slow reader skips those that it missed. Ends by itself, and with
        the next look once whoever watches is not welcome any more. With `in_hand` looks read what runs, too; the
        present one may not have.

        Close it as soon as nobody reads on (`aclosing`): while it is open, it keeps us looking.
        """
        fresh = monotonic() - self._looked_at <= self.pause_seconds
        ends, seen = monotonic() + STREAM_SECONDS, 0 if fresh else self.looks
        with self._watching(watched, in_hand=in_hand):
            while monotonic() < ends:
                look = await self._after(seen)
                if not welcome():
                    return
                seen = look.number
                yield look

    def part(self, name: str, look: Look, make: Callable[[Look], str]) -> bytes:
        """A part of a page, made once a look for all who are shown it."""
        key = f"{look.number} {look.away} {name}"
        if key not in self._parts:
            if not any(kept.startswith(f"{look.number} ") for kept in self._parts):
                self._parts.clear()
            self._parts[key] = make(look).encode()
        return self._parts[key]

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _after(self, number: int) -> Look:
        async with self._changed:
            await self._changed.wait_for(lambda: self._latest is not None and self._latest.number > number)
        assert self._latest is not None
        return self._latest

    @contextmanager
    def _watching(self, job_id: UUID | None, *, in_hand: bool) -> Iterator[None]:
        self._viewers += 1
        self._in_hand += in_hand
        if job_id is not None:
            self._watched[job_id] += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())
        try:
            yield
        finally:
            self._viewers -= 1
            self._in_hand -= in_hand
            if job_id is not None:
                self._watched[job_id] -= 1
                self._watched += Counter()  # forget those that nobody watches

    async def _keep_looking(self) -> None:
        pause = self.pause_seconds
        while self._viewers:
            started, doubt = monotonic(), asyncio.create_task(self._doubt())
            try:
                async with self._one_look:
                    await self._look()
                pause, answered = self.pause_seconds, True
            except StoreError as error:
                log.warning("the overview could not be read", error=str(error))
                self._say_away(again=True)
                answered = False
            except Exception:
                # Whoever watches is told, and a mistake that passes is forgotten.
                log.exception("the overview could not be read by a mistake of ours")
                self._say_away()
                pause, answered = min(2 * pause, MISTAKEN_SECONDS_MAX), False
            finally:
                doubt.cancel()
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(pause_after(monotonic() - started, pause, answered=answered))

    async def _doubt(self) -> None:
        """Tell whoever watches that no answer comes, long before the look gives up; and that we are still there."""
        while True:
            await asyncio.sleep(self.doubt_seconds)
            self._say_away(again=True)
            async with self._changed:
                self._changed.notify_all()

    async def _look(self) -> None:
        slow_is_due = self._slow is None or monotonic() - self._slow_at > SLOW_SECONDS
        recent, *past = self.history.wanted(await self._about_now())
        # While somebody watches, a piece of the past can wait for the next look, which has nothing slow to read.
        # Without a stream looks come seldom, everything slow is due at each, and the past would never be read.
        watched_on = self._clock is not None and monotonic() - self._clock[1] < SLOW_SECONDS
        windows = [recent] if slow_is_due and watched_on else [recent, *past]
        seen = await self.reads.look(self._watched.keys(), windows, slow=slow_is_due, in_hand=self._in_hand > 0)
        self._clock = (seen.now.now, monotonic())
        if seen.slow is not None:
            self._slow, self._slow_at = seen.slow, monotonic()
        for since, until in windows:
            ended = (row for row in seen.ended if since <= row.minute < until)
            self.history = self.history.with_ended(ended, since, until)
        assert self._slow is not None
        self.looks += 1
        self._latest = Look(self.looks, seen.now, self._slow, self.history)
        self._looked_at = monotonic()

    async def _about_now(self) -> datetime:
        """The database's clock, near enough to say which minutes to read: the first look alone has to ask."""
        if self._clock is None:
            return await self.reads.clock()
        seen, at = self._clock
        return seen + timedelta(seconds=monotonic() - at)

    def _say_away(self, *, again: bool = False) -> None:
        """`again`: also to those who know it, whose page would else take us for gone."""
        if self._latest is not None and (again or not self._latest.away):
            self.looks += 1
            last = self._latest
            self._latest = Look(self.looks, last.now, last.slow, last.history, away=True)
