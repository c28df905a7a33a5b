"""Fixtures for the tests of this folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.integration.cli_support import Fermata, in_process
from tests.servers import Database


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
