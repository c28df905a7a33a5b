"""Keys of the API: shown once, kept as a hash, bound, rotated, revoked; and the log of who changed what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import load
from tests.integration.books import ACTOR, opened
from tests.integration.cli_support import Fermata
from tests.servers import Database
from worker.store.api_keys import ApiKeys, NewKey, Role, within
from worker.store.audit_log import AuditLog
from worker.store.book_shelf import BookDraft, price_shelf
from worker.store.database import make_engine
from worker.store.errors import Refused, UnknownAccount, UnknownKey
from worker.store.ops import Controls, Scope
from worker.store.sessions import Sessions


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    made = make_engine(load({}, database_url=database.url, environment="test"), name="test")
    yield made
    await made.dispose()


@pytest.mark.parametrize(
    ("prefix", "account", "covered"),
    [
        ("acme", "acme", True),
        ("acme", "acme/eu", True),
        ("acme", "acme:42", True),
        ("acme/eu", "acme/eu/7", True),
        ("acme", "acme2", False),
        ("acme", "acme.eu", False),
        ("acme", "acme-eu", False),
        ("acme/eu", "acme/europe", False),
        ("acme/eu", "acme", False),
        ("acme", "ACME", False),
    ],
)
def test_a_prefix_covers_whole_segments(prefix: str, account: str, covered: bool) -> None:
    """A neighbour whose name merely begins alike is another's account."""
    assert covered == within(prefix, account)


async def test_a_key_is_kept_as_a_hash_and_opens(database: Database, engine: AsyncEngine) -> None:
    """Neither the table nor the log holds the secret; what it opens is what was made."""
    keys = ApiKeys(engine)
    made = await keys.create(NewKey(Role.PIPELINE, "songs", "acme"), ACTOR)
    assert made.key.startswith(made.shown.prefix)
    assert made.shown == await keys.opening(made.key)
    assert None is await keys.opening(made.key[:-1])
    async with database.connection(as_owner=True) as connection:
        for table in ("api_keys", "audit_log"):
            for row in await connection.fetch(f"SELECT CAST(t AS text) AS row FROM {table} AS t"):
                assert made.key not in row["row"]
                assert made.key.encode().hex() not in row["row"]


async def test_a_revoked_and_an_expired_key_open_nothing(database: Database, engine: AsyncEngine) -> None:
    """Judged by the database's clock; revoking twice changes nothing."""
    keys = ApiKeys(engine)
    closed = await keys.create(NewKey(Role.OPS, "a"), ACTOR)
    first = await keys.revoke(closed.shown.id, ACTOR)
    assert first == await keys.revoke(closed.shown.id, "another")
    assert None is await keys.opening(closed.key)

    short = await keys.create(NewKey(Role.OPS, "b", expires_at=closed.shown.created_at + timedelta(hours=1)), ACTOR)
    assert None is not await keys.opening(short.key)
    await database.advance(timedelta(hours=2))
    assert None is await keys.opening(short.key)


async def test_both_keys_open_while_a_rotation_overlaps(database: Database, engine: AsyncEngine) -> None:
    """The new one is like the old one, which closes by itself; it can't be rotated again after that."""
    keys = ApiKeys(engine)
    old = await keys.create(NewKey(Role.PIPELINE, "songs", "acme"), ACTOR)
    new = await keys.rotate(old.shown.id, ACTOR, 3600)
    like = ("role", "label", "account_prefix", "expires_at")
    assert [getattr(old.shown, name) for name in like] == [getattr(new.shown, name) for name in like]
    assert old.shown.id == new.shown.replaces
    assert None is not await keys.opening(old.key)
    await database.advance(timedelta(hours=2))
    assert None is await keys.opening(old.key)
    assert new.shown == await keys.opening(new.key)
    with pytest.raises(Refused, match="create a new one"):
        await keys.rotate(old.shown.id, ACTOR)


