"""Schedulers that die while they tell: every event is told at least once, and of a job in order."""

from __future__ import annotations

import asyncio
import signal
from typing import Any
from uuid import UUID

import pytest
import standardwebhooks

from tests.acceptance.stage import Stage
from tests.acceptance.test_crash_kills import TABLE
from tests.endpoints import Endpoint, an_endpoint, answer
from tests.integration.cli_support import run_command
from worker.store.webhooks import Webhooks
from worker.webhooks.message import secret_of

SECRET = secret_of(bytes(range(32)))
PRIVATE = {"webhook_private_targets": "true", "deliver_tick_seconds": "0.05"}


async def hooked(stage: Stage, endpoint: Endpoint) -> UUID:
    """That server, told of all."""
    return (await Webhooks(stage.store.engine).create(endpoint.url, lambda _: SECRET, None, [], "test"))[0]


def pairs(endpoint: Endpoint) -> set[tuple[str, str]]:
    """Which job ended how, as the endpoint heard it: each signature was checked."""
    documents = [standardwebhooks.Webhook(SECRET).verify(one.body, one.headers) for one in endpoint.told]
    return {(one["data"]["job"], one["data"]["state"]) for one in documents}


@pytest.mark.parametrize(
    ("point", "times"), [("deliver.claimed", 1), ("deliver.sent", 2)], ids=["before it was sent", "before it was noted"]
)
async def test_a_scheduler_that_dies_while_it_tells(stage: Stage, point: str, times: int) -> None:
    """Given a death at the point, when its lease is over, then the next scheduler tells: again, if it had been sent."""
    assert "teller" == TABLE[point].process
    async with an_endpoint() as endpoint:
        await hooked(stage, endpoint)
        doomed = stage.scheduler(**PRIVATE, failpoints=f"{point}:kill", webhook_timeout_seconds="1")
        stage.worker()
        job_id = await stage.submit()
        assert -signal.SIGKILL == await doomed.ended()
        stage.scheduler(**PRIVATE)
        await stage.becomes(job_id, "succeeded")
        # As if the time had passed until a sender that says nothing is given up.
        await stage.rows.execute("UPDATE deliveries SET next_at = fermata_now() WHERE state = 'pending'")
        await stage.until(
            lambda: stage.value("SELECT count(*) > 0 AND bool_and(state = 'delivered') FROM deliveries"), "delivered"
        )
        assert times == len(endpoint.told)
        assert 1 == len({one.headers["webhook-id"] for one in endpoint.told})
        assert {(str(job_id), "succeeded")} == pairs(endpoint)


async def test_two_schedulers_tell_everything_once_where_nothing_fails(stage: Stage) -> None:
    """Given two schedulers and twenty jobs, then each end is told, by one of them."""
    async with an_endpoint(lambda number: answer(204)) as endpoint:
        await hooked(stage, endpoint)
        for _ in range(2):
            stage.scheduler(**PRIVATE)
        stage.worker(slots=8)
        jobs = [await stage.submit() for _ in range(20)]
        await stage.all_ended(jobs)
        await stage.until(
            lambda: stage.value("SELECT count(*) = 20 AND bool_and(state = 'delivered') FROM deliveries"), "delivered"
        )
        assert {(str(job_id), "succeeded") for job_id in jobs} == pairs(endpoint)
        assert 20 == len(endpoint.told)


async def test_an_endpoint_of_ours_by_the_command(stage: Stage) -> None:
    """Given the command alone, then an endpoint is made and tested, and what arrives is signed by the shown secret."""
    environment = {**stage.environment, "FERMATA_WEBHOOK_PRIVATE_TARGETS": "true"}
    async with an_endpoint() as endpoint:
        made = await command(environment, "create", endpoint.url)
        tested = await command(environment, "test", made["webhook"])
        assert (True, 200) == (tested["taken"], tested["status"])
        heard = endpoint.told[0]
        assert "test" == standardwebhooks.Webhook(made["secret"]).verify(heard.body, heard.headers)["type"]


async def command(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """The document of a verb in a process of its own, while our server goes on."""
    done = await asyncio.to_thread(run_command, environment, "webhooks", *arguments, "--json")
    assert 0 == done.code, done.err
    return dict(done.document)
