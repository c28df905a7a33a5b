"""Fixtures for the tests of this folder."""

from __future__ import annotations

import pytest

from tests.integration.cli_support import Fermata, in_process
from tests.servers import Database


@pytest.fixture
def fermata(
    environment: dict[str, str],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fermata:
    """The command `fermata` over a fresh database."""
    return in_process(environment, database, monkeypatch, capsys)
