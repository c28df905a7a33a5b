"""The OpenAPI document is true: whatever it allows is answered by what it says, and never by a 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.result import Ok

from config.settings import load
from tests.servers import Servers, fresh_database
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.database import make_engine
from worker.web.app import make_app
from worker.web.server import server_of

#: Streams until a job ends: what it says is tested in test_api_following.
LEFT_OUT = "/v1/jobs/{job}/events"
EXAMPLES = 5


@pytest.fixture(scope="module")
def served(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of an API in a thread of its own, and an admin's key."""
    ready, ended = threading.Event(), threading.Event()
    told: dict[str, Any] = {}

    async def serve() -> None:
        async with fresh_database(servers) as database:
            folder = tmp_path_factory.mktemp("api")
            chosen = load(
                {},
                database_url=database.url,
                environment="test",
                artifacts_url=(folder / "artifacts").as_uri(),
                api_port=0,
                api_requests_per_minute=10_000_000,
            )
            engine = make_engine(chosen, name="test")
            told["key"] = (await ApiKeys(engine).create(NewKey(Role.ADMIN, "schema"), "test")).key
            await engine.dispose()
            server: uvicorn.Server = server_of(make_app(chosen), chosen)
            running = asyncio.create_task(server._serve())
            while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
                await asyncio.sleep(0.01)
            told["url"] = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            ready.set()
            await asyncio.to_thread(ended.wait)
            server.should_exit = True
            await running

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield told["url"], told["key"]
    ended.set()
    thread.join(30)


def test_no_request_that_fits_the_document_breaks_the_server(
    served: tuple[str, str], subtests: pytest.Subtests
) -> None:
    """Every operation, with requests that fit and with some that don't."""
    url, key = served
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    met = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if operation.path == LEFT_OUT:
            continue
        met += 1
        with subtests.test(operation.label):
            _try(operation, key)
    assert met > 40


def _try(operation: Any, key: str) -> None:
    from hypothesis import given

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def once(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code < 500, (case.as_curl_command(), answer.text[:500])
        assert answer.status_code in documented, (case.as_curl_command(), answer.status_code, answer.text[:300])
        if answer.status_code >= 400:
            assert "application/problem+json" == answer.headers["content-type"][0]

    documented = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()} | {400, 404, 405}
    once()
