"""Slots: who gets one, who is sent back, and how a leaving process empties them. No clock but the loop's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from worker import slots as module
from worker.queue.hints import Pair
from worker.slots import HAND_BACK, Claimed, Slots


class Jobs:
    """A runner whose jobs claim at once, or when told, and run until they are ended."""

    def __init__(self, *, claims: bool = True) -> None:
        self.claims = claims
        self.started: list[UUID] = []
        self.handed_back: list[UUID] = []
        self.reasons: list[object] = []
        self.claimed: dict[UUID, Claimed] = {}
        self._ends: dict[UUID, asyncio.Event] = {}

    def end(self, job_id: UUID) -> None:
        self._ends[job_id].set()

    async def run(self, account_id: str, job_id: UUID, claimed: Claimed) -> None:
        self.started.append(job_id)
        self.claimed[job_id] = claimed
        self._ends[job_id] = asyncio.Event()
        if self.claims:
            claimed()
        try:
            await self._ends[job_id].wait()
        except asyncio.CancelledError as error:
            self.handed_back.append(job_id)
            self.reasons += error.args


async def instantly(account_id: str, job_id: UUID, claimed: Claimed) -> None:
    """A runner that claims and is done."""
    claimed()


def some_pairs(count: int) -> list[Pair]:
    return [("acme", uuid4()) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (any condition, and the loop only has to turn)
            await asyncio.sleep(0)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a hundredth second, for tests that must see one end."""
    monkeypatch.setattr(module, "OFFER_SECONDS", 0.01)
    monkeypatch.setattr(module, "HAND_BACK_SECONDS", 0.01)


async def test_an_offer_returns_when_its_jobs_are_claimed_while_they_run_on() -> None:
    """The hint is done with once the jobs are ours; the lease guards them from there."""
    slots, jobs = Slots(2), Jobs()
    pairs = some_pairs(2)

    left_over = await slots.offer(pairs, jobs.run)

    assert left_over == []
    assert jobs.started == [job_id for _, job_id in pairs]
    assert (slots.busy, slots.free, slots.freed.is_set()) == (2, 0, False)
    await slots.drain(0)


async def test_an_offer_waits_for_every_claim() -> None:
    """A job that has a slot but no claim yet keeps its hint held."""
    slots, jobs = Slots(2), Jobs(claims=False)
    pairs = some_pairs(2)
    offer = asyncio.ensure_future(slots.offer(pairs, jobs.run))

    await until(lambda: len(jobs.started) == 2)
    jobs.claimed[pairs[0][1]]()
    await asyncio.sleep(0)
    assert not offer.done()

    jobs.claimed[pairs[1][1]]()
    assert await offer == []
    await slots.drain(0)


async def test_a_dropped_claim_frees_its_slot_and_counts_as_decided() -> None:
    """A runner that returns without claiming looked at the row and found nothing to do."""

    async def drops(account_id: str, job_id: UUID, claimed: Claimed) -> None:
        return

    slots = Slots(1)

    assert await slots.offer(some_pairs(16), drops) == []
    assert slots.free == 1


async def test_many_quick_jobs_pass_through_few_slots() -> None:
    """Sixteen ids need no sixteen slots when jobs are quick."""
    slots = Slots(2)

    offers = [slots.offer(some_pairs(16), instantly) for _ in range(20)]

    assert await asyncio.gather(*offers) == [[]] * 20
    await until(lambda: slots.free == 2)
    assert slots.freed.is_set()


@pytest.mark.usefixtures("quickly")
async def test_ids_that_find_no_slot_in_time_are_returned_untouched() -> None:
    """What is left over was never started, so its hint mark may be cleared."""
    slots, jobs = Slots(1), Jobs()
    first, *others = some_pairs(16)

    left_over = await slots.offer([first, *others], jobs.run)

    assert left_over == others
    assert jobs.started == [first[1]]
    await slots.drain(0)


@pytest.mark.usefixtures("quickly")
async def test_a_wait_that_ends_in_vain_loses_no_slot() -> None:
    """After many waits that ran out, every slot can still be had."""
    slots, jobs = Slots(1), Jobs()
    pairs = some_pairs(1)
    await slots.offer(pairs, jobs.run)
    await asyncio.gather(*(slots.offer(some_pairs(4), instantly) for _ in range(8)))

    jobs.end(pairs[0][1])
    await until(lambda: slots.free == 1)

    assert await slots.offer(some_pairs(4), instantly) == []


async def test_a_freed_slot_goes_to_the_first_in_line() -> None:
    """Hints are served in the order they came."""
    slots, jobs = Slots(1), Jobs()
    (running,), (second,), (third,) = some_pairs(1), some_pairs(1), some_pairs(1)
    await slots.offer([running], jobs.run)
    waiting = [asyncio.ensure_future(slots.offer([pair], jobs.run)) for pair in (second, third)]
    await asyncio.sleep(0)

    jobs.end(running[1])
    await until(lambda: len(jobs.started) == 2)

    assert jobs.started == [running[1], second[1]]
    slots.close()
    assert await waiting[1] == [third]
    await slots.drain(0)


