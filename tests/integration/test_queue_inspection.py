"""What `doctor` hears about a Redis server."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from tests.integration.queue_support import NAMESPACE, own_valkey
from worker.queue.connection import QueueUnavailable
from worker.queue.inspection import QueueInspector, RedisServer, problems_of

GOOD = RedisServer(
    "valkey", "9.1.2", "master", memory_bytes=10, memory_bytes_max=0, policy="noeviction", appendonly=True
)


async def test_a_real_server_is_read_as_it_is_set_up() -> None:
    """Our own server has nothing to complain of; one set up as a cache has."""
    with own_valkey() as server, redis.Redis.from_url(server.url()) as client:
        inspector = QueueInspector(server.url(), NAMESPACE)
        found = await inspector.server()
        assert (found.product, found.role, found.policy, found.appendonly) == ("valkey", "master", "noeviction", True)
        assert problems_of(found) == []

        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")

        assert len(problems_of(await inspector.server())) == 2
        server.kill()
        with pytest.raises(QueueUnavailable, match="away"):
            await inspector.server()
        await inspector.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy": "volatile-ttl"}, "set it to noeviction"),
        ({"appendonly": False}, "forgets all hints"),
        ({"role": "slave"}, "takes writes"),
        ({"memory_bytes": 91, "memory_bytes_max": 100}, "90 %"),
        ({"version": "6.2.14", "product": "redis"}, "too old"),
    ],
)
def test_each_problem_says_what_to_do(change: dict[str, object], told: str) -> None:
    """One line a problem, none for a good server."""
    assert problems_of(GOOD) == []
    (problem,) = problems_of(replace(GOOD, **change))  # type: ignore[arg-type]
    assert told in problem
