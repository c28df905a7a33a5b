"""Fixtures for all tests: real servers, started once and only when a test needs them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import settings

from tests import servers as testing
from worker.local.roles import dsn
from worker.local.system import LocalServers

if TYPE_CHECKING:
    from tests.acceptance.stage import Zygote

GIVEN = pytest.StashKey[dict[str, str]]()
STACK = pytest.StashKey[ExitStack]()
SERVERS = pytest.StashKey[testing.Servers]()

#: Tests that need no server. When nothing else is asked for, none is started.
SERVERLESS = ("tests/unit", "tests/torch", "tests/test_layers.py")


# Properties are judged by their answers: a busy machine must not fail them.
settings.register_profile("unhurried", deadline=None)
settings.register_profile("fuzz", settings.get_profile("unhurried"))  # test_fuzz.py makes up new ones then
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole`, as `make proof` asks for."""
    parser.addoption("--whole", action="store_true", help="long proofs whole, where `make test` has a short version")


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether a test marked `proof` is to be played whole; else a short version of it, in which a break is seen."""
    return bool(request.config.getoption("whole"))


def pytest_configure(config: pytest.Config) -> None:
    """Note which servers were given, and hide them from the code under test."""
    config.stash[GIVEN] = testing.taken_from(os.environ)
    config.stash[STACK] = ExitStack()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started here."""
    config.stash[STACK].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In xdist's controller: start the servers once, and tell each worker where they are."""
    root = node.config.rootpath
    serverless = [root / path for path in SERVERLESS]
    asked = [node.config.invocation_params.dir / argument.split("::")[0] for argument in node.config.args]
    if not all(any(path.is_relative_to(place) for place in serverless) for path in asked):
        node.workerinput["servers"] = asdict(_started(node.config))


def _started(config: pytest.Config) -> testing.Servers:
    if SERVERS not in config.stash:
        try:
            config.stash[SERVERS] = config.stash[STACK].enter_context(testing.running_servers(config.stash[GIVEN]))
        except Exception as error:  # said once, not once a test
            pytest.exit(f"no servers for the tests: {error}", returncode=3)
    return config.stash[SERVERS]


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> testing.Servers:
    """The servers of this run."""
    told = getattr(request.config, "workerinput", {}).get("servers")
    return testing.Servers(**told) if told else _started(request.config)


@pytest.fixture
async def database(servers: testing.Servers) -> AsyncIterator[testing.Database]:
    """A fresh, migrated database: `.url` is the app role's, `.owner_url` the owner's."""
    async with testing.fresh_database(servers) as fresh:
        yield fresh


@pytest.fixture
def redis_url(servers: testing.Servers, worker_id: str) -> str:
    """An empty Redis database that no other test process uses."""
    number = 1 + int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 1
    url = f"{servers.redis_url.rpartition('/')[0]}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def environment(database: testing.Database, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """A process's whole environment, with the settings that bring it to this test's own database and Redis."""
    return {
        **os.environ,
        "FERMATA_ENVIRONMENT": "test",
        "FERMATA_DATABASE_URL": dsn(database.url),
        "FERMATA_OWNER_DATABASE_URL": dsn(database.owner_url),
        "FERMATA_REDIS_URL": redis_url,
        "FERMATA_ARTIFACTS_URL": (tmp_path / "artifacts").as_uri(),
        "FERMATA_DATA_DIR": str(tmp_path / "data"),
    }


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where processes are forked from."""
    from tests.acceptance.stage import Zygote  # not for unit tests: it imports much

    started = Zygote()
    yield started
    started.close()


@pytest.fixture
def own_servers() -> Iterator[LocalServers]:
    """Servers of this test alone, migrated: `.postgres` and `.valkey` may be killed, stopped and started again."""
    with testing.own_servers() as local:
        yield local
