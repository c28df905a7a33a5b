"""What each role may do, tried out: the worker sets no price, product moves no credit, and both can do their work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from tests.integration.books import opened
from tests.integration.cli_support import Fermata
from tests.integration.test_rehearsals import DEARER, SHIPPED, some_songs
from tests.integration.test_schema import FORBIDDEN
from tests.servers import Database
from worker.credits.operations import Claimed
from worker.credits.outcomes import Ending
from worker.local.roles import PRODUCT_ROLE, WORKER_ROLE, dsn
from worker.local.waiting import finished
from worker.store.audit import audit

A_BOOK = (
    "(document, digest, effective_at, author, note, created_at) "
    "SELECT '', '', fermata_now(), 'eve', 'mine', fermata_now()"
)

#: Beside all that the app may not.
NOT_FOR_WORKERS = [
    f"INSERT INTO price_books {A_BOOK}",
    f"INSERT INTO plan_books {A_BOOK}",
    "UPDATE price_books SET withdrawn_at = fermata_now()",
    "UPDATE plan_books SET withdrawn_at = fermata_now()",
    "UPDATE price_books SET document = 'free'",
    "DELETE FROM price_books",
    "DELETE FROM plan_books",
    "INSERT INTO rehearsals (digest, against, since, until, at, actor, outcome) "
    "SELECT 'x', 1, fermata_now(), fermata_now(), fermata_now(), 'eve', '{}'",
    "INSERT INTO purchases (account_id, reference, credits, at, actor) SELECT 'ada', 'r', 5, fermata_now(), 'eve'",
    "INSERT INTO accounts (account_id, created_at, actor) SELECT 'eve', fermata_now(), 'eve'",
    "INSERT INTO jobs SELECT * FROM jobs",
    "SELECT * FROM api_keys",
    "DELETE FROM api_keys",
    "SELECT * FROM sessions",
    "INSERT INTO sessions SELECT",
    "SET ROLE fermata_app",
    "SET ROLE fermata_product",
]

#: Beside all that they may not: what the API and the command need no right for.
NOT_FOR_ANYBODY = [
    f"UPDATE {table} SET {change} WHERE book_id = (SELECT max(book_id) FROM {table})"
    for table in ("price_books", "plan_books")
    for change in (
        "withdrawn_at = fermata_now()",
        "withdrawn_at = fermata_now() + interval '1 hour'",
        "withdrawn_by = 'eve'",
        "withdrawn_note = 'never mind'",
    )
] + [
    f"INSERT INTO {table} (document, digest, effective_at, author, note, created_at) "
    f"SELECT document, 'x', fermata_now() - interval '1 second', 'eve', 'mine', fermata_now() FROM {table} LIMIT 1"
    for table in ("price_books", "plan_books")
]

NOT_FOR_PRODUCT = [
    *NOT_FOR_WORKERS[4:7],
    *NOT_FOR_WORKERS[8:-1],
    "UPDATE price_books SET effective_at = fermata_now()",
    "INSERT INTO lots (account_id, source, granted, available, created_at, reason) "
    "SELECT 'ada', 'grant', 9, 9, fermata_now(), 'mine'",
    "INSERT INTO journal (account_id, at, lot_id, move, amount, reason, actor) "
    "SELECT 'ada', fermata_now(), 1, 'grant', 9, 'mine', 'eve'",
    "INSERT INTO reservations SELECT * FROM reservations",
    "INSERT INTO cycles SELECT * FROM cycles",
    "INSERT INTO debts SELECT * FROM debts",
    "INSERT INTO subscriptions SELECT * FROM subscriptions",
    "INSERT INTO events SELECT * FROM events",
    "INSERT INTO due SELECT * FROM due",
    "UPDATE lots SET available = available + 1, granted = granted + 1",
    "UPDATE lots SET available = 0, spent = 9",
    "UPDATE reservations SET charged = 0",
    "UPDATE accounts SET plan = 'label'",
    "UPDATE subscriptions SET next_plan = 'label'",
    "UPDATE jobs SET charged = 0",
    "UPDATE live SET token = gen_random_uuid()",
    "UPDATE due SET priority = 0",
    "UPDATE controls SET paused = true",
    "DELETE FROM due",
    "DELETE FROM live",
    "SELECT fermata_make_partitions(3)",
    "SELECT * FROM webhook_secrets",
    "SET ROLE fermata_worker",
]


@pytest.fixture
def roles(database: Database) -> Database:
    """The database, if the server has these roles: one that was given by URL may have only the app's."""
    if database.worker_url == database.url:
        pytest.skip("this server was given by URL and has no roles of ours")
    return database


