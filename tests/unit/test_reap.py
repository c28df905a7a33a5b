"""The reap duty's patience: after a gap of its own, or of the books, it gives every worker one lease to renew.

And its impatience: no answer, however late or bad, keeps it from its next look.
"""

from __future__ import annotations

from asyncio import Event, sleep, timeout
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from config.settings import Settings
from worker.credits.operations import EndOverdue, Settle
from worker.duties import reap, under_way
from worker.duties.reap import Reap
from worker.store.errors import LedgerUnavailable
from worker.store.leases import Lapsed

SETTINGS = Settings(lease_seconds=30, renew_seconds=10, reap_tick_seconds=2)
LAPSED = Lapsed("ada", UUID(int=1), UUID(int=2))
OVERDUE = ("bob", UUID(int=3))


async def at_once() -> None:
    """Answered at once."""


async def never() -> None:
    """Not answered: somebody holds the account."""
    await Event().wait()


async def broken() -> None:
    """Answered by a bug."""
    raise ValueError("broken")


async def away() -> None:
    """Turned away: the account was held for too long."""
    raise LedgerUnavailable("held")


@dataclass
class World:
    """A clock, books that may be away, one job whose lease has lapsed, and what was reaped."""

    now: float = 1000.0
    away: bool = False
    overdue_jobs: list[tuple[str, UUID]] = field(default_factory=list)
    reaped: list[Any] = field(default_factory=list)
    #: What it took to end the jobs that are past their `ends_by`.
    ended: list[Any] = field(default_factory=list)
    answers: Callable[[], Awaitable[None]] = at_once
    limits: list[int] = field(default_factory=list)

    async def overdue(self, limit: int) -> list[tuple[str, UUID]]:
        if self.away:
            raise LedgerUnavailable("away")
        self.limits.append(limit)
        return self.overdue_jobs

    async def lapsed(self, limit: int, grace_seconds: float) -> list[Lapsed]:
        return [LAPSED]

    async def do(self, operation: Any) -> None:
        if isinstance(operation, EndOverdue):
            self.ended.append(operation)
            await self.answers()
        else:
            self.reaped.append(operation)

    async def pass_time(self, duty: Reap, seconds: float, every: float) -> None:
        """Let the scheduler run the duty again and again for so long."""
        end = self.now + seconds
        while self.now < end:
            self.now += every
            try:
                await duty.run()
            except LedgerUnavailable:
                continue
            await sleep(0)  # what the tick started has its turn


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(reap, "monotonic", lambda: made.now)
    monkeypatch.setattr(under_way, "monotonic", lambda: made.now)
    return made


def duty_of(world: World) -> Reap:
    return Reap(world, world, SETTINGS)  # type: ignore[arg-type]


async def test_it_waits_one_lease_after_its_start(world: World) -> None:
    """A scheduler that just came can't know who renewed while none was there."""
    duty = duty_of(world)
    await world.pass_time(duty, 29, every=2)
    assert [] == world.reaped
    await world.pass_time(duty, 2, every=2)
    assert isinstance(world.reaped[0], Settle)
    assert LAPSED.token == world.reaped[0].token


async def test_it_waits_one_lease_after_an_outage_of_the_books(world: World) -> None:
    """Given ticks that all failed, then the first that succeeds reaps nobody: the workers were cut off too."""
    duty = duty_of(world)
    await world.pass_time(duty, 40, every=2)
    world.reaped.clear()
    world.away = True
    await world.pass_time(duty, 120, every=1)
    world.away = False
    await world.pass_time(duty, 28, every=2)
    assert [] == world.reaped
    await world.pass_time(duty, 4, every=2)
    assert world.reaped


async def test_a_short_outage_is_no_gap(world: World) -> None:
    """Workers renew well within their lease, so a few failed ticks delay nothing."""
    duty = duty_of(world)
    await world.pass_time(duty, 40, every=2)
    world.away = True
    await world.pass_time(duty, 4, every=1)
    world.away = False
    world.reaped.clear()
    await world.pass_time(duty, 2, every=2)
    assert world.reaped


@pytest.mark.parametrize("answers", [never, broken, away])
async def test_no_answer_keeps_it_from_its_next_look(world: World, answers: Callable[[], Awaitable[None]]) -> None:
    """A job that can't be ended is no gap of the reaper's and makes none: the others are reaped at every tick."""
    duty = duty_of(world)
    world.overdue_jobs, world.answers = [OVERDUE], answers
    with capture_logs():  # drawing tracebacks takes longer than all else here
        async with timeout(5):
            await world.pass_time(duty, 60, every=2)
    # 30 looks, of which the first 15 wait out the lease after the start
    assert 15 == len(world.reaped)


@pytest.mark.parametrize(("answers", "times"), [(never, 1), (broken, 6), (away, 30)])
async def test_one_try_at_a_time(world: World, answers: Callable[[], Awaitable[None]], times: int) -> None:
    """What waits is not started again beside itself; what is broken rests for 10 s; what was away is tried again."""
    duty = duty_of(world)
    world.overdue_jobs, world.answers = [OVERDUE], answers
    await world.pass_time(duty, 60, every=2)
    assert times == len(world.ended)


@pytest.mark.parametrize("answers", [never, broken])
async def test_stuck_jobs_never_fill_its_view(world: World, answers: Callable[[], Awaitable[None]]) -> None:
    """Given a thousand jobs that can't be ended, then the next look reads as many more."""
    duty = duty_of(world)
    world.overdue_jobs, world.answers = [("bob", UUID(int=number)) for number in range(1000)], answers
    with capture_logs():  # a thousand tracebacks take a minute to draw
        await world.pass_time(duty, 4, every=2)
    assert [1000, 2000] == world.limits


async def test_what_is_under_way_is_bounded(world: World) -> None:
    """However many are stuck: no more than 5,000 at a time."""
    duty = duty_of(world)
    world.overdue_jobs, world.answers = [("bob", UUID(int=number)) for number in range(6000)], never
    await world.pass_time(duty, 10, every=2)
    assert 5000 == len(world.ended)
