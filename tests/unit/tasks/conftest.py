"""What tests of engines run in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasks.engines.child import close_children
from tests.unit.tasks.contexts import Recorder


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    """One attempt, in a folder of its own that the inputs don't lie in."""
    folder = tmp_path / "attempt"
    folder.mkdir()
    yield Recorder(folder)
    await close_children()
