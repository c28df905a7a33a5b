"""What stands in Redis, for people: depths, what was put aside, and whether the server is set up for a queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.queue.connection import connect_async, surfacing
from worker.queue.layout import EPOCH_SECONDS, Keys


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages stand where, for one queue. A message may hold up to 16 jobs."""

    queue: str
    ready: int
    #: Taken and not yet acknowledged. Our workers take for good, so above 0 only beside a plain dramatiq worker.
    in_flight: int
    #: Dead letters. Our workers write none.
    dead: int


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """A message that was no hint."""

    reason: str
    queue: str
    at: datetime
    length_bytes: int
    #: Its first bytes, as they came. Treat them as hostile.
    head: bytes


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What was put aside: how many are kept, how many there ever were by reason, and the newest."""

    kept: int
    ever: dict[str, int]
    newest: tuple[QuarantinedMessage, ...]


@dataclass(frozen=True, slots=True)
class Epoch:
    """Whose the namespace is, and for how long if it is never heard of again."""

    key: str
    deployment: str
    seconds: float


def _epoch(key: str, owner: bytes | None, seconds: float) -> Epoch | None:
    """None for what dispatchers take for nobody's, too."""
    if owner is None or not 0 < seconds <= EPOCH_SECONDS:
        return None
    return Epoch(key, owner.decode(errors="replace"), seconds)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """What `doctor` looks at."""

    product: str
    version: str
    role: str
    memory_bytes: int
    #: 0: no limit.
    memory_bytes_max: int
    policy: str
    appendonly: bool
    #: The deployment whose dispatcher lives and sends hints into this namespace; None: nobody's does.
    epoch: Epoch | None = None


def problems_of(server: RedisServer) -> list[str]:
    """Why this server should not carry the queue, each as one line that says what to do."""
    rules = [
        (
            server.policy == "noeviction",
            f"maxmemory-policy is {server.policy}: set it to noeviction, or Redis drops whole queues when it is full",
        ),
        (server.appendonly, "appendonly is off: a restart of Redis forgets all hints until they are sent again"),
        (
            server.role == "master",
            f"this Redis is a {server.role}: name the one that takes writes",
        ),
        (
            server.memory_bytes_max == 0 or server.memory_bytes < 0.9 * server.memory_bytes_max,
            "Redis has used more than 90 % of its maxmemory: hints will be refused",
        ),
        (
            int(server.version.split(".")[0]) >= 7,
            f"{server.product} {server.version} is too old: scripts that drain a full server need Redis 7 or Valkey",
        ),
    ]
    return [message for holds, message in rules if not holds]


class QueueInspector:
    """Reads only. Belongs to the event loop it is used on; every call raises `QueueUnavailable`, in bounded time."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self._client = connect_async(redis_url)
        self._keys = Keys(namespace)

    async def depths(self, queues: Sequence[str]) -> list[QueueDepth]:
        """The depth of each queue, all at one moment."""
        with surfacing():
            async with self._client.pipeline(transaction=True) as pipeline:
                for queue in queues:
                    names = self._keys.queue(queue)
                    pipeline.llen(names.ready)
                    pipeline.hlen(names.messages)
                    pipeline.zcard(names.dead)
                counts = iter(await pipeline.execute())
        return [
            QueueDepth(queue, ready, in_flight=max(0, messages - ready), dead=dead)
            for queue, ready, messages, dead in zip(queues, counts, counts, counts, strict=True)
        ]

    async def quarantine(self, newest: int = 0) -> Quarantine:
        """What was put aside, with as many of the newest messages as asked for."""
        with surfacing():
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.llen(self._keys.quarantine)
                pipeline.hgetall(self._keys.quarantined)
                pipeline.lrange(self._keys.quarantine, *((0, newest - 1) if newest else (1, 0)))
                kept, ever, entries = await pipeline.execute()
        return Quarantine(
            kept=kept,
            ever={reason.decode(): int(count) for reason, count in sorted(ever.items())},
            newest=tuple(_entry_of(entry) for entry in entries),
        )

    async def server(self) -> RedisServer:
        """How the server is set up."""
        key = self._keys.epoch
        with surfacing():
            info: dict[str, Any] = await self._client.info()
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.get(key)
                pipeline.pttl(key)
                owner, left = await pipeline.execute()
        return RedisServer(
            product=str(info.get("server_name", "redis")),
            version=str(info.get("valkey_version", info["redis_version"])),
            role=str(info["role"]),
            memory_bytes=int(info["used_memory"]),
            memory_bytes_max=int(info["maxmemory"]),
            policy=str(info["maxmemory_policy"]),
            appendonly=bool(info["aof_enabled"]),
            epoch=_epoch(key, owner, left / 1000),
        )

    async def close(self) -> None:
        """Close the connections."""
        with surfacing():
            await self._client.aclose()


def _entry_of(entry: bytes) -> QuarantinedMessage:
    line, _, head = entry.partition(b"\n")
    reason, queue, milliseconds, length = line.decode().split(" ")
    at = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return QuarantinedMessage(reason, queue, at, int(length), head)
