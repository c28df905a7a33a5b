"""Figures that move: one look a second for everybody, none for nobody; and what the overview says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uuid_utils.compat as uuids
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from tests.integration.api_support import Api, an_api
from tests.integration.dashboard_support import board_in, visiting
from tests.servers import Database
from worker.credits.operations import Claim
from worker.store.ops import Scope
from worker.store.reads_overview import OverviewReads
from worker.web.dashboard import live as live_module
from worker.web.dashboard import streams
from worker.web.dashboard.figures import figures_of
from worker.web.dashboard.live import Live, Look, pause_after


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as opened:
        await opened.account("ada", 100)
        yield opened


@pytest.fixture
async def live(api: Api) -> AsyncIterator[Live]:
    """A look that does not wait a second between two looks."""
    made = Live(board_in(api).overview, pause_seconds=0.05)
    yield made
    await made.close()


async def see(live: Live, looks: int, watched: UUID | None = None) -> list[Look]:
    """What one viewer is shown, so many looks long."""
    seen = []
    async with asyncio.timeout(20), aclosing(live.looks_from(watched)) as stream:
        async for look in stream:
            seen.append(look)
            if len(seen) == looks:
                break
    return seen


async def test_a_hundred_viewers_cost_as_much_as_one(live: Live) -> None:
    """Everybody is shown the same looks: their number does not grow with the viewers."""
    shown = await asyncio.gather(*(see(live, 4) for _ in range(100)))
    assert {4} == {len(looks) for looks in shown}
    assert live.looks <= 8
    assert len({id(look) for looks in shown for look in looks}) <= live.looks


async def test_nobody_looks_nobody_asks(live: Live) -> None:
    """When the last viewer has gone, PostgreSQL is not asked again, and the next viewer wakes it."""
    await see(live, 2)
    assert 0 == live.viewers
    await asyncio.wait_for(asyncio.shield(live._looking), 5)  # type: ignore[arg-type]  # ends by itself
    looks = live.looks
    await asyncio.sleep(0.2)  # four pauses: nothing to wait for is just what is claimed
    assert looks == live.looks
    await see(live, 1)
    assert looks < live.looks


async def test_pages_that_open_at_once_share_a_look(api: Api) -> None:
    """Fifty people who open the overview in the same second cost PostgreSQL one look."""
    board = board_in(api)
    async with visiting(api, "viewer") as visit:
        before = board.live.looks
        found = await asyncio.gather(*(visit.http.get("/") for _ in range(50)))
        assert {200} == {one.status_code for one in found}
        assert board.live.looks - before <= 2


async def test_a_watched_job_is_seen_as_it_moves(api: Api, live: Live) -> None:
    """Its state comes with the shared look; who watches nothing pays for nothing."""
    job = UUID((await api.submit())["id"])
    assert "queued" == getattr((await see(live, 1, job))[-1].glance(job), "state", None)
    await api.services.client.cancel("ada", job, "test")
    seen = await see(live, 3, job)
    assert "cancelled" == getattr(seen[-1].glance(job), "state", None)
    assert () == (await see(live, 2))[-1].now.watched


async def test_a_stream_of_a_job_ends_when_the_job_has(api: Api, live: Live) -> None:
    """The page is told that the job moved, is shown its end, and the stream is over."""
    job = UUID((await api.submit())["id"])
    events: list[str] = []
    async with asyncio.timeout(20):
        async for event in streams.job_events(live, job):
            events.append(event.decode())
            if len(events) == 1:
                await api.services.client.cancel("ada", job, "test")
    assert "queued" in events[0]
    assert "event: moved\ndata: cancelled\n\n" == events[1]
    assert "cancelled" in events[2]
    assert 0 == live.viewers


async def test_the_overview_tells_what_ended_and_where_credits_are(api: Api) -> None:
    """Counts, charges and what was returned, of every job that ended."""
    live = board_in(api).live
    for _ in range(3):
        job = await api.submit()
        await api.services.client.cancel("ada", UUID(job["id"]), "test")
    await api.submit()
    live.outdated()
    figures = figures_of(await live.latest())
    assert (1, 0, 3) == (figures.ready, figures.running, figures.hour.others)
    assert (0, 100) == (figures.held, figures.available)
    assert "bad" == figures.tone
    assert "generation has 1 job ready and no living worker." in figures.warnings
    assert "No scheduler has ever run on this database: no job will start." in figures.warnings
    assert (
        "Nothing is running although 1 job could: 0 done in the last hour, which is still being read."
        == figures.verdict
    )


async def test_the_overview_tells_of_pauses_in_words(api: Api) -> None:
    """With their reason, and how many jobs wait."""
    board = board_in(api)
    await api.submit()
    await api.services.controls.pause(Scope.QUEUE, "generation", "GPU maintenance", "ops")
    await api.services.controls.pause(Scope.KIND, "stem_split", "recall", "ops")
    await api.services.controls.pause(Scope.ACCOUNT, "ada", "fraud", "ops")
    board.live.outdated()
    warnings = figures_of(await board.live.latest()).warnings
    assert "generation is paused: GPU maintenance. 1 job waits." in warnings
    assert "All stem split jobs are paused by kind." in warnings
    assert "1 paused account." in warnings


async def test_a_stream_needs_a_session_and_says_what_moves(api: Api) -> None:
    """The overview's stream is server-sent events of parts of the page, for those who are signed in."""
    async with visiting(api, None) as visit:
        assert 401 == (await visit.http.get("/live/overview")).status_code
    live = Live(board_in(api).overview, pause_seconds=0.02)
    parts: list[bytes] = []
    async with asyncio.timeout(20):
        async for part in streams.overview_events(live):
            parts.append(part)
            if part.startswith(b"event: plots"):
                break
    await live.close()
    assert b"verdict" in parts[0]
    assert all(part.endswith(b"\n\n") for part in parts)
    drawn = json.loads(parts[-1].partition(b"data: ")[2])
    assert (60, 96) == (len(drawn["hour"]["at"]), len(drawn["day"]["succeeded"]))


