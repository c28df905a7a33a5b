"""Every other crash point: processes die one after the other at each, before and after its COMMIT, on one stage.

Together with tests/acceptance/test_crash_kills.py, where the steps of one job's path have a stage each, the tables are
complete by construction: a point in `worker.failpoints.POINTS` at which no test dies fails here.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
import redis

from tests.acceptance import crash_steps, test_crash_kills
from tests.acceptance.crash_steps import ACTOR, PEOPLE, Prepare
from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import Process, Stage
from tests.endpoints import an_endpoint, answer
from tests.integration import test_erasing, test_pruning
from worker.credits.operations import Claim
from worker.failpoints import MOMENTS, POINTS
from worker.queue.hints import HintSender
from worker.store.errors import StoreError
from worker.store.ids import new_id
from worker.store.webhooks import Webhooks
from worker.webhooks.message import secret_of

#: What a killed submit may have left: numbers that nobody needs.
GAPS = "turns"


#: These have months of a past to work on, and their own tests.
FORGETTING = (*test_pruning.STEPS, *test_erasing.STEPS)


def points_of(steps: Iterable[str]) -> set[str]:
    """Both points of these steps."""
    return {f"{step}.{moment}" for step in steps for moment in MOMENTS}


def test_a_process_dies_at_every_point() -> None:
    """A new step without a test that kills somebody in it fails here."""
    here = points_of(PEOPLE) | points_of(SCHEDULER) | points_of(WORKER)
    assert POINTS == set(test_crash_kills.TABLE) | here | points_of(FORGETTING)


async def dies(process: Process, point: str) -> None:
    """Wait until it has died at its point."""
    try:
        assert -signal.SIGKILL == await process.ended()
    except AssertionError as error:
        raise AssertionError(f"nobody passed {point}: {error}") from None


# --- people and pipelines


async def contents(stage: Stage) -> dict[str, str]:
    """What stands in each table, as one number each."""
    tables = await stage.rows.fetch(
        "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') "
        f"AND NOT c.relispartition AND c.relname <> '{GAPS}'"
    )
    each = (f"SELECT '{name}', md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {name} AS t" for (name,) in tables)
    async with stage.database.connection(as_owner=True) as owner:
        return dict(await owner.fetch(" UNION ALL ".join(each)))


@pytest.mark.proof
async def test_a_step_of_somebody_is_done_whole_or_not_at_all(stage: Stage, whole: bool) -> None:
    """Given one who dies in it: before the COMMIT nothing is done, after it all of it. It can be done again."""
    for name, step in PEOPLE.items():
        subject = await step.prepare(stage) if step.prepare else ""
        before = await contents(stage)
        assert -signal.SIGKILL == await stage.step(name, subject, failpoints=f"{name}.written:kill").ended(), name
        assert before == await contents(stage), f"{name}: something was left"
        assert -signal.SIGKILL == await stage.step(name, subject, failpoints=f"{name}.committed:kill").ended(), name
        after = await contents(stage)
        if name not in ("take_turns", "wake"):
            assert before != after, f"{name}: nothing was done"
        if whole:  # else once, at the end
            await assert_books_exact(stage.database)
        with suppress(StoreError):
            await step.do(stage.store, stage.client, subject)
        if step.again and name != "take_turns":
            assert after == await contents(stage), f"{name}: done again it did something else"


# --- the scheduler

QUICK = {
    "lease_seconds": 1.2,
    "renew_seconds": 0.2,
    "cycles_tick_seconds": 0.1,
    "deliver_tick_seconds": 0.05,
    "webhook_private_targets": "true",
    "webhook_backoff_first_seconds": 0.1,
    "webhook_timeout_seconds": 1,
}


async def _nothing(stage: Stage) -> str:
    return ""


async def _ripe(stage: Stage) -> str:
    now = (await stage.client.views.view("ada", [])).now
    job = await stage.submit(run_at=now + timedelta(hours=1))
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE due SET not_before = fermata_now() WHERE job_id = $1", job)
    return str(job)


async def _flushed(stage: Stage) -> str:
    with redis.Redis.from_url(stage.environment["FERMATA_REDIS_URL"]) as client:
        client.flushdb()
    return ""


async def _waiting(stage: Stage) -> str:
    """A job that waits for credits which have come unseen."""
    account = await crash_steps._account(stage)
    job = await stage.submit(account_id=account, on_insufficient="wait")
    await stage.store.operations.do(Claim(account, job, new_id(), "w", 30))
    return account


async def _told(stage: Stage) -> str:
    """Something to tell."""
    await stage.client.cancel("ada", await stage.submit(), "crash")
    return ""


#: What the scheduler is to find when it starts. What it does at its start anyway needs nothing.
SCHEDULER: Mapping[str, Prepare] = {
    "process_here": _nothing,
    "note_duty": _nothing,
    "make_partitions": _nothing,
    "forget_workers": _nothing,
    "forget_turns": _nothing,
    "forget_told": _nothing,
    "forget_deliveries": _nothing,
    "recheck_waiting": _nothing,
    "forget_marks": _flushed,
    "mark_hints": crash_steps._queued,
    "ripen": _ripe,
    "reap": crash_steps._running,
    "end_overdue": crash_steps._overdue,
    "turn": crash_steps._account_with_a_cycle_over,
    "expire": crash_steps._account_with_an_expired_lot,
    "notify": crash_steps._account_with_an_expiring_lot,
    "wake": _waiting,
    "claim_deliveries": _told,
    "end_delivery": _told,
    "deliver_again": _told,
    "close_webhook": _told,
}


@pytest.mark.proof
async def test_schedulers_that_die_at_every_step_leave_nothing_undone(stage: Stage, whole: bool) -> None:
    """Given one after the other that dies at a point, when one lives at last, then all is done, and once."""
    replies = {"deliver_again": answer(500), "close_webhook": answer(410)}
    step = ""
    async with an_endpoint(lambda number: replies.get(step, answer(200))) as endpoint:
        webhooks = Webhooks(stage.store.engine)
        webhook, *_ = await webhooks.create(endpoint.url, secret_of, None, [], ACTOR)
        await crash_steps._worker(stage)
        async with stage.database.connection(as_owner=True) as owner:  # somebody to be hinted, for as long as it takes
            await owner.execute("UPDATE workers SET seen_at = seen_at + interval '1 hour'")
        for point in sorted(points_of(SCHEDULER)):
            step = point.partition(".")[0]
            await webhooks.redeliver(webhook, None)  # opens it again
            await SCHEDULER[step](stage)
            doomed = stage.scheduler(**QUICK, failpoints=f"{point}:kill")
            await dies(doomed, point)
            if whole:
                await assert_books_exact(stage.database)
        step = ""
        await webhooks.redeliver(webhook, None)
        stage.scheduler(**QUICK)
        stage.worker()
        for what in (
            "jobs WHERE ended_at IS NULL AND state <> 'waiting'",
            "lots WHERE NOT closed AND expires_at <= fermata_now()",
            "accounts WHERE cycle_ends_at <= fermata_now()",
            "deliveries WHERE state = 'pending'",
        ):
            await stage.until(partial(stage.value, f"SELECT count(*) = 0 FROM {what}"), f"no {what}", 40)
    assert 0 == await stage.value(
        "SELECT count(*) FROM jobs WHERE state NOT IN ('succeeded', 'cancelled', 'refused', 'waiting')"
    )
    cycles = await stage.rows.fetch("SELECT count(*), max(granted_total) FROM cycles GROUP BY account_id")
    assert {(2, 150)} == {tuple(row) for row in cycles}


# --- the worker


@dataclass(frozen=True, slots=True)
class Act:
    """What a doomed worker is given to do, once it runs."""

    stage: Stage
    number: int

    @property
    def gate(self) -> str:
        return str(self.stage.gate(f"gate-{self.number}"))

    async def gated(self, kind: str = "gated") -> UUID:
        return await self.stage.submit(kind, gate=self.gate)


async def _gated(act: Act, doomed: Process) -> None:
    await act.gated()


async def _remembering(act: Act, doomed: Process) -> None:
    await act.gated("remembering")


async def _said_goodbye(act: Act, doomed: Process) -> None:
    await _registered(act, doomed)
    doomed.send(signal.SIGTERM)


async def _at_once(act: Act, doomed: Process) -> None:
    """It dies by itself."""


async def _full(act: Act, doomed: Process) -> None:
    """One hint for more jobs than it has slots; nobody else hints them."""
    jobs = [("ada", await act.gated()) for _ in range(3)]
    sender = HintSender(act.stage.environment["FERMATA_REDIS_URL"], act.stage.settings.namespace)
    try:
        await sender.send({"gated": jobs})
    finally:
        await sender.close()


async def _held(act: Act, doomed: Process) -> None:
    """A job of an account that somebody holds."""
    account = await crash_steps._account(act.stage)
    async with act.stage.database.connection() as holder, holder.transaction():
        await holder.execute("SELECT 1 FROM accounts WHERE account_id = $1 FOR NO KEY UPDATE", account)
        await act.stage.submit(account_id=account)
        await doomed.ended()


async def _registered(act: Act, doomed: Process) -> None:
    await act.stage.until(
        lambda: act.stage.value("SELECT count(*) = 1 FROM workers WHERE pid = $1", doomed.pid), "the worker is there"
    )


WORKER: Mapping[str, Callable[[Act, Process], Awaitable[None]]] = {
    "unhint": _full,
    "worker_here": _at_once,
    "worker_gone": _said_goodbye,
    "batch": _gated,
    "renew": _gated,
    "report_progress": _gated,
    "remember": _remembering,
    "hold_off": _held,
}


@pytest.mark.proof
async def test_workers_that_die_at_every_step_lose_no_job(stage: Stage, whole: bool) -> None:
    """Given one after the other that dies at a point, when one lives at last, then every job is done, and paid once."""
    points = [f"{step}.{moment}" for step in WORKER for moment in MOMENTS]
    for number, point in enumerate(points):
        if number == len(MOMENTS):
            stage.scheduler()
        act = Act(stage, number)
        doomed = stage.worker(slots=1, renew_seconds=0.2, failpoints=f"{point}:kill")
        await WORKER[point.partition(".")[0]](act, doomed)
        await dies(doomed, point)
        if whole:
            await assert_books_exact(stage.database)
        act.stage.gate(f"gate-{number}").touch()
        # So many deaths are more than one job is tried for.
        async with stage.database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE jobs SET failures_max = 20 WHERE ended_at IS NULL")
    stage.worker()
    await stage.until(lambda: stage.value("SELECT count(*) = 0 FROM jobs WHERE ended_at IS NULL"), "all ended", 60)
    refused = await stage.rows.fetch("SELECT state, account_id = 'ada', charged FROM jobs")
    assert {("succeeded", True, 10), ("refused", False, 0)} == {tuple(row) for row in refused}
