"""Whose streams are open here: their sessions are asked for together, so that many cost PostgreSQL as much as one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from worker.store.api_keys import hash_of
from worker.store.errors import StoreError
from worker.store.sessions import Sessions
from worker.web.dashboard.live import Welcome

log = structlog.get_logger(__name__)

#: Seconds between two questions whether the sessions are open. A stream ends with the next look after the answer:
#: within some six seconds, as long as PostgreSQL answers.
ASK_SECONDS = 4.0


@dataclass(slots=True)
class Guests:
    """The sessions of one API process's streams. One statement for all of them, and none for nobody."""

    sessions: Sessions
    ask_seconds: float = ASK_SECONDS
    #: How often it was asked so far.
    asks: int = 0
    _here: Counter[bytes] = field(default_factory=Counter)
    _over: set[bytes] = field(default_factory=set)
    _asking: asyncio.Task[None] | None = None

    @contextmanager
    def staying(self, secret: str) -> Iterator[Welcome]:
        """A stream of this session, for as long as the block. What it is given says whether the session still opens."""
        digest = hash_of(secret)
        self._here[digest] += 1
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._keep_asking())
        try:
            yield lambda: digest not in self._over
        finally:
            self._here[digest] -= 1
            if not self._here[digest]:
                del self._here[digest]
                self._over.discard(digest)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _keep_asking(self) -> None:
        while self._here:
            await asyncio.sleep(self.ask_seconds)
            here = set(self._here)
            self.asks += 1
            try:
                open_ones = await self.sessions.still_open(here)
            except StoreError as error:
                # Nobody can say now, and nobody is cut off.
                log.warning("sessions of streams could not be asked for", error=str(error))
            except Exception:
                # Asked no more, a stream would outlive its session.
                log.exception("sessions of streams could not be asked for by a mistake of ours")
            else:
                self._over |= (here - open_ones) & set(self._here)
