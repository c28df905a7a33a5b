"""Every POST that makes something makes it once a key: sent again it is answered again; another body is a conflict."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import load
from tests.acceptance.stage import until
from tests.integration.api_support import Api, an_api
from tests.integration.cli_support import silence
from tests.servers import Database
from worker.store.api_keys import ApiKeys
from worker.store.creations import CREATIONS_KEPT_SECONDS, SHOWN_AGAIN_SECONDS, Creations
from worker.web import housekeeping
from worker.web.app import make_app
from worker.web.housekeeping import TOKEN_KEPT_SECONDS

#: POSTs without an idempotency key, and why asking twice does no harm.
MAKE_NOTHING: dict[str, str] = {
    "/v1/jobs/{job}/cancel": "an ended job stays as it is, and says so",
    "/v1/jobs/cancel-many": "an ended job stays as it is",
    "/v1/jobs/retry-many": "once a job: `retry:JOB` is the key of each",
    "/v1/jobs/compensate-many": "once a job: its reference stands in the body",
    "/v1/jobs/{job}/force-end": "an ended job stays as it is, and says so",
    "/v1/kinds/{kind}/pause": "sets a switch",
    "/v1/kinds/{kind}/resume": "sets a switch",
    "/v1/workers/{worker}/drain": "asked twice it drains once",
    "/v1/quotes": "stores nothing",
    "/v1/accounts/{account}/chargebacks": "once a purchase: its reference stands in the body",
    "/v1/accounts/{account}/pause": "sets a switch",
    "/v1/accounts/{account}/resume": "sets a switch",
    "/v1/accounts/{account}/limits": "sets numbers",
    "/v1/queues/{queue}/pause": "sets a switch",
    "/v1/queues/{queue}/resume": "sets a switch",
    "/v1/queues/{queue}/limit": "sets a number",
    "/v1/prices/rehearsals": "prices nothing; that a document was rehearsed counts once, however often it was",
    "/v1/prices/{book}/withdraw": "a withdrawn book stays withdrawn",
    "/v1/prices/{book}/overcharged": "once a job, by a reference of its own",
    "/v1/webhooks/{webhook}/test": "a test is sent as often as it is asked for",
    "/v1/webhooks/{webhook}/redeliver": "what is told twice has the same event id",
}


def test_every_post_takes_an_idempotency_key_or_says_why_not() -> None:
    """By the OpenAPI document; a new route needs one or the other."""
    paths = make_app(load({}, environment="test")).openapi()["paths"]
    posts = {path: found["post"] for path, found in paths.items() if "post" in found}
    takes = {
        path
        for path, post in posts.items()
        if "Idempotency-Key" in {one["name"] for one in post.get("parameters", ()) if one["in"] == "header"}
    }
    assert set(posts) - takes == set(MAKE_NOTHING)
    assert all("409" in posts[path]["responses"] or path.endswith("/batch") for path in takes)


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada")
        yield made


async def _requests(api: Api) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Address, a body, another body."""
    old = await api.ok("POST", "/v1/keys", {"role": "viewer", "label": "old"})
    document = (await api.ok("GET", "/v1/prices"))["document"]
    return [
        ("/v1/keys", {"role": "viewer", "label": "a"}, {"role": "viewer", "label": "b"}),
        (f"/v1/keys/{old['id']}/rotate", {"overlap_seconds": 60}, {"overlap_seconds": 61}),
        ("/v1/accounts/ada/tokens", {"seconds": 900}, {"seconds": 901}),
        ("/v1/webhooks", {"url": "https://example.com/a"}, {"url": "https://example.com/b"}),
        ("/v1/prices", {"document": f"{document}\n# a\n", "note": "a"}, {"document": document, "note": "b"}),
        ("/v1/prices/1/revert", {"note": "a"}, {"note": "b"}),
    ]


async def test_what_was_made_is_answered_again(api: Api, subtests: pytest.Subtests) -> None:
    """The same thing with the same secret, once; 409 for another body; another caller's key is another key."""
    for path, body, other in await _requests(api):
        with subtests.test(path):
            first, again = [await api.ask("POST", path, body, idempotency="k") for _ in range(2)]
            assert (201, 200) == (first.status_code, again.status_code), (first.text, again.text)
            assert (False, True) == (first.json()["replayed"], again.json()["replayed"])
            assert {**first.json(), "replayed": True} == again.json()
            conflict = await api.ask("POST", path, other, idempotency="k")
            assert (409, "idempotency_conflict") == (conflict.status_code, conflict.json()["code"])
    made = (await api.ok("GET", "/v1/keys"))["keys"]
    assert 1 == len([key for key in made if key["label"] == "a"])
    assert [3, 2, 1] == [one["book"] for one in (await api.ok("GET", "/v1/prices/history"))["books"]]


async def test_a_default_that_is_spelled_out_is_the_same_request(api: Api) -> None:
    """A body that says nothing else is no other body."""
    first = await api.ok("POST", "/v1/accounts/ada/tokens", idempotency="k")
    again = await api.ok("POST", "/v1/accounts/ada/tokens", {"seconds": 900}, idempotency="k")
    assert first["key"] == again["key"]


async def test_requests_at_once_make_one_key(api: Api) -> None:
    """Whoever is second waits and is answered with what the first made."""
    body, key = {"role": "viewer", "label": "a"}, await api.key()
    made = await asyncio.gather(*(api.ok("POST", "/v1/keys", body, idempotency="k", key=key) for _ in range(10)))
    assert (1, 9) == (len({one["key"] for one in made}), sum(one["replayed"] for one in made))