async def test_a_rotation_never_prolongs_a_key(database: Database, engine: AsyncEngine) -> None:
    """Old and new both close when the old one would have."""
    keys = ApiKeys(engine)
    soon = (await keys.create(NewKey(Role.OPS, "now"), ACTOR)).shown.created_at + timedelta(minutes=5)
    old = await keys.create(NewKey(Role.OPS, "short", expires_at=soon), ACTOR)
    new = await keys.rotate(old.shown.id, ACTOR, 3600)
    assert soon == new.shown.expires_at == (await keys.find(old.shown.prefix)).expires_at


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (NewKey(Role.CUSTOMER, "x"), "role"),
        (NewKey(Role.OPS, ""), "label"),
        (NewKey(Role.OPS, "a\nb"), "label"),
        (NewKey(Role.PIPELINE, "x", ""), "account_prefix"),
        (NewKey(Role.PIPELINE, "x", "acme/"), "account_prefix"),
        (NewKey(Role.PIPELINE, "x", "a%"), "account_prefix"),
        # What these do touches every account: bound, they would only look it.
        (NewKey(Role.OPS, "x", "acme"), "account_prefix"),
        (NewKey(Role.PRODUCT, "x", "acme"), "account_prefix"),
        (NewKey(Role.ADMIN, "x", "acme"), "account_prefix"),
    ],
)
async def test_a_key_that_cannot_be_is_refused(engine: AsyncEngine, new: NewKey, field: str) -> None:
    """Naming the field; no key is made."""
    with pytest.raises(Refused) as refused:
        await ApiKeys(engine).create(new, ACTOR)
    assert field == refused.value.field
    assert () == await ApiKeys(engine).listed()


async def test_a_customers_token_is_for_one_account_and_short(database: Database) -> None:
    """It closes by itself, and nobody gets one for an account that is not there."""
    async with opened(database) as store:
        await store.account("ada")
        keys = ApiKeys(store.engine)
        made = await keys.token("ada", 600, ACTOR)
        assert (Role.CUSTOMER, "ada") == (made.shown.role, made.shown.account)
        assert () == await keys.listed()
        await database.advance(timedelta(seconds=601))
        assert None is await keys.opening(made.key)
        with pytest.raises(UnknownAccount):
            await keys.token("eve", 600, ACTOR)
        for seconds in (59, 86_401):
            with pytest.raises(Refused, match="seconds"):
                await keys.token("ada", seconds, ACTOR)


async def test_a_token_ends_with_the_key_that_minted_it(database: Database) -> None:
    """At once; tokens of other keys stay, and one from before a rotation stays too."""
    async with opened(database) as store:
        await store.account("ada")
        keys = ApiKeys(store.engine)
        minters = [await keys.create(NewKey(Role.PIPELINE, name), ACTOR) for name in ("a", "b")]
        tokens = [await keys.token("ada", 600, ACTOR, minted_by=minter.shown.id) for minter in minters]
        session = await Sessions(store.engine).open(tokens[0].shown)
        await keys.rotate(minters[0].shown.id, ACTOR, 1)
        await database.advance(timedelta(seconds=2))
        assert all([await keys.opening(token.key) for token in tokens])
        await keys.revoke(minters[0].shown.id, ACTOR)
        assert [None, tokens[1].shown] == [await keys.opening(token.key) for token in tokens]
        assert None is await Sessions(store.engine).opening(session)


async def test_a_rotation_without_an_overlap_ends_what_the_old_key_minted(database: Database) -> None:
    """As a revocation does, at once: whoever rotates so doesn't trust the old key."""
    async with opened(database) as store:
        await store.account("ada")
        keys = ApiKeys(store.engine)
        old = await keys.create(NewKey(Role.PIPELINE, "songs"), ACTOR)
        token = await keys.token("ada", 600, ACTOR, minted_by=old.shown.id)
        session = await Sessions(store.engine).open(token.shown)
        new = await keys.rotate(old.shown.id, ACTOR, 0)
        assert [None, None] == [await keys.opening(made.key) for made in (old, token)]
        assert None is await Sessions(store.engine).opening(session)
        assert None is not (await keys.find(old.shown.prefix)).revoked_at
        assert new.shown == await keys.opening(new.key)


async def test_a_token_does_not_outlive_a_key_that_ends(database: Database) -> None:
    """Whatever time was asked for; the answer says how long it opens."""
    async with opened(database) as store:
        await store.account("ada")
        keys = ApiKeys(store.engine)
        ends = datetime.now(UTC) + timedelta(hours=1)
        minter = await keys.create(NewKey(Role.PIPELINE, "until then", expires_at=ends), ACTOR)
        token = await keys.token("ada", 86_400, ACTOR, minted_by=minter.shown.id)
        short = await keys.token("ada", 60, ACTOR, minted_by=minter.shown.id)
        assert ends == token.shown.expires_at
        assert short.shown.expires_at is not None
        assert ends > short.shown.expires_at
        await database.advance(timedelta(hours=1))
        assert None is await keys.opening(token.key)


