"""What stands in a Redis, for tests that look for what should not."""

from __future__ import annotations

from collections.abc import Callable

import redis


def everything_in(client: redis.Redis) -> str:
    """Every key with its value, read by type: a dump would hold long texts compressed."""
    reads: dict[bytes | str, Callable[[redis.Redis, bytes], object]] = {
        b"string": lambda client, name: client.get(name),
        b"list": lambda client, name: client.lrange(name, 0, -1),
        b"hash": lambda client, name: client.hgetall(name),
        b"set": lambda client, name: client.smembers(name),
        b"zset": lambda client, name: client.zrange(name, 0, -1),
    }
    return "\n".join(f"{name!r} {reads[client.type(name)](client, name)!r}" for name in client.scan_iter("*"))
