"""How we reach Redis, and the one error that leaves this package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.servers import tls_problem

Reason: TypeAlias = Literal["away", "full", "refused", "untrusted"]

#: Seconds after which an answer counts as lost. Above every wait we ask of the server (`BLPOP` for 1 s).
ANSWER_SECONDS: Final = 10.0

#: Seconds for reaching the server. A machine that swallows packets must not hold a consumer for longer.
CONNECT_SECONDS: Final = 3.0

#: Seconds after which an unused connection is asked for a sign of life before it is used again.
HEALTH_CHECK_SECONDS: Final = 30


class QueueUnavailable(Exception):
    """Redis did not take or give what we asked. Nothing is lost: rows are the authority. Try again later.

    `reason`: `away` (not reached, or no answer in time: what was sent may have arrived), `full` (no memory left:
    nothing of it was taken), `refused` (a permission, a read-only replica, a key of the wrong type), `untrusted` (no
    encryption that `rediss://` takes).
    """

    def __init__(self, reason: Reason, why: str | None = None) -> None:
        super().__init__(f"Redis is not usable: {reason}" + (f", {why}" if why else ""))
        self.reason = reason


@contextmanager
def surfacing() -> Iterator[None]:
    """Turn every error of the Redis client into `QueueUnavailable`, and let no cancellation be lost in it.

    Before Python 3.12 `asyncio.wait_for`, by which the client sends, returns as if nothing had been asked when its task
    is cancelled in the very turn of the loop in which it is done: a scheduler that was told to go stayed.
    """
    task = _task()
    asked = task.cancelling() if task is not None else 0
    try:
        yield
    except redis.RedisError as error:
        _cancelled_since(task, asked)
        if (problem := tls_problem(error)) is not None:
            raise QueueUnavailable("untrusted", problem) from error
        raise QueueUnavailable(_reason_for(error)) from error
    _cancelled_since(task, asked)


def _cancelled_since(task: asyncio.Task[Any] | None, asked: int) -> None:
    if task is not None and task.cancelling() > asked:
        raise asyncio.CancelledError


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # a thread without a loop
        return None


def _reason_for(error: redis.RedisError) -> Reason:
    # A TimeoutError is no ConnectionError in this client.
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return "away"
    return "full" if isinstance(error, redis.OutOfMemoryError) else "refused"


def connect(redis_url: str) -> redis.Redis:
    """A client for threads. Reaches out on the first command, never repeats one by itself."""
    return redis.Redis.from_url(
        redis_url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=HEALTH_CHECK_SECONDS,
    )


def connect_async(redis_url: str) -> redis.asyncio.Redis:
    """The same for an event loop."""
    return redis.asyncio.Redis.from_url(
        redis_url,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=HEALTH_CHECK_SECONDS,
    )