async def test_a_cancelled_offer_gives_the_slot_it_was_just_handed_to_the_next() -> None:
    """Cancelling whoever waits for a slot can't leak it."""
    slots, jobs = Slots(1), Jobs()
    (running,) = some_pairs(1)
    await slots.offer([running], jobs.run)
    waiting = asyncio.ensure_future(slots.offer(some_pairs(1), jobs.run))
    await asyncio.sleep(0)

    jobs.end(running[1])
    await until(lambda: not slots._waiting)  # the slot was handed over, the waiter has not woken yet
    waiting.cancel()
    await asyncio.wait({waiting})

    assert await slots.offer(some_pairs(1), instantly) == []


async def test_a_closed_process_returns_every_id() -> None:
    """Draining claims nothing more: not what waits in line, not what comes later."""
    slots, jobs = Slots(1), Jobs()
    await slots.offer(some_pairs(1), jobs.run)
    pairs = some_pairs(3)
    waiting = asyncio.ensure_future(slots.offer(pairs, jobs.run))
    await asyncio.sleep(0)

    slots.close()

    assert await waiting == pairs
    assert await slots.offer(pairs, jobs.run) == pairs
    assert (slots.free, slots.freed.is_set(), len(jobs.started)) == (0, False, 1)
    await slots.drain(0)


async def test_a_job_that_ends_in_a_closed_process_opens_nothing() -> None:
    """`freed` stays unset after closing, or the consumers would fetch again."""
    slots, jobs = Slots(1), Jobs()
    pairs = some_pairs(1)
    await slots.offer(pairs, jobs.run)

    slots.close()
    jobs.end(pairs[0][1])
    await until(lambda: slots.busy == 0)

    assert (slots.free, slots.freed.is_set()) == (0, False)


async def test_draining_lets_running_jobs_end() -> None:
    """Given time, nothing is handed back."""
    slots, jobs = Slots(2), Jobs()
    pairs = some_pairs(2)
    await slots.offer(pairs, jobs.run)
    drain = asyncio.ensure_future(slots.drain(60))
    await asyncio.sleep(0)

    for _, job_id in pairs:
        jobs.end(job_id)

    assert await drain == 0
    assert jobs.handed_back == []


async def test_draining_hands_back_what_does_not_end_in_time() -> None:
    """Each runner is cancelled once, and can tell why."""
    slots, jobs = Slots(2), Jobs()
    pairs = some_pairs(2)
    await slots.offer(pairs, jobs.run)

    assert await slots.drain(0.01) == 0

    assert sorted(jobs.handed_back) == sorted(job_id for _, job_id in pairs)
    assert jobs.reasons == [HAND_BACK, HAND_BACK]
    assert slots.handing_back


async def test_handing_back_cuts_a_drain_short() -> None:
    """A second signal does not wait for the first one's patience."""
    slots, jobs = Slots(1), Jobs()
    await slots.offer(some_pairs(1), jobs.run)
    drain = asyncio.ensure_future(slots.drain(3600))
    await asyncio.sleep(0)

    slots.hand_back_all()

    async with asyncio.timeout(5):
        assert await drain == 0


async def test_handing_back_twice_does_not_interrupt_the_handing_back() -> None:
    """A third signal must not cancel the statement that puts the job back."""
    slots = Slots(1)
    put_back = asyncio.Event()
    interrupted: list[str] = []

    async def slow_to_hand_back(account_id: str, job_id: UUID, claimed: Claimed) -> None:
        claimed()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await put_back.wait()
            except asyncio.CancelledError:
                interrupted.append("interrupted")

    await slots.offer(some_pairs(1), slow_to_hand_back)
    slots.hand_back_all()
    await asyncio.sleep(0)
    slots.hand_back_all()
    put_back.set()

    assert await slots.drain(60) == 0
    assert interrupted == []


@pytest.mark.usefixtures("quickly")
async def test_a_runner_that_will_not_stop_is_abandoned() -> None:
    """Draining is bounded, and says how many leases will lapse."""
    slots = Slots(1)
    release = asyncio.Event()

    async def stubborn(account_id: str, job_id: UUID, claimed: Claimed) -> None:
        claimed()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    await slots.offer(some_pairs(1), stubborn)

    assert await slots.drain(0) == 1
    release.set()
    await until(lambda: slots.busy == 0)


async def test_a_runner_that_raises_frees_its_slot_and_its_neighbours_run() -> None:
    """A bug in one job's run costs its slot nothing."""

    async def broken(account_id: str, job_id: UUID, claimed: Claimed) -> None:
        raise RuntimeError("a bug")

    slots = Slots(1)

    assert await slots.offer(some_pairs(3), broken) == []
    assert (slots.free, slots.freed.is_set()) == (1, True)


def test_a_process_without_slots_is_refused() -> None:
    """It would take hints for ever and run none."""
    with pytest.raises(ValueError, match="at least one slot"):
        Slots(0)
