"""The one gate before the Redis client: its errors are ours, and it keeps nobody who was told to go."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
import redis

from worker.queue.connection import QueueUnavailable, surfacing


@pytest.mark.parametrize("outcome", [None, redis.ConnectionError("cut"), redis.ResponseError("no")])
async def test_a_cancellation_that_the_client_takes_for_itself_is_not_lost(outcome: Exception | None) -> None:
    """Whatever the client comes back with instead."""
    waits, went_on = asyncio.Event(), False

    async def call() -> None:
        nonlocal went_on
        with surfacing():
            with suppress(asyncio.CancelledError):
                waits.set()
                await asyncio.Event().wait()
            if outcome is not None:
                raise outcome
        went_on = True

    calling = asyncio.create_task(call())
    await waits.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not went_on


async def test_whoever_tidies_up_after_a_cancellation_still_gets_its_answers() -> None:
    """Only what is asked while Redis is spoken to counts."""
    tidied = False

    async def call() -> None:
        nonlocal tidied
        try:
            await asyncio.Event().wait()
        finally:
            with surfacing():
                await asyncio.sleep(0)
            tidied = True

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert tidied


def test_threads_without_a_loop_use_the_same_gate() -> None:
    """Consumers do."""
    with pytest.raises(QueueUnavailable, match="away"), surfacing():
        raise redis.TimeoutError
