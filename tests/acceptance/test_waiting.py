"""Why a job does not run yet, and what makes it run: credits, an account's limit, a pause, a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.acceptance.stage import Stage
from worker.store.ops import Scope


def from_now(seconds: float) -> datetime:
    """That much later, by a clock that in tests is the database's too."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("how", ["topup", "grant", "refund"])
async def test_credits_wake_who_waits_for_them(stage: Stage, how: str) -> None:
    """Given a job that waits for credits, when they come by whatever way, then it runs at once.

    The account's younger jobs queue behind it.
    """
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker()
    await _subscribed_and_spent(stage, left=10)
    blocker = await stage.submit("gated", "eve", gate=str(stage.gate()))
    await stage.becomes(blocker, "running")
    older = await stage.submit("null", "eve", on_insufficient="wait")
    await stage.becomes(older, "waiting")
    younger = await stage.submit("null", "eve", on_insufficient="wait")
    await stage.becomes(younger, "waiting")
    # Or top-ups were frozen.
    await stage.value(_SHOW)
    match how:
        case "topup":
            await stage.store.accounts.topup("eve", "bought", "test", amount=10)
        case "grant":
            await stage.store.accounts.grant("eve", 10, "sorry", "test")
        case "refund":
            await stage.client.cancel("eve", blocker, "make room")
    await stage.becomes(older, "succeeded", seconds=10)
    assert "waiting" == (await stage.job(younger)).state


#: No plan has the kinds of tests: they are submitted without one, and run as many at a time as they like.
_HIDE = "UPDATE accounts SET plan = NULL, cycle_ends_at = NULL, look_at = NULL, running_max = NULL"
_SHOW = (
    "UPDATE accounts SET plan = 'starter', cycle_ends_at = ends_at, look_at = ends_at "
    "FROM cycles WHERE cycles.account_id = accounts.account_id"
)


