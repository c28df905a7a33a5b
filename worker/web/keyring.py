"""Keys as a process remembers them: looked up once in some seconds, noted as used once in a minute."""

from __future__ import annotations

import asyncio
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
#: The longest that a key of ours can be. A longer one is hashed by nobody.
_LENGTH_MAX = 64


@dataclass(slots=True)
class Keyring:
    """The keys that this process met lately."""

    keys: ApiKeys
    _known: OrderedDict[bytes, tuple[float, KeyShown]] = field(default_factory=OrderedDict)
    _used: set[UUID] = field(default_factory=set)

    async def opening(self, secret: str) -> KeyShown | None:
        """The key of this secret, or None. Raises `LedgerUnavailable` where nobody can say."""
        if len(secret) > _LENGTH_MAX:
            return None
        # By its hash: a secret is not kept in memory longer than its request.
        digest = hash_of(secret)
        now = monotonic()
        found = self._known.get(digest)
        if found is None or found[0] < now:
            key = await self.keys.opening(secret)
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
        return len(secret) <= _LENGTH_MAX and hash_of(secret) in self._known

    def forget(self, key_id: UUID) -> None:
        """It was changed here: look it up again at its next use."""
        for digest in [digest for digest, (_, key) in self._known.items() if key.id == key_id]:
            self._known[digest] = (0.0, self._known[digest][1])

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
