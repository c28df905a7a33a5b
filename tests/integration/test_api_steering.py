"""What ops do at once, over HTTP: the same functions as by command and on the pages, each in the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.api_support import Api, an_api
from tests.servers import Database
from worker.credits.operations import Claim
from worker.store.workers import WorkerCard, Workers


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada", 1000)
        yield made


async def told(api: Api) -> list[str]:
    """What ops did by their key, the latest first."""
    entries = (await api.services.log.entries()).entries
    actor = f"key:{(await api.key('ops'))[:12]}"
    return [entry.what for entry in entries if entry.actor == actor]


async def test_a_stuck_job_is_ended_by_force(api: Api) -> None:
    """It fails, what it held is back, and the log says who and why; a queued one is told to be cancelled."""
    job = await api.submit()
    queued = await api.ask("POST", f"/v1/jobs/{job['id']}/force-end", {"reason": "stuck"}, role="ops")
    assert (422, "cancel it instead") == (queued.status_code, queued.json()["detail"][-17:]), queued.text
    await api.services.client.operations.do(Claim("ada", UUID(job["id"]), uuids.uuid7(), "w1", 30))
    done = await api.ok("POST", f"/v1/jobs/{job['id']}/force-end", {"reason": "stuck"}, role="ops")
    assert ("failed", job["quoted"]) == (done["state"], done["refunded"])
    assert 1000 == (await api.ok("GET", "/v1/accounts/ada/balance"))["spendable"]
    assert "jobs.force_end" in await told(api)


async def test_many_are_looked_at_then_cancelled_then_tried_again(api: Api) -> None:
    """By every field of the filter; a dry run leaves all as it was."""
    mine = [(await api.submit(metadata={"album": "blue"}))["id"] for _ in range(2)]
    await api.submit(metadata={"album": "red"})
    wanted: dict[str, Any] = {
        "account": "ada",
        "kind": "generation",
        "queue": "generation",
        "metadata": {"album": "blue"},
        "created_from": "2020-01-01T00:00:00Z",
        "created_before": "2199-01-01T00:00:00Z",
        "reason": "wrong model",
    }
    looked = await api.ok("POST", "/v1/jobs/cancel-many", {**wanted, "dry_run": True}, role="ops")
    assert (2, 0, set(mine)) == (looked["matched"], looked["changed"], {job["id"] for job in looked["jobs"]})
    assert [] == await told(api)
    done = await api.ok("POST", "/v1/jobs/cancel-many", wanted, role="ops")
    assert (2, {"cancelled"}) == (done["changed"], {job["outcome"] for job in done["jobs"]})
    again = {"account": "ada", "state": "cancelled", "ended_for": "cancelled"}
    assert 2 == (await api.ok("POST", "/v1/jobs/retry-many", again, role="ops"))["changed"]
    paid = {"account": "ada", "percent": 50, "reference": "monday", "reason": "noise"}
    given = await api.ok("POST", "/v1/jobs/compensate-many", paid, role="ops")
    assert (2, 0) == (given["matched"], given["credits"])
    assert {"jobs.cancel_many", "jobs.retry_many", "jobs.compensate_many"} <= set(await told(api))


async def test_any_number_is_done_in_portions(api: Api) -> None:
    """`next` is the place from which the next portion goes on; a dry run counts all that match."""
    jobs = {(await api.submit())["id"] for _ in range(5)}
    body: dict[str, Any] = {"account": "ada", "reason": "bad batch", "limit": 2}
    look = await api.ok("POST", "/v1/jobs/cancel-many", {**body, "dry_run": True}, role="ops")
    assert (2, 5, True) == (look["matched"], look["total"], look["more"])
    met: list[str] = []
    while True:
        done = await api.ok("POST", "/v1/jobs/cancel-many", body, role="ops")
        met += [job["id"] for job in done["jobs"]]
        if done["next"] is None:
            break
        body["after"] = done["next"]
    assert sorted(jobs) == sorted(met)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("cancel-many", {"reason": "x", "state": "succeeded"}, "state"),
        ("cancel-many", {"reason": "x", "state": "lost"}, "state"),
        ("cancel-many", {"reason": "x", "limit": 10_001}, "limit"),
        ("cancel-many", {"reason": "x", "after": "nowhere"}, "after"),
        ("cancel-many", {"reason": "x", "metadata": {"album": "blue"}}, "metadata"),
        ("cancel-many", {"reason": "x", "everything": True}, "everything"),
        ("cancel-many", {}, "reason"),
        ("retry-many", {"dry_run": "yes"}, "dry_run"),
        ("compensate-many", {"reason": "x", "percent": 101, "reference": "y"}, "percent"),
        ("compensate-many", {"reason": "x", "percent": 50, "reference": "y z"}, "reference"),
    ],
)
async def test_a_filter_that_can_not_be_meant_is_refused(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    """By the name of the field; nothing was done."""
    done = await api.ask("POST", f"/v1/jobs/{path}", body, role="ops")
    assert 422 == done.status_code, done.text
    assert field in done.text
    assert [] == await told(api)


async def test_a_bound_key_compensates_in_its_own_accounts_only(api: Api) -> None:
    """It names one; others are not there for it."""
    await api.account("eve")
    key = await api.key("billing", "ada")
    body = {"percent": 50, "reference": "monday", "reason": "noise"}
    answers = [
        (await api.ask("POST", "/v1/jobs/compensate-many", {**body, **whose}, key=key)).status_code
        for whose in ({}, {"account": "eve"}, {"account": "ada"})
    ]
    assert [422, 404, 200] == answers


async def test_a_worker_is_asked_to_drain_and_a_kind_is_paused(api: Api) -> None:
    """Whoever is not there is 404."""
    card = WorkerCard("w-7", "host", 1, "1", ["generation"], 2)
    workers = Workers(api.services.engine)
    await workers.here(card)
    assert {"worker": "w-7", "drain_asked": True} == await api.ok("POST", "/v1/workers/w-7/drain", role="ops")
    assert await workers.here(card)
    nobody = await api.ask("POST", "/v1/workers/w-8/drain", role="ops")
    assert (404, "unknown_worker") == (nobody.status_code, nobody.json()["code"])
    paused = await api.ok("POST", "/v1/kinds/generation/pause", {"reason": "licence"}, role="ops")
    assert ("kind", True) == (paused["scope"], paused["paused"])
    assert not (await api.ok("POST", "/v1/kinds/generation/resume", role="ops"))["paused"]
    unknown = await api.ask("POST", "/v1/kinds/nothing/pause", {"reason": "x"}, role="ops")
    assert (404, "unknown_kind") == (unknown.status_code, unknown.json()["code"])
    assert "workers.drain" in await told(api)