async def _subscribed_and_spent(stage: Stage, left: int) -> datetime:
    """Eve has a plan, that nobody sees yet, and so much left beside its cycle's credits; returns when that ends."""
    await stage.account("eve", left)
    subscribed = await stage.store.accounts.subscribe("eve", "starter", "subscribe", "test")
    await stage.value(_HIDE)
    for job in await stage.submit_many(subscribed.credits // 10, account_id="eve"):
        await stage.becomes(job, "succeeded")
    return subscribed.cycle_ends_at


async def test_a_new_cycle_wakes_who_waits_for_it(stage: Stage) -> None:
    """Given jobs that wait and a cycle that ends, when the scheduler begins the next, then they run at once."""
    stage.scheduler(hint_repeat_seconds=60, cycles_tick_seconds=0.1)
    stage.worker()
    cycle_ends_at = await _subscribed_and_spent(stage, left=0)
    left: timedelta = cycle_ends_at - await stage.value("SELECT fermata_now()")
    await stage.database.advance(left - timedelta(minutes=2))
    jobs = [await stage.submit("null", "eve", on_insufficient="wait") for _ in range(2)]
    for job in jobs:
        await stage.becomes(job, "waiting")
    await stage.value(_SHOW)
    await stage.database.advance(timedelta(minutes=3))
    for job in jobs:
        await stage.becomes(job, "succeeded", seconds=20)


async def test_without_credits_a_job_is_refused(stage: Stage) -> None:
    """Given too few credits, then a job that does not want to wait is refused and says what it needed."""
    await stage.account("eve", 9)
    stage.scheduler()
    stage.worker()
    seen = await stage.becomes(await stage.submit("null", "eve"), "refused")
    assert ("insufficient_credits", "needed 10, available 9", 0) == (seen.reason, seen.message, seen.charged)


async def test_a_waiting_job_ends_by_cancel_or_deadline(stage: Stage) -> None:
    """Given jobs that wait for credits, when one is cancelled and one's `ends_by` passes, then both end unpaid."""
    await stage.account("eve", 9)
    stage.scheduler()
    stage.worker()
    unwanted = await stage.submit("null", "eve", on_insufficient="wait")
    late = await stage.submit("null", "eve", on_insufficient="wait", ends_by=from_now(2))
    await stage.becomes(unwanted, "waiting")
    await stage.client.cancel("eve", unwanted, "changed my mind")
    assert "cancelled" == (await stage.job(unwanted)).state
    assert "past_ends_by" == (await stage.becomes(late, "refused")).reason
    assert {"available": 9, "held": 0, "spent": 0, "expired": 0} == await stage.balance("eve")


async def test_an_account_runs_no_more_than_its_limit(stage: Stage) -> None:
    """Given a limit of one, then a second job waits for the first, others' don't, and room is used at once."""
    await stage.account("eve", 100)
    await stage.value("UPDATE accounts SET running_max = 1 WHERE account_id = 'eve'")
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker(slots=8)
    first = await stage.submit("gated", "eve", gate=str(stage.gate()))
    await stage.becomes(first, "running")
    others = [await stage.submit("null", "eve") for _ in range(3)]
    await stage.becomes(await stage.submit(), "succeeded")
    await stage.until(lambda: stage.value("SELECT count(*) = 3 FROM due WHERE waits_for = 'account_limit'"), "waits")
    stage.gate().touch()
    assert [["succeeded"]] * 4 == [job.endings for job in await stage.all_ended([first, *others], seconds=10)]
    overlaps = await stage.value(
        "SELECT count(*) FROM attempts AS a JOIN attempts AS b ON a.job_id < b.job_id "
        "AND tstzrange(a.started_at, a.ended_at) && tstzrange(b.started_at, b.ended_at) "
        "WHERE a.account_id = 'eve' AND b.account_id = 'eve'"
    )
    assert 0 == overlaps


async def test_killed_workers_keep_no_room_of_their_accounts(stage: Stage) -> None:
    """Given a limit, filled again and again by workers that die, then the account's jobs still run."""
    await stage.account("eve", 100)
    await stage.value("UPDATE accounts SET running_max = 1 WHERE account_id = 'eve'")
    stage.scheduler()
    first = await stage.submit("gated", "eve", gate=str(stage.gate()))
    others = [await stage.submit("null", "eve") for _ in range(3)]
    for _ in range(2):
        worker = stage.worker(slots=4)
        await stage.becomes(first, "running")
        worker.kill()
        await stage.becomes(first, "queued")
    stage.gate().touch()
    stage.worker(slots=4)
    assert ["succeeded"] * 4 == [job.state for job in await stage.all_ended([first, *others])]
    assert ["lost_worker", "lost_worker", "succeeded"] == (await stage.job(first)).endings


async def test_a_queue_runs_no_more_than_its_limit(stage: Stage) -> None:
    """Given a queue limited to one, then a second job waits though slots are free; without the limit it runs."""
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker(slots=4)
    await stage.becomes(await stage.submit(), "succeeded")
    await stage.controls.limit("gated", 1, "ops")
    running = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(running, "running")
    held_back = await stage.submit("gated", gate=str(stage.gate()))
    await stage.becomes(await stage.submit(), "succeeded")  # a later one of another queue
    assert ("queued", 0) == ((await stage.job(held_back)).state, (await stage.job(held_back)).attempt)
    await stage.controls.limit("gated", None, "ops")
    await stage.becomes(held_back, "running", seconds=10)
    stage.gate().touch()
    await stage.all_ended([running, held_back], seconds=10)


@pytest.mark.parametrize(
    ("scope", "name"),
    [(Scope.QUEUE, "gated"), (Scope.KIND, "gated"), (Scope.ACCOUNT, "eve")],
    ids=str,
)
async def test_what_is_paused_starts_nothing_and_resumes(stage: Stage, scope: Scope, name: str) -> None:
    """Given a pause, then its jobs stay, what runs ends, and others go on; resumed, they run at once."""
    await stage.account("eve", 100)
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker(slots=4)
    running = await stage.submit("gated", "eve", gate=str(stage.gate()))
    await stage.becomes(running, "running")
    await stage.controls.pause(scope, name, "a look at it", "ops")
    held_back = await stage.submit("gated", "eve", gate=str(stage.gate()))
    await stage.becomes(await stage.submit("null", "ada"), "succeeded")
    stage.gate().touch()
    await stage.becomes(running, "succeeded")
    assert ("queued", 0) == ((await stage.job(held_back)).state, (await stage.job(held_back)).attempt)
    await stage.controls.resume(scope, name, "ops")
    await stage.becomes(held_back, "succeeded", seconds=10)


async def test_a_job_for_later_runs_then(stage: Stage) -> None:
    """Given `run_at`, then the job does not start before it."""
    stage.scheduler()
    stage.worker()
    later = await stage.submit("null", run_at=from_now(1))
    await stage.becomes(later, "succeeded", seconds=10)
    assert await stage.value("SELECT started_at >= run_at FROM jobs WHERE job_id = $1", later)


async def test_a_held_account_keeps_no_room_from_others(stage: Stage) -> None:
    """Given an account that somebody holds, with more jobs than there are slots, then others' jobs run meanwhile.

    Let go, its own jobs run too.
    """
    await stage.account("eve", 1000)
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker(slots=2)
    await stage.becomes(await stage.submit(), "succeeded")
    async with stage.database.connection(as_owner=True) as holder:
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM accounts WHERE account_id = 'eve' FOR NO KEY UPDATE")
        held = [await stage.submit("null", "eve") for _ in range(12)]
        for _ in range(3):
            await stage.becomes(await stage.submit(), "succeeded", seconds=8)
        assert ["queued"] * 12 == [(await stage.job(job)).state for job in held]
        await holder.execute("ROLLBACK")
    await stage.all_ended(held, seconds=20)


async def test_a_job_that_no_claim_can_read_keeps_no_room_from_others(stage: Stage) -> None:
    """Given jobs whose claim raises, more than there are slots, then others' jobs run."""
    await stage.account("eve", 1000)
    stage.scheduler(hint_repeat_seconds=60)
    stage.worker(slots=2)
    await stage.becomes(await stage.submit(), "succeeded")
    book = "INSERT INTO price_books (document, digest, effective_at, author, note, created_at) "
    async with stage.database.connection(as_owner=True) as owner:
        broken = await owner.fetchval(
            book + "VALUES ('no book', 'none', now() + interval '1 year', 'test', 'can not be read', now()) "
            "RETURNING book_id"
        )
    unreadable = []
    for _ in range(6):
        job = await stage.submit("null", "eve", run_at=from_now(1))
        unreadable.append(job)
        async with stage.database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE jobs SET book_id = $1 WHERE job_id = $2", broken, job)
    await stage.until(lambda: stage.value("SELECT bool_and(not_before > now() + interval '5 s') FROM due"), "held off")
    await stage.becomes(await stage.submit(), "succeeded", seconds=8)
    async with stage.database.connection(as_owner=True) as owner:
        await owner.execute("UPDATE jobs SET book_id = 2 WHERE book_id = $1", broken)
        await owner.execute("DELETE FROM price_books WHERE book_id = $1", broken)
        await owner.execute("ALTER TABLE audit_log DISABLE TRIGGER USER")
        await owner.execute("DELETE FROM audit_log WHERE what LIKE 'price_books.%' AND subject = $1", str(broken))
        await owner.execute("ALTER TABLE audit_log ENABLE TRIGGER USER")
