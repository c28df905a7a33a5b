"""Keys as a process remembers them: looked up once in some seconds, noted as used once in a minute."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

import structlog

from worker.store.api_keys import ApiKeys, KeyShown, hash_of
from worker.store.errors import StoreError

log = structlog.get_logger(__name__)

#: For so long a key opens after it was looked up, in seconds: a revoked one is shut everywhere after this.
REMEMBERED_SECONDS = 4.0
#: Keys that a process remembers at most, the latest used.
_KEYS_MAX = 10_000
#: Seconds between writes of who was used.
_USED_SECONDS = 30.0
#: What a key of ours looks like. Nobody hashes or looks up anything else.
_SHAPE = re.compile(r"fmt_[A-Za-z0-9_-]{43}")


@dataclass(slots=True)
class Keyring:
    """The keys that this process met lately."""

    keys: ApiKeys
    _known: OrderedDict[bytes, tuple[float, KeyShown]] = field(default_factory=OrderedDict)
    _used: set[UUID] = field(default_factory=set)
    _asking: dict[bytes, asyncio.Task[KeyShown | None]] = field(default_factory=dict)

    async def opening(self, secret: str) -> KeyShown | None:
        """The key of this secret, or None. Raises `LedgerUnavailable` where nobody can say."""
        # By its hash: a secret is not kept in memory longer than its request.
        return await self.opening_by(hash_of(secret)) if _SHAPE.fullmatch(secret) else None

    async def opening_by(self, digest: bytes) -> KeyShown | None:
        """The same by the hash of the secret: for who holds a door open for long, whether it still may be."""
        now = monotonic()
        found = self._known.get(digest)
        if found is None or found[0] < now:
            key = await self._looked_up(digest)
            if key is None:
                self._known.pop(digest, None)
                return None
            found = (_until(key, now), key)
            self._known[digest] = found
            if len(self._known) > _KEYS_MAX:
                self._known.popitem(last=False)
        self._used.add(found[1].id)
        return found[1]

    def knows(self, secret: str) -> bool:
        """Whether it opened before, here."""
        return hash_of(secret) in self._known

    def forget(self, key_id: UUID) -> None:
        """It was changed here: look it up again at its next use, and the tokens that it minted."""
        for digest, (_, key) in self._known.items():
            if key_id in (key.id, key.minted_by):
                self._known[digest] = (0.0, key)

    async def _looked_up(self, digest: bytes) -> KeyShown | None:
        """All who ask for the same key at once wait for one answer."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self.keys.opening_by(digest))
            asking.add_done_callback(lambda done: self._answered(digest, done))
        # Whoever goes away does not take the answer from the others.
        return await asyncio.shield(asking)

    def _answered(self, digest: bytes, done: asyncio.Task[KeyShown | None]) -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # everybody who waits has it; nobody may be left

    async def note_use(self) -> None:
        """Write down which keys were used, every half minute, until cancelled."""
        while True:
            await asyncio.sleep(_USED_SECONDS)
            await self.write_used()

    async def write_used(self) -> None:
        """Write down which keys were used since the last time. If that fails, the next time will."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await self.keys.used(list(used))
        except StoreError as error:
            self._used |= used
            log.warning("use of keys not noted", keys=len(used), error=str(error))


def _until(key: KeyShown, now: float) -> float:
    """When to look again: never later than the key closes, by our own clock, which the next look corrects."""
    if key.expires_at is None:
        return now + REMEMBERED_SECONDS
    return now + max(0.0, min(REMEMBERED_SECONDS, (key.expires_at - datetime.now(UTC)).total_seconds()))