# --- the log ---------------------------------------------------------------------------------------------------


async def test_every_change_is_in_the_log_with_before_and_after(database: Database) -> None:
    """Whoever made it, by whatever way: the triggers write in the transaction of the change."""
    async with opened(database) as store:
        await store.accounts.create("ada", "billing:1")
        await store.accounts.subscribe("ada", "starter", "s-1", "billing:2")
        await store.accounts.topup("ada", "t-1", "billing:3", amount=50)
        await store.accounts.grant("ada", 5, "g-1", "billing:4")
        controls = Controls(store.engine, ["generation"])
        await controls.pause(Scope.QUEUE, "generation", "maintenance", "ops:1")
        await controls.resume(Scope.QUEUE, "generation", "ops:2")
        await controls.pause(Scope.ACCOUNT, "ada", "fraud?", "ops:3")
        cheaper = (await price_shelf(store.engine).shown()).document + "\n# cheaper\n"
        await price_shelf(store.engine).apply(BookDraft(cheaper, "digest", "product:1", "cheaper"))
        made = await ApiKeys(store.engine).create(NewKey(Role.OPS, "x"), "admin:1")
        await ApiKeys(store.engine).revoke(made.shown.id, "admin:2")
        entries = (await AuditLog(store.engine).entries()).entries
    found = [(one.actor, one.what, one.subject, _changed(one.before, one.after)) for one in reversed(entries)][2:]
    assert [
        ("billing:1", "accounts.insert", "ada", None),
        ("billing:2", "subscription_changes.insert", "ada", None),
        ("billing:3", "purchases.insert", "ada", None),
        ("billing:4", "lots.insert", "ada", None),
        ("ops:1", "controls.insert", "generation", None),
        ("ops:2", "controls.update", "generation", {"paused": (True, False), "reason": ("maintenance", None)}),
        ("ops:3", "accounts.update", "ada", {"paused": (False, True)}),
        ("product:1", "price_books.insert", "2", None),
        ("admin:1", "api_keys.insert", made.shown.prefix, None),
        ("admin:2", "api_keys.update", made.shown.prefix, {"changed_by": (None, "admin:2")}),
    ] == found


def _changed(before: Any, after: Any) -> dict[str, Any] | None:
    if before is None:
        return None
    times = {"at", "revoked_at", "actor"}
    return {name: (before[name], after[name]) for name in after if before[name] != after[name] and name not in times}


# --- the command -----------------------------------------------------------------------------------------------


def test_keys_by_command(fermata: Fermata) -> None:
    """Created, listed, rotated and revoked; the list never shows a whole key."""
    made = fermata.ok("keys", "create", "pipeline", "--label", "songs", "--accounts", "acme")
    assert made["key"].startswith(made["prefix"])
    new = fermata.ok("keys", "rotate", made["prefix"], "--overlap", "0")
    assert made["id"] == new["replaces"]
    assert fermata.ok("keys", "revoke", new["id"])["revoked_at"] is not None
    listed = fermata("keys", "list", "--json")
    assert ["songs", "songs"] == [key["label"] for key in listed.document["keys"]]
    assert made["key"] not in listed.out + fermata("keys", "list").out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["keys", "create", "god", "--label", "x"], "role: no role 'god'; there are pipeline, billing"),
        (["keys", "create", "ops", "--label", ""], "label: must be 1 to 100 printable"),
        (["keys", "create", "ops", "--label", "x", "--expires-at", "2020-01-01T00:00:00Z"], "expires_at: must be in"),
        (["keys", "revoke", "fmt_nothing!"], "key: no key fmt_nothing!"),
        (["keys", "rotate", "x", "--overlap", "-1"], "overlap: must be a whole number"),
    ],
)
def test_a_bad_word_about_keys_is_refused(fermata: Fermata, arguments: list[str], complaint: str) -> None:
    """Exit 2, one clear line, nothing written."""
    with fermata.nothing_written():
        answer = fermata(*arguments)
    assert 2 == answer.code
    assert complaint in answer.complaint


async def test_an_unknown_key_is_said_to_be(engine: AsyncEngine) -> None:
    """For every verb that names one."""
    with pytest.raises(UnknownKey):
        await ApiKeys(engine).find("fmt_12345678")
