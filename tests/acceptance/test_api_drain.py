"""An API process that is told to end: balancers see it, and send nobody there, before it stops listening."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from time import monotonic

import httpx2

from tests.acceptance.stage import Process, Stage, until
from worker.store.api_keys import ApiKeys, NewKey, Role

DRAIN_SECONDS = 3.0


async def started(stage: Stage, **settings: object) -> tuple[Process, Callable[[], httpx2.AsyncClient]]:
    """The process, and what opens a fresh connection to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = stage.api(api_port=port, **settings)
    key = (await ApiKeys(stage.store.engine).create(NewKey(Role.PIPELINE, "drain"), "test")).key

    def connect() -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
        return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers)

    async def is_ready() -> bool:
        return await _status(connect) == 200

    await stage.until(is_ready, "the API is ready")
    return process, connect


async def _status(connect: Callable[[], httpx2.AsyncClient]) -> int | None:
    """What `/readyz` answers on a connection of its own; None where nobody takes one."""
    try:
        async with connect() as http:
            return (await http.get("/readyz")).status_code
    except httpx2.HTTPError:
        return None


async def test_balancers_are_told_while_requests_are_still_taken(stage: Stage) -> None:
    """Given a time to drain, from SIGTERM on /readyz is 503 on new connections, submits are taken, then it ends."""
    process, connect = await started(stage, api_drain_seconds=DRAIN_SECONDS)
    asked_at = monotonic()
    process.send(signal.SIGTERM)

    async def is_draining() -> bool:
        return await _status(connect) == 503

    await until(is_draining, "a new connection is told that it drains")
    async with connect() as http:
        body = {"account": "ada", "kind": "null"}
        taken = await http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "late"})
        assert 202 == taken.status_code
        assert "draining: about to end" == (await http.get("/readyz")).json()["why"]
    assert await process.ended() in (0, -signal.SIGTERM)
    assert monotonic() - asked_at >= DRAIN_SECONDS
    assert await _status(connect) is None


async def test_a_second_signal_ends_it_at_once(stage: Stage) -> None:
    """Whoever can't wait need not."""
    process, connect = await started(stage, api_drain_seconds=600)
    process.send(signal.SIGTERM)

    async def is_draining() -> bool:
        return await _status(connect) == 503

    await until(is_draining, "it drains")
    process.send(signal.SIGTERM)
    assert await process.ended() in (0, -signal.SIGTERM)


async def test_a_call_that_is_cut_off_is_told_that_it_is_in_doubt(stage: Stage) -> None:
    """It is no bug of ours, and not known to be undone: the client asks again with the same key."""
    process, connect = await started(stage, lock_timeout_seconds=14)
    job_id = await stage.submit()
    async with stage.database.connection() as holder, holder.transaction(), connect() as http:
        await holder.execute("SELECT 1 FROM accounts WHERE account_id = 'ada' FOR NO KEY UPDATE")
        asking = asyncio.create_task(http.post(f"/v1/jobs/{job_id}/cancel", json={}, timeout=30))

        async def waits_for_us() -> bool:
            return bool(await holder.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

        await until(waits_for_us, "the cancel waits for the account")
        process.send(signal.SIGTERM)
        answer = await asking
    assert (503, "outcome_unknown") == (answer.status_code, answer.json()["code"])
    assert await process.ended() in (0, -signal.SIGTERM)
