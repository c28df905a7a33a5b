"""How fast a key may ask, and how often a stranger may guess."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from worker.queue.rate_limits import RateLimits
from worker.store.api_keys import KeyShown, Role
from worker.web.keyring import Keyring
from worker.web.problems import Problem

#: A process takes this share of a minute's requests at a time and spends it here: a question to Redis for each
#: request would cost more than many a request.
_SHARE = 200
#: What was taken and not spent after so many seconds is lost.
_SPENT_SECONDS = 5.0
#: Wrong keys from one address in a minute that are told to be wrong.
GUESSES_MAX = 60
_MINUTE = 60.0


@dataclass(slots=True)
class _Taken:
    left: int = 0
    until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class Rates:
    """Requests a minute, by key. A customer's token has a limit of its own."""

    limits: RateLimits
    per_minute: int
    tokens_per_minute: int
    _taken: dict[UUID, _Taken] = field(default_factory=dict)

    async def check(self, key: KeyShown) -> None:
        """Count a request. Raises `Problem` 429 where the key has had its share."""
        taken = self._taken.get(key.id)
        if taken is None:
            self._forget_old()
            taken = self._taken[key.id] = _Taken()
        if taken.left > 0 and monotonic() < taken.until:
            taken.left -= 1
            return
        async with taken.lock:
            if taken.left > 0 and monotonic() < taken.until:
                taken.left -= 1  # somebody else of this key has just asked
                return
            await self._take(key, taken)

    async def _take(self, key: KeyShown, taken: _Taken) -> None:
        most = self.tokens_per_minute if key.role is Role.CUSTOMER else self.per_minute
        share = max(1, most // _SHARE)
        if not await self.limits.take(f"key:{key.id}", most, share):
            raise Problem(429, f"more than {most:,} requests in a minute", headers={"Retry-After": "10"})
        taken.left, taken.until = share - 1, monotonic() + _SPENT_SECONDS

    def _forget_old(self) -> None:
        if len(self._taken) >= 10_000:
            now = monotonic()
            self._taken = {key: one for key, one in self._taken.items() if one.until > now or one.lock.locked()}


@dataclass(slots=True)
class Strangers:
    """Addresses that sent keys which open nothing. Behind a proxy that may be everybody's address: a right key is
    never turned away for others' wrong ones. What they cost is bounded: of an address that guesses, keys which are
    not known here are looked up two at a time.
    """

    keyring: Keyring
    _failed: dict[str, tuple[float, int]] = field(default_factory=dict)
    _few: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    async def opening(self, secret: str, address: str) -> KeyShown | None:
        """The key of this secret; None: it opens nothing. Raises `Problem` 429 instead where that was tried too often
        from this address in this minute.
        """
        if self._guesses(address) and not self.keyring.knows(secret):
            async with self._few:
                key = await self.keyring.opening(secret)
        else:
            key = await self.keyring.opening(secret)
        if key is None:
            self._count(address)
        return key

    def _guesses(self, address: str) -> bool:
        until, count = self._failed.get(address, (0.0, 0))
        return count >= GUESSES_MAX and monotonic() < until

    def _count(self, address: str) -> None:
        if self._guesses(address):
            raise Problem(429, "too many wrong keys from this address", headers={"Retry-After": "60"})
        now = monotonic()
        until, count = self._failed.get(address, (0.0, 0))
        if now >= until:
            until, count = now + _MINUTE, 0
            if len(self._failed) >= 10_000:
                self._failed = {one: seen for one, seen in self._failed.items() if seen[0] > now}
        self._failed[address] = (until, count + 1)
