"""The crash table, doubts: a worker that can't know whether it has settled, what time it is, what a job costs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import make_url

from tests.acceptance.stage import LEASE_SECONDS, Stage, put_prices_in_force
from tests.integration.proxy import Fault, Wire, laid

#: Nothing but claims and settles commits while it runs.
QUIET = {"lease_seconds": 30, "renew_seconds": 14}


@pytest.mark.parametrize("fault", ["lose_commit", "lose_answer"])
async def test_a_settle_in_doubt_ends_as_the_run_did(stage: Stage, fault: Fault) -> None:
    """Given a settle whose COMMIT, or only its answer, is lost, then the finished job is sold once, never refunded."""
    url = make_url(stage.database.worker_url or stage.database.url)
    wire = Wire(url.host or "127.0.0.1", url.port or 5432)
    async with laid(wire):
        stage.scheduler(**QUIET)
        stage.worker(**QUIET, database_url=wire.through(stage.database.worker_url or stage.database.url))
        job_id = await stage.submit("gated", gate=str(stage.gate()))
        await stage.becomes(job_id, "running")
        # Its progress is written with a COMMIT of its own.
        await stage.until(lambda: stage.value("SELECT progress = 0.5 FROM live"), "it said how far it is")
        wire.lose(fault)
        stage.gate().touch()
        seen = await stage.becomes(job_id, "succeeded")
    assert 1 == wire.lost
    assert (["succeeded"], 10, ["take"]) == (seen.endings, seen.charged, seen.outputs)


async def test_a_worker_whose_clock_is_wrong_keeps_its_lease(stage: Stage) -> None:
    """Given a worker hours behind the database, then a run longer than a lease is left to it; killed, it is reaped."""
    await stage.database.advance(timedelta(hours=2))
    stage.scheduler()
    worker = stage.worker()
    job_id = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(job_id, "running")
    await stage.until(
        lambda: stage.value(
            "SELECT fermata_now() > started_at + make_interval(secs => $1) FROM live", 2 * LEASE_SECONDS
        ),
        "two leases have passed",
    )
    worker.kill()
    stage.worker()
    stage.gate().touch()
    assert ["lost_worker", "succeeded"] == (await stage.becomes(job_id, "succeeded")).endings


async def test_a_price_that_fell_during_the_run_is_not_the_jobs(stage: Stage) -> None:
    """Given a run under the old book, when its worker has sold by a cheaper one meanwhile, then it costs the old."""
    stage.scheduler()
    stage.worker(slots=2)
    running = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(running, "running")
    await put_prices_in_force(stage.database, null="5", gated="5")
    assert 5 == (await stage.becomes(await stage.submit(), "succeeded")).charged
    stage.gate().touch()
    assert 10 == (await stage.becomes(running, "succeeded")).charged
