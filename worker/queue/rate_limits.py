"""How much each caller took of what it may take: counted in Redis for all processes, here alone while it is away.

A limit protects us; it is no promise about money. So whatever Redis does, nobody waits long and nobody is turned
away for its sake.
"""

from __future__ import annotations

from time import monotonic

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

#: Seconds that a request may wait for Redis, and for which nobody asks a Redis again that failed.
_TIMEOUT_SECONDS, _AWAY_SECONDS = 0.5, 5.0


class RateLimits:
    """Counters by name, each for a minute from its first use."""

    def __init__(self, redis_url: str | None, namespace: str) -> None:
        """Connects on first use; without a URL everything is counted here."""
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._shared: FixedWindowRateLimiter | None = None
        self._pool: redis.ConnectionPool | None = None
        self._away_until = 0.0
        if redis_url is not None:
            self._pool = redis.ConnectionPool.from_url(
                redis_url,
                max_connections=16,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
            )
            self._shared = FixedWindowRateLimiter(
                RedisStorage(
                    "async+redis://",
                    connection_pool=self._pool,  # type: ignore[arg-type]  # its own type covers URL options only
                    implementation="redispy",
                    key_prefix=f"{namespace}:limits",
                )
            )

    async def take(self, name: str, per_minute: int, amount: int = 1) -> bool:
        """Count `amount` against what `name` may take in a minute; False where that is too much."""
        item = RateLimitItemPerMinute(per_minute)
        if self._shared is not None and monotonic() >= self._away_until:
            try:
                return await self._shared.hit(item, name, cost=amount)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = monotonic() + _AWAY_SECONDS
                log.warning("limits are counted here alone while Redis is away", error=type(error).__name__)
        return await self._here.hit(item, name, cost=amount)

    async def close(self) -> None:
        """Let the connections go."""
        if self._pool is not None:
            await self._pool.aclose()
