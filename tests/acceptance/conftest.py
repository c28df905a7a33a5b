"""A deployment for each test that asks, and books that are exact after every one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import Stage, Zygote, opened_stage
from tests.acceptance.up import System, running_system
from tests.servers import Database


@pytest.fixture
async def stage(
    database: Database, environment: dict[str, str], tmp_path: Path, zygote: Zygote
) -> AsyncIterator[Stage]:
    """A deployment without processes yet: the test starts those it needs. Afterwards its books must be exact."""
    async with opened_stage(database, environment, tmp_path, zygote) as opened:
        yield opened
    await assert_books_exact(database)


@pytest.fixture
def system() -> Iterator[System]:
    """Given a system that is up: its API answers and each worker has said that it started."""
    with running_system() as running:
        yield running
