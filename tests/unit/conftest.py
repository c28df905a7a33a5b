"""What unit tests of several folders begin with."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def logs_restored() -> Iterator[None]:
    """For a test that sets up logging as a process of ours does: afterwards it is as before."""
    before = structlog.get_config()
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    structlog.configure(**before)
    logging.basicConfig(handlers=handlers, level=level, force=True)