async def refused(url: str, role: str, statements: Sequence[str]) -> None:
    """Each of them, by PostgreSQL itself."""
    connection = await asyncpg.connect(dsn(url))
    try:
        assert role == await connection.fetchval("SELECT current_user")
        for sql in statements:
            try:
                await connection.execute(sql)
            except asyncpg.InsufficientPrivilegeError:
                continue
            pytest.fail(f"{role} may: {sql}")
    finally:
        await connection.close()


async def test_the_worker_sets_no_price_and_sells_nothing(roles: Database) -> None:
    """Nor may it do anything that the app may not."""
    await refused(roles.worker_url, WORKER_ROLE, [*NOT_FOR_WORKERS, *FORBIDDEN])


async def test_product_moves_no_credit_and_touches_no_job(roles: Database) -> None:
    """Nor may it change a book that was applied."""
    await refused(roles.product_url, PRODUCT_ROLE, [*NOT_FOR_PRODUCT, *FORBIDDEN])


@pytest.mark.parametrize("table", ["price_books", "plan_books"])
async def test_no_book_in_force_is_withdrawn_and_none_is_brought_or_dated_back(roles: Database, table: str) -> None:
    """By raw SQL too, the owner included: jobs were priced by the one, and the other never counted."""
    for url in (roles.url, roles.product_url):
        role = dsn(url).split("//")[1].split(":")[0]
        await refused(url, role, [sql for sql in NOT_FOR_ANYBODY if table in sql])
    async with roles.connection(as_owner=True) as owner:
        planned = await owner.fetchval(
            f"INSERT INTO {table} (document, digest, effective_at, author, note, created_at) "
            "SELECT document, 'x', fermata_now() + interval '1 day', author, note, fermata_now() "
            f"FROM {table} LIMIT 1 RETURNING book_id"
        )
        withdraw = f"UPDATE {table} SET withdrawn_at = fermata_now(), withdrawn_by = 'mia' WHERE book_id = $1"
        await owner.execute(withdraw, planned)
        for change in ("withdrawn_at = NULL, withdrawn_by = NULL", "withdrawn_by = 'eve'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="never"):
                await owner.execute(f"UPDATE {table} SET {change} WHERE book_id = $1", planned)


async def test_a_worker_needs_no_more_than_it_may(roles: Database) -> None:
    """It claims, settles, refunds and begins a cycle; what it wrote is sound."""
    async with opened(roles) as app, opened(replace(roles, url=roles.worker_url)) as worker:
        account = await app.account("ada", 100)
        await app.accounts.subscribe(account, "creator", "s-1", "billing")
        for ending in (Ending.SUCCEEDED, Ending.ENGINE_ERROR, Ending.ENGINE_FAILURE):
            claimed = await worker.claim(account, await app.queued(account))
            assert isinstance(claimed, Claimed)
            await worker.settle(account, claimed, ending)
        assert (await audit(worker.engine)).ok


def test_product_needs_no_more_than_it_may(
    fermata: Fermata, roles: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows, rehearses, applies, withdraws and reverts; a grant is refused in one line that says why."""
    finished(some_songs(roles, ["ada"]))
    monkeypatch.setenv("FERMATA_DATABASE_URL", dsn(roles.product_url))
    (draft := tmp_path / "draft.toml").write_text(DEARER)
    who = ("--note", "up", "--as", "mia")
    fermata.ok("prices", "rehearse", str(draft))
    assert 2 == fermata.ok("prices", "apply", str(draft), *who)["book"]
    assert 3 == fermata.ok("prices", "apply", str(draft), *who, "--effective-at", "2199-01-01T00:00:00Z")["book"]
    fermata.ok("prices", "withdraw", "3", *who)
    fermata.ok("prices", "revert", "1", *who)
    assert fermata("prices", "show").out == SHIPPED
    before = finished(_credits(roles))
    answer = fermata("accounts", "grant", "ada", "5")
    assert (2, "") == (answer.code, answer.out)
    assert "the role in FERMATA_DATABASE_URL may not do that" in answer.complaint
    assert before == finished(_credits(roles))


async def _credits(database: Database) -> int:
    async with database.connection(as_owner=True) as owner:
        return int(await owner.fetchval("SELECT sum(granted) FROM lots"))