async def test_a_secret_is_shown_again_for_minutes_only(api: Api) -> None:
    """And only to the key that asked; what was made is told for as long as it is known."""
    body = {"role": "viewer", "label": "a"}
    first = await api.ok("POST", "/v1/keys", body, idempotency="k")
    hook = await api.ok("POST", "/v1/webhooks", {"url": "https://example.com/a"}, idempotency="k")
    second_admin = (await api.ok("POST", "/v1/keys", {"role": "admin", "label": "second"}))["key"]
    assert first["id"] != (await api.ok("POST", "/v1/keys", body, idempotency="k", key=second_admin))["id"]
    await api.database.advance(timedelta(seconds=SHOWN_AGAIN_SECONDS + 1))
    again = await api.ok("POST", "/v1/keys", body, idempotency="k")
    assert (first["id"], None, True) == (again["id"], again["key"], again["replayed"])
    hook_again = await api.ok("POST", "/v1/webhooks", {"url": "https://example.com/a"}, idempotency="k")
    assert {**hook, "secret": None, "replayed": True} == hook_again
    assert 200 == (await api.ask("GET", "/v1/queues", key=first["key"])).status_code


async def test_what_is_not_shown_again_can_not_be_derived_again(api: Api) -> None:
    """Given the database and the secret of the key that asked, nothing more comes of them than from either."""
    body = {"role": "viewer", "label": "a"}
    await api.ok("POST", "/v1/keys", body, idempotency="old")
    await api.database.advance(timedelta(seconds=SHOWN_AGAIN_SECONDS + 1))
    fresh = await api.ok("POST", "/v1/keys", body, idempotency="fresh")
    assert 0 == await Creations(api.services.engine).forget(CREATIONS_KEPT_SECONDS)
    async with api.database.connection(as_owner=True) as connection:
        salts = dict(await connection.fetch("SELECT reference, salt FROM creations"))
    assert bytes(32) == salts["old"] != salts["fresh"]
    assert fresh["key"] == (await api.ok("POST", "/v1/keys", body, idempotency="fresh"))["key"]


async def test_a_secret_can_be_derived_for_a_minute_too_long_at_most(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API looks by itself, at what came since it looked before."""
    assert 60 >= housekeeping.EVERY_SECONDS
    monkeypatch.setattr(housekeeping, "EVERY_SECONDS", 0.02)
    engine = api.services.engine
    keeping = asyncio.create_task(housekeeping.keep_house(ApiKeys(engine), Creations(engine)))
    async with api.database.connection(as_owner=True) as connection:
        for reference in ("first", "second"):
            await api.ok("POST", "/v1/keys", {"role": "viewer", "label": "a"}, idempotency=reference)
            await api.database.advance(timedelta(seconds=SHOWN_AGAIN_SECONDS + 1))
            gone = "SELECT salt = $2 FROM creations WHERE reference = $1"
            await until(functools.partial(connection.fetchval, gone, reference, bytes(32)), f"{reference} forgotten")
    keeping.cancel()


async def test_who_stood_still_for_long_forgets_what_it_missed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept for a day, and goes on: within the hour, and by itself."""
    monkeypatch.setattr(housekeeping, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "SELDOM_EVERY", 5)
    engine = api.services.engine
    async with api.database.connection(as_owner=True) as connection:
        keeping = asyncio.create_task(housekeeping.keep_house(ApiKeys(engine), Creations(engine)))
        await api.ok("POST", "/v1/keys", {"role": "viewer", "label": "a"}, idempotency="missed")
        await api.database.advance(timedelta(days=1))
        gone = "SELECT salt = $1 FROM creations WHERE reference = 'missed'"
        await until(functools.partial(connection.fetchval, gone, bytes(32)), "it is forgotten")
        keeping.cancel()


async def test_no_table_keeps_what_opens(api: Api) -> None:
    """Neither the secret nor anything that is one without the key that asked."""
    made = await api.ok("POST", "/v1/keys", {"role": "viewer", "label": "a"}, idempotency="k")
    async with api.database.connection(as_owner=True) as connection:
        rows = await connection.fetch("SELECT CAST(c AS text) AS row FROM creations AS c")
    assert 1 == len(rows)
    for secret in (made["key"], await api.key()):
        assert secret not in rows[0]["row"]
        assert secret.encode().hex() not in rows[0]["row"]


async def test_a_key_for_a_file_is_for_that_file(api: Api, tmp_path: Path) -> None:
    """A file is itself by its bytes; with an idempotency key another one is a conflict."""
    one = silence(tmp_path / "one.wav", 1).read_bytes()
    done = [
        await api.ask(
            "POST",
            "/v1/artifacts?account=ada",
            idempotency="k",
            files={"file": ("a.wav", content, "audio/wav")},
        )
        for content in (one, one, silence(tmp_path / "two.wav", 2).read_bytes())
    ]
    assert [201, 200, 409] == [answer.status_code for answer in done], [answer.text for answer in done]


async def test_old_requests_and_old_tokens_are_forgotten(api: Api, database: Database) -> None:
    """A token a week after it closed; then its request says so instead of minting another."""
    await api.ok("POST", "/v1/accounts/ada/tokens", {"seconds": 60}, idempotency="k")
    engine = api.services.engine
    assert 0 == await ApiKeys(engine).forget_tokens(TOKEN_KEPT_SECONDS)
    await database.advance(timedelta(days=8))
    assert 1 == await ApiKeys(engine).forget_tokens(TOKEN_KEPT_SECONDS)
    over = await api.ask("POST", "/v1/accounts/ada/tokens", {"seconds": 60}, idempotency="k")
    assert (409, "idempotency_conflict") == (over.status_code, over.json()["code"])
    assert 0 == await Creations(engine).forget(CREATIONS_KEPT_SECONDS)
    await database.advance(timedelta(days=23))
    assert 1 == await Creations(engine).forget(CREATIONS_KEPT_SECONDS)
