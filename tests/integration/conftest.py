"""Fixtures for the tests of this folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.integration.books import Store, opened, set_clock
from tests.integration.cli_support import Fermata, in_process
from tests.servers import Database, Servers, fresh_database


@pytest.fixture
def fermata(
    environment: dict[str, str],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Fermata]:
    """The command `fermata` over a fresh database. As in a process of its own, it logs only what goes wrong."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield in_process(environment, database, monkeypatch, capsys)
    structlog.configure(**before)


@pytest.fixture(scope="module")
def told(servers: Servers) -> Iterator[tuple[asyncio.Runner, Store]]:
    """A store on a database of its own, shared by all stories; each is of another account."""
    with asyncio.Runner() as runner:
        database = fresh_database(servers)
        store = opened(runner.run(database.__aenter__()))
        entered = runner.run(store.__aenter__())
        # Just before a February, so that months end early.
        runner.run(set_clock(entered, "2031-12-30T10:00:00Z"))
        yield runner, entered
        runner.run(store.__aexit__(None, None, None))
        runner.run(database.__aexit__(None, None, None))