class _Mistaken(OverviewReads):
    """Reads as ever, but in the second and third look a mistake of ours shows."""

    asked = 0

    async def look(self, *what: Any, **how: Any) -> Any:
        self.asked += 1
        if self.asked in (2, 3):
            raise KeyError("a word that is not known")
        return await super().look(*what, **how)


async def test_a_mistake_in_a_look_ends_no_stream(api: Api) -> None:
    """It is logged each time, whoever watches is told that nothing new is known, and soon sees again."""
    live = Live(_Mistaken(board_in(api).services.engine), pause_seconds=0.02)
    with capture_logs() as lines:
        seen = await see(live, 3)
    await live.close()
    assert [False, True, False] == [look.away for look in seen]
    assert ["the overview could not be read by a mistake of ours"] * 2 == [
        line["event"] for line in lines if line["log_level"] == "error"
    ]


async def test_the_hour_moves_on_where_nobody_has_a_stream(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that come so seldom that everything slow is due at each: they count what has ended, and read the past."""
    monkeypatch.setattr(live_module, "SLOW_SECONDS", 0.0)
    live = board_in(api).live
    counted: list[int] = []
    since: list[datetime] = []
    for _ in range(4):
        job = await api.submit()
        await api.services.client.cancel("ada", UUID(job["id"]), "test")
        live.outdated()
        look = await live.latest()
        counted.append(figures_of(look).hour.others)
        assert look.history.since is not None
        since.append(look.history.since)
    assert [1, 2, 3, 4] == counted
    assert sorted(set(since), reverse=True) == since  # each look a window further back


@pytest.mark.parametrize(
    ("took", "answered", "seconds"),
    [(0.1, True, 0.9), (2.0, True, 8.0), (15.0, True, 10.0), (17.0, False, 0.05), (0.01, False, 0.99)],
    ids=["quick", "long", "frozen in it", "given up", "turned away"],
)
def test_when_the_next_look_comes(took: float, answered: bool, seconds: float) -> None:
    """Looking takes a fifth of the time at most; what had no answer is asked again at once, for it may be back.

    Nobody waits for longer than 10 s: until then a page is not told that its key was revoked, either.
    """
    assert pytest.approx(seconds) == pause_after(took, 1.0, answered=answered)


class _Hanging(OverviewReads):
    """Reads as ever, but the second look has its answer only when it is let."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.asked, self.let = 0, asyncio.Event()

    async def look(self, *what: Any, **how: Any) -> Any:
        self.asked += 1
        if self.asked == 2:
            await self.let.wait()
        return await super().look(*what, **how)


async def test_a_look_without_an_answer_is_told_of_before_it_gives_up(api: Api) -> None:
    """Whoever watches sees within seconds that the figures stand still, and that they move again."""
    reads = _Hanging(board_in(api).services.engine)
    live, away = Live(reads, pause_seconds=0.02, doubt_seconds=0.05), []
    async with asyncio.timeout(20), aclosing(live.looks_from()) as stream:
        async for look in stream:
            away.append(look.away)
            if look.away:
                reads.let.set()
            if away[-2:] == [True, False]:
                break
    await live.close()
    assert [False, False] == [away[0], away[-1]]
    assert {True} == set(away[1:-1])


async def test_the_pages_beside_the_overview_move_with_the_same_looks(api: Api, live: Live) -> None:
    """A queue's figures and what workers have in hand; what is each visitor's own is fetched anew when it must be."""
    controls, hand, queue = (
        api.services.controls,
        streams.workers_events(live),
        streams.queue_events(live, "generation"),
    )
    async with asyncio.timeout(20), aclosing(hand), aclosing(queue):
        assert b"nothing is running" in await anext(hand)
        assert b"It has no jobs, no workers" in await anext(queue)
        job = (await api.submit())["id"]
        await until_it_says(queue, b"<dt>ready</dt><dd>1</dd>")
        await api.services.client.operations.do(Claim("ada", UUID(job), uuids.uuid7(), "w1", 30))
        await until_it_says(hand, job[-12:].encode())
        await controls.pause(Scope.QUEUE, "generation", "GPU maintenance", "ops")
        await until_it_says(queue, b"event: moved")
        before = live.looks
        await asyncio.gather(anext(hand), anext(queue))
        assert live.looks - before <= 2


async def until_it_says(stream: AsyncGenerator[bytes], words: bytes) -> None:
    """Read on until an event has these words."""
    async for part in stream:
        if words in part:
            return
