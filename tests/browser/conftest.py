"""The dashboard in Debian's Chromium, against a whole deployment: API, scheduler and workers as real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from playwright.async_api import Browser

from tests.acceptance.exactness import assert_books_exact
from tests.acceptance.stage import ACTOR, Process, Stage, Zygote, opened_stage, until
from tests.browser.screen import chromium, started_browser
from tests.servers import Database
from worker.local.ports import free_port
from worker.store.api_keys import ApiKeys, NewKey, Role


@dataclass(slots=True)
class Site:
    """A deployment with its dashboard."""

    stage: Stage
    base: str
    api: Process
    keys: dict[str, str] = field(default_factory=dict)

    async def key(self, role: str) -> str:
        """A key of that role, made once."""
        if role not in self.keys:
            made = await ApiKeys(self.stage.store.engine).create(NewKey(Role(role), f"Kim, {role}"), ACTOR)
            self.keys[role] = made.key
        return self.keys[role]


@pytest.fixture
async def site(database: Database, environment: dict[str, str], tmp_path: Path, zygote: Zygote) -> AsyncIterator[Site]:
    """An API and a scheduler; workers are the test's to start. Afterwards the books must be exact."""
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    async with opened_stage(database, environment, tmp_path, zygote) as stage:
        port = free_port()
        api = stage.script("api", api_port=port)
        stage.scheduler()
        base = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            async with httpx2.AsyncClient() as http:
                try:
                    return (await http.get(f"{base}/livez")).is_success
                except httpx2.HTTPError:
                    return False

        await until(answers, "the API answers", 60)
        yield Site(stage, base, api)
    await assert_books_exact(database)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium."""
    executable = chromium()
    if executable is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    async with started_browser(executable) as started:
        yield started
