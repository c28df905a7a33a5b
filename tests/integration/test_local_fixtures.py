"""The suite's own ground: a fresh database each, the app role's rights only, a clock that can be set ahead."""

from __future__ import annotations

import os
from datetime import timedelta

import asyncpg
import pytest
import redis

from tests.servers import Database
from worker.local.roles import APP_ROLE


async def test_a_test_connects_as_the_app_role(database: Database) -> None:
    """Tests have no more rights than production: they can't make a table."""
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT current_user") == APP_ROLE
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE souvenir (id int)")


@pytest.mark.parametrize("round_", [1, 2])
async def test_each_test_has_a_database_of_its_own(database: Database, round_: int) -> None:
    """What one test leaves, the next does not see."""
    async with database.connection(as_owner=True) as connection:
        await connection.execute("CREATE TABLE souvenir (id int)")


async def test_the_databases_clock_can_be_set_ahead(database: Database) -> None:
    """Advancing twice adds up, and the real clock goes on underneath."""
    await database.advance(timedelta(days=30))
    await database.advance(timedelta(days=1))
    async with database.connection() as connection:
        ahead = await connection.fetchval("SELECT fermata_now() - clock_timestamp()")
    assert timedelta(days=31) - timedelta(seconds=1) < ahead <= timedelta(days=31)


@pytest.mark.parametrize("round_", [1, 2])
def test_each_test_starts_with_an_empty_redis(redis_url: str, round_: int) -> None:
    """What one test leaves in Redis, the next does not see."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("souvenir", "1")


def test_the_suites_settings_do_not_reach_the_code_under_test() -> None:
    """FERMATA_* variables that steer the suite are gone from the environment once it runs."""
    assert [name for name in os.environ if name.startswith("FERMATA_")] == []
