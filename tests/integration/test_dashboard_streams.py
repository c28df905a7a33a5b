"""What watching costs PostgreSQL, counted in statements, and when a stream ends whose session is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import load
from tests.integration.api_support import ACTOR, served
from tests.integration.books import Store, opened
from tests.integration.dashboard_support import board_of_app
from tests.servers import Database
from worker.store.api_keys import ApiKeys, KeyMade, NewKey, Role
from worker.store.errors import LedgerUnavailable
from worker.store.sessions import Sessions
from worker.web.dashboard.board import Board
from worker.web.dashboard.guests import ASK_SECONDS, Guests
from worker.web.dashboard.live import PAUSE_SECONDS
from worker.web.dashboard.session import COOKIE

LOOKER, ASKER = "Live._keep_looking", "Guests._keep_asking"


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    async with opened(database) as opened_store:
        await opened_store.account("ada", 100)
        yield opened_store


@asynccontextmanager
async def a_dashboard(store: Store, folder: Path) -> AsyncIterator[tuple[Board, str]]:
    """A served API whose looks and questions follow each other quickly, and its address."""
    settings = load(
        {},
        database_url=store.database.url,
        environment="test",
        artifacts_url=(folder / "artifacts").as_uri(),
        api_port=0,
    )
    async with served(settings) as (server, url):
        board = board_of_app(server.config.app)  # type: ignore[arg-type]  # ours
        board.live.pause_seconds, board.guests.ask_seconds = 0.05, 0.1
        yield board, url


async def a_key(store: Store) -> KeyMade:
    return await ApiKeys(store.engine).create(NewKey(Role.VIEWER, "viewer"), ACTOR)


async def a_session(store: Store, key: KeyMade) -> str:
    return await Sessions(store.engine).open(key.shown)


class Viewer:
    """Somebody who watches a stream, and counts what comes."""

    def __init__(self, url: str, path: str, secret: str) -> None:
        self.parts = 0
        self.task = asyncio.create_task(self._watch(url, path, secret))

    async def _watch(self, url: str, path: str, secret: str) -> int:
        """The status, once the stream has ended."""
        async with (
            httpx2.AsyncClient(base_url=url, cookies={COOKIE: secret}, timeout=30) as http,
            http.stream("GET", path) as answer,
        ):
            async for line in answer.aiter_lines():
                self.parts += line == ""
            return answer.status_code

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return once it holds."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  a counter has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within 20 s: {what}")


@contextmanager
def statements_by_sender(engine: AsyncEngine) -> Iterator[Counter[str]]:
    """How many statements each task sends meanwhile, by the name of what it runs. A BEGIN would come with each."""
    sent: Counter[str] = Counter()

    def note(*_: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        sent[getattr(task.get_coro(), "__qualname__", "")] += 1

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_twenty_viewers_send_as_many_statements_as_one(store: Store, tmp_path: Path) -> None:
    """One a look and one a question for all sessions, whoever many they are; no request of theirs sends any more."""
    async with a_dashboard(store, tmp_path) as (board, url):
        await board.live.latest()  # the first look of a process asks for the clock, too
        for count in (1, 20):
            key = await a_key(store)
            viewers = [Viewer(url, "/live/overview", await a_session(store, key)) for _ in range(count)]
            await until(lambda viewers=viewers: all(viewer.parts for viewer in viewers), "all are shown something")  # type: ignore[misc]
            with statements_by_sender(board.services.engine) as sent:
                looks, asks = board.live.looks, board.guests.asks
                await until(lambda looks=looks: board.live.looks >= looks + 30, "thirty looks")  # type: ignore[misc]
                await until(lambda asks=asks: board.guests.asks >= asks + 5, "five questions")  # type: ignore[misc]
                seen = {LOOKER: board.live.looks - looks, ASKER: board.guests.asks - asks}
                counted = {name: sent[name] for name in seen}
                others = {name for name in sent if "Request" in name or "asgi" in name.lower()}
            for name, statements in counted.items():
                # One that was sent just before we began, or whose answer is not there yet, stands in only one of both.
                assert abs(statements - seen[name]) <= 1, (count, name, counted, seen)
            assert set() == others
            await asyncio.gather(*(viewer.leave() for viewer in viewers))
            await until(lambda: board.live.viewers == 0, "everybody has left")


@pytest.mark.parametrize("watched", ["overview", "workers", "job"])
async def test_a_stream_ends_with_its_session(store: Store, tmp_path: Path, watched: str) -> None:
    """A revoked key ends the streams of its sessions, signing out ends its own; those of others go on."""
    job = await store.queued("ada")
    path = f"/live/jobs/{job}" if watched == "job" else f"/live/{watched}"
    async with a_dashboard(store, tmp_path) as (board, url):
        revoked, other = await a_key(store), await a_key(store)
        left = await a_session(store, other)
        ends = [Viewer(url, path, await a_session(store, revoked)) for _ in range(2)]
        leaver, stays = Viewer(url, path, left), Viewer(url, path, await a_session(store, other))
        everybody = [*ends, leaver, stays]
        await until(lambda: all(viewer.parts for viewer in everybody), "all are shown something")
        await ApiKeys(store.engine).revoke(revoked.shown.id, ACTOR)
        assert [200, 200] == await asyncio.wait_for(asyncio.gather(*(viewer.task for viewer in ends)), 20)
        assert not leaver.task.done()
        await Sessions(store.engine).close(left)
        assert 200 == await asyncio.wait_for(leaver.task, 20)
        asks = board.guests.asks
        await until(lambda: board.guests.asks > asks + 1, "it was asked again")
        assert not stays.task.done()
        await stays.leave()


def test_how_long_a_revoked_key_may_still_watch() -> None:
    """The bound that decision 0012 and DEPLOY state: a question, and a look after it."""
    assert ASK_SECONDS + 2 * PAUSE_SECONDS <= 6


class _Away(Sessions):
    """Books that don't answer."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def still_open(self, hashes: object) -> frozenset[bytes]:
        raise self._error


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), KeyError("a mistake of ours")], ids=type)
async def test_nobody_is_cut_off_while_the_books_are_away(error: Exception) -> None:
    """Nobody can say then, and it is asked again; and while nobody is there, nobody is asked for."""
    guests = Guests(_Away(error), ask_seconds=0.01)
    with guests.staying("secret") as welcome, guests.staying("another"):
        await until(lambda: guests.asks > 2, "it was asked")
        assert welcome()
    assert guests._asking is not None
    await asyncio.wait_for(asyncio.shield(guests._asking), 5)
    await guests.close()
