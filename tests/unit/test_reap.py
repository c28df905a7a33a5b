"""The reap duty's patience: after a gap of its own, or of the books, it gives every worker one lease to renew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from config.settings import Settings
from worker.credits.operations import Settle
from worker.duties import reap
from worker.duties.reap import Reap
from worker.store.errors import LedgerUnavailable
from worker.store.leases import Lapsed

SETTINGS = Settings(lease_seconds=30, renew_seconds=10, reap_tick_seconds=2)
LAPSED = Lapsed("ada", UUID(int=1), UUID(int=2))


@dataclass
class World:
    """A clock, books that may be away, one job whose lease has lapsed, and what was reaped."""

    now: float = 1000.0
    away: bool = False
    reaped: list[Any] = field(default_factory=list)

    async def overdue(self, limit: int) -> list[tuple[str, UUID]]:
        if self.away:
            raise LedgerUnavailable("away")
        return []

    async def lapsed(self, limit: int, grace_seconds: float) -> list[Lapsed]:
        return [LAPSED]

    async def do(self, operation: Any) -> None:
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


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(reap, "monotonic", lambda: made.now)
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
