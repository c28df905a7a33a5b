"""Accounts, prices, queues, keys and the log over HTTP: each the same function as its verb, by whoever may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.clients import credits_of
from tests.integration.api_support import SONG, Api, an_api
from tests.servers import Database


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        yield made


# --- accounts --------------------------------------------------------------------------------------------------


async def test_an_account_is_opened_credited_and_shown(api: Api) -> None:
    """Subscription, purchase and gift, each once a key, each in the journal by the key that brought it."""
    assert 201 == (await api.ask("PUT", "/v1/accounts/ada", role="billing")).status_code
    assert 200 == (await api.ask("PUT", "/v1/accounts/ada", role="billing")).status_code
    steps: list[tuple[str, dict[str, Any]]] = [
        ("subscription", {"plan": "starter"}),
        ("topups", {"pack": "small"}),
        ("topups", {"credits": 7}),
        ("grants", {"credits": 5, "note": "sorry"}),
    ]
    for number, (path, body) in enumerate(steps):
        for replayed in (False, True):
            done = await api.ask("POST", f"/v1/accounts/ada/{path}", body, role="billing", idempotency=f"step-{number}")
            assert (200 if replayed else 201, replayed) == (done.status_code, done.json()["replayed"]), done.text
            assert ("ada", f"step-{number}") == (done.json()["account"], done.json()["reference"])
    sold = await api.ok("GET", "/v1/plans", role="billing")
    balance = await api.ok("GET", "/v1/accounts/ada/balance", role="billing")
    monthly, pack = sold["plans"]["starter"]["monthly_credits"], sold["packs"]["small"]["credits"]
    assert (monthly, pack + 7, 5) == tuple(balance[lot]["available"] for lot in ("subscription", "topup", "grants"))
    # As the clients of the chaos runs read it, by their two doors.
    assert credits_of(balance) == credits_of(asdict(await api.services.reads.balance("ada")))
    assert (pack + 7, 0) == (credits_of(balance)["topup.available"], credits_of(balance)["grant.held"])
    journal = await api.ok("GET", "/v1/accounts/ada/journal?limit=3", role="viewer")
    rest = await api.ok("GET", f"/v1/accounts/ada/journal?after={journal['next']}", role="viewer")
    entries = journal["entries"] + rest["entries"]
    assert [monthly, pack, 7, 5] == [entry["amount"] for entry in entries]
    assert {f"key:{(await api.key('billing'))[:12]}"} == {entry["actor"] for entry in entries}


async def test_a_subscription_goes_through_its_life(api: Api) -> None:
    """Changed, cancelled, resumed; what is not possible is a refusal that says why."""
    await api.account("ada")
    path = "/v1/accounts/ada/subscription"
    await api.ok("POST", path, {"plan": "starter"}, role="billing")
    twice = await api.ask("POST", path, {"plan": "starter"}, role="billing")
    assert (422, "validation") == (twice.status_code, twice.json()["code"])
    plans = await api.ok("GET", "/v1/plans")
    larger = max(plans["plans"].values(), key=lambda plan: plan["monthly_credits"])["name"]
    assert larger == (await api.ok("POST", f"{path}/change", {"plan": larger}, role="billing"))["plan"]
    assert None is not (await api.ok("POST", f"{path}/cancel", role="billing"))["active_until"]
    assert None is (await api.ok("POST", f"{path}/resume", role="billing"))["active_until"]
    assert 422 == (await api.ask("POST", f"{path}/renewed", role="billing")).status_code


async def test_a_balance_says_until_when_credits_stay_frozen(database: Database, tmp_path: Path) -> None:
    """As long as the deployment says, from the lapse."""
    async with an_api(database, tmp_path, frozen_days=45) as api:
        await api.account("ada")
        await api.ok("POST", "/v1/accounts/ada/subscription", {"plan": "starter"})
        await api.ok("POST", "/v1/accounts/ada/topups", {"credits": 50})
        await api.ok("POST", "/v1/accounts/ada/subscription/cancel", {"at_once": True})
        shown = await api.ok("GET", "/v1/accounts/ada/balance")
        lasts = datetime.fromisoformat(shown["topup"]["frozen_until"]) - datetime.fromisoformat(shown["active_until"])
        assert (50, timedelta(days=45)) == (shown["topup"]["frozen"], lasts)


async def test_a_purchase_is_charged_back_once(api: Api) -> None:
    """By the reference it was credited under; a purchase that nobody knows is refused."""
    await api.account("ada")
    await api.ok("POST", "/v1/accounts/ada/topups", {"credits": 50}, role="billing", idempotency="p-1")
    path = "/v1/accounts/ada/chargebacks"
    first, again = [await api.ok("POST", path, {"reference": "p-1"}, role="billing") for _ in range(2)]
    assert (50, 0, False, True) == (first["revoked"], first["owed"], first["replayed"], again["replayed"])
    assert 0 == (await api.ok("GET", "/v1/accounts/ada/balance"))["topup"]["frozen"]
    assert 422 == (await api.ask("POST", path, {"reference": "p-2"}, role="billing")).status_code


async def test_a_key_for_another_step_is_a_conflict(api: Api) -> None:
    """The purchase stays what it was."""
    await api.account("ada")
    await api.ok("POST", "/v1/accounts/ada/topups", {"credits": 5}, idempotency="p-1")
    for path, body in (("topups", {"credits": 6}), ("topups", {"pack": "small"})):
        done = await api.ask("POST", f"/v1/accounts/ada/{path}", body, idempotency="p-1")
        assert (409, "idempotency_conflict") == (done.status_code, done.json()["code"])
    assert 5 == (await api.ok("GET", "/v1/accounts/ada/balance"))["topup"]["frozen"]


async def test_a_top_up_says_whether_it_can_be_spent(api: Api) -> None:
    """Not before somebody subscribes; then for good; after an end not, and until when it is kept."""
    await api.account("ada")
    path, names = "/v1/accounts/ada/topups", ("frozen", "frozen_from", "frozen_until")
    early = await api.ok("POST", path, {"credits": 5}, role="billing", idempotency="p-1")
    assert [True, None, None] == [early[name] for name in names]
    await api.ok("POST", "/v1/accounts/ada/subscription", {"plan": "starter"}, role="billing")
    lasts = await api.ok("POST", path, {"credits": 5}, role="billing", idempotency="p-2")
    assert [False, None, None] == [lasts[name] for name in names]
    end = await api.ok("POST", "/v1/accounts/ada/subscription/cancel", {"at_once": True}, role="billing")
    late = await api.ok("POST", path, {"credits": 5}, role="billing", idempotency="p-3")
    assert (True, end["active_until"]) == (late["frozen"], late["frozen_from"])
    assert timedelta(days=30) <= datetime.fromisoformat(late["frozen_until"]) - datetime.fromisoformat(
        end["active_until"]
    )


@pytest.mark.parametrize(
    "body",
    [{"credits": 0}, {"credits": -5}, {"credits": 2**63}, {"credits": 1.0}, {"credits": "5"}, {"credits": True}]
    + [{}, {"credits": 5, "pack": "small"}, {"pack": "huge"}, {"credits": 5, "amount": 6}],
)
async def test_a_purchase_that_cannot_be_is_refused(api: Api, body: dict[str, Any]) -> None:
    """422, nothing credited."""
    await api.account("ada")
    assert 422 == (await api.ask("POST", "/v1/accounts/ada/topups", body)).status_code
    assert [] == (await api.ok("GET", "/v1/accounts/ada/journal"))["entries"]


async def test_an_account_whose_id_has_segments_has_one_address(api: Api) -> None:
    """A slash in an id is written %2F."""
    await api.ok("PUT", "/v1/accounts/acme%2Feu")
    await api.ok("POST", "/v1/accounts/acme%2Feu/grants", {"credits": 5})
    assert 5 == (await api.ok("GET", "/v1/accounts/acme%2Feu/balance"))["spendable"]
    assert 404 == (await api.ask("GET", "/v1/accounts/acme/balance")).status_code
    for path in ("/v1/accounts/acme/eu/balance", "/v1/accounts/acme%252Feu/balance"):
        assert 404 == (await api.ask("GET", path)).status_code


async def test_the_accounts_of_others_are_not_there(api: Api) -> None:
    """For a bound key, and for a token, the same answer as for nobody's account."""
    await api.account("ada", 5)
    await api.account("acme", 5)
    bound, token = await api.key("billing", "acme"), await api.token("acme")
    for key in (bound, token):
        assert 5 == (await api.ok("GET", "/v1/accounts/acme/balance", key=key))["spendable"]
        for account in ("ada", "nobody"):
            for path in ("balance", "journal"):
                done = await api.ask("GET", f"/v1/accounts/{account}/{path}", key=key)
                assert (404, "unknown_account", f"account: no account '{account}'") == (
                    done.status_code,
                    done.json()["code"],
                    done.json()["detail"],
                )
    for path, body in (("topups", {"credits": 5}), ("grants", {"credits": 5}), ("subscription", {"plan": "starter"})):
        assert 404 == (await api.ask("POST", f"/v1/accounts/ada/{path}", body, key=bound)).status_code
    assert 404 == (await api.ask("PUT", "/v1/accounts/new", key=bound)).status_code


async def test_a_customers_token_looks_and_changes_nothing(api: Api) -> None:
    """Minted by the pipeline for one account; it opens for as long as it was told."""
    await api.account("ada", 5)
    made = await api.ok("POST", "/v1/accounts/ada/tokens", {"seconds": 60}, role="pipeline")
    assert 5 == (await api.ok("GET", "/v1/accounts/ada/balance", key=made["key"]))["spendable"]
    for path, body in (("topups", {"credits": 5}), ("tokens", None)):
        assert 403 == (await api.ask("POST", f"/v1/accounts/ada/{path}", body, key=made["key"])).status_code
    assert 422 == (await api.ask("POST", "/v1/accounts/ada/tokens", {"seconds": 10**6}, role="pipeline")).status_code
    assert 404 == (await api.ask("POST", "/v1/accounts/nobody/tokens", role="pipeline")).status_code


# --- prices ----------------------------------------------------------------------------------------------------


async def test_a_draft_on_a_book_that_is_not_the_newest_is_a_conflict(api: Api) -> None:
    """Whoever comes second is told which book came between, and applies on that one or not at all."""
    document = (await api.ok("GET", "/v1/prices"))["document"]
    first = {"document": f"{document}\n# a\n", "note": "a", "on": 1}
    second = {"document": f"{document}\n# b\n", "note": "b", "on": 1}
    assert 2 == (await api.ok("POST", "/v1/prices", first, role="product"))["book"]
    refused = await api.ask("POST", "/v1/prices", second, role="product")
    told = refused.json()
    assert (409, "overtaken", "on") == (refused.status_code, told["code"], told["field"])
    assert "book 2 by " in told["detail"]
    assert 3 == (await api.ok("POST", "/v1/prices", {**second, "on": 2}, role="product"))["book"]
    assert 422 == (await api.ask("POST", "/v1/prices", {**second, "on": 0}, role="product")).status_code


async def test_prices_are_shown_with_a_tag(api: Api) -> None:
    """Who has them gets 304; after a new book another tag."""
    first = await api.ask("GET", "/v1/prices", role="pipeline")
    tag = {"If-None-Match": first.headers["ETag"]}
    assert (304, b"") == (lambda done: (done.status_code, done.content))(
        await api.ask("GET", "/v1/prices", role="pipeline", headers=tag)
    )
    book = {"document": first.json()["document"] + "\n# the same, said anew\n", "note": "words"}
    applied = await api.ask("POST", "/v1/prices", book, role="product")
    assert (201, 2, False) == (applied.status_code, applied.json()["book"], applied.json()["replayed"]), applied.text
    again = await api.ask("POST", "/v1/prices", book, role="product")
    assert (200, 2, True) == (again.status_code, again.json()["book"], again.json()["replayed"])
    assert 200 == (await api.ask("GET", "/v1/prices", role="pipeline", headers=tag)).status_code
    assert [2, 1] == [one["book"] for one in (await api.ok("GET", "/v1/prices/history"))["books"]]
    assert first.json()["document"] == (await api.ok("GET", "/v1/prices?book=1"))["document"]
    assert [] == (await api.ok("GET", "/v1/prices/changes?before=1&after=2"))["changes"]


async def test_a_bad_book_is_refused_with_every_reason(api: Api) -> None:
    """And the old prices stay."""
    document = (await api.ok("GET", "/v1/prices"))["document"]
    bad = document + "\n[stem_split2]\nbase = 1\n[remix]\nbase = -1\n"
    done = await api.ask("POST", "/v1/prices", {"document": bad, "note": "oops"}, role="product")
    assert (422, "validation") == (done.status_code, done.json()["code"])
    assert 2 <= len(done.json()["problems"]), done.text
    assert 1 == (await api.ok("GET", "/v1/prices"))["book"]


async def test_a_draft_is_rehearsed_reverted_and_withdrawn(api: Api) -> None:
    """Each by its route."""
    document = (await api.ok("GET", "/v1/prices"))["document"] + "\n# draft\n"
    rehearsed = await api.ask("POST", "/v1/prices/rehearsals", {"document": document}, role="product")
    assert (201, 1) == (rehearsed.status_code, rehearsed.json()["against"]), rehearsed.text
    later = {"document": document, "note": "later", "effective_at": "2100-01-01T00:00:00Z"}
    planned = await api.ok("POST", "/v1/prices", later, role="product")
    withdrawn = await api.ok("POST", f"/v1/prices/{planned['book']}/withdraw", {"note": "no"}, role="product")
    assert None is not withdrawn["withdrawn_at"]
    await api.ok("POST", "/v1/prices", {"document": document, "note": "now"}, role="product")
    assert 1 == (await api.ok("POST", "/v1/prices/1/revert", {"note": "back"}, role="product"))["reverts_to"]


# --- queues ----------------------------------------------------------------------------------------------------


async def test_a_queue_is_paused_limited_and_resumed(api: Api) -> None:
    """Seen at once by whoever looks; a queue that nobody knows is not found."""
    await api.account("ada", 100)
    job = await api.submit()
    paused = await api.ok("POST", "/v1/queues/generation/pause", {"reason": "GPU maintenance"}, role="ops")
    assert paused["paused"]
    assert paused["changed"]
    assert "paused" == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["waiting_for"]
    await api.ok("POST", "/v1/queues/generation/limit", {"running_max": 3}, role="ops")
    (queue,) = [one for one in (await api.ok("GET", "/v1/queues"))["queues"] if one["queue"] == "generation"]
    assert (True, "GPU maintenance", 3) == (queue["paused"], queue["pause_reason"], queue["running_max"])
    assert not (await api.ok("POST", "/v1/queues/generation/resume", role="ops"))["paused"]
    assert [] == (await api.ok("GET", "/v1/workers"))["workers"]
    unknown = await api.ask("POST", "/v1/queues/generatoin/pause", {"reason": "x"}, role="ops")
    assert (404, "unknown_queue") == (unknown.status_code, unknown.json()["code"])
    await api.ok("POST", "/v1/accounts/ada/pause", {"reason": "fraud?"}, role="ops")
    assert "paused" == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["waiting_for"]
    await api.ok("POST", "/v1/accounts/ada/resume", role="ops")


# --- keys and the log ------------------------------------------------------------------------------------------


async def test_a_key_is_made_used_rotated_and_revoked(api: Api) -> None:
    """It opens from its answer on and never again after it was revoked; lists never show it."""
    made = await api.ok("POST", "/v1/keys", {"role": "viewer", "label": "wall display"})
    assert 200 == (await api.ask("GET", "/v1/queues", key=made["key"])).status_code
    new = await api.ok("POST", f"/v1/keys/{made['id']}/rotate", {"overlap_seconds": 0})
    assert (401, 200) == tuple(
        [(await api.ask("GET", "/v1/queues", key=key)).status_code for key in (made["key"], new["key"])]
    )
    listed = await api.ask("GET", "/v1/keys")
    assert made["key"] not in listed.text
    assert {made["id"], new["id"]} < {key["id"] for key in listed.json()["keys"]}
    await api.ok("DELETE", f"/v1/keys/{new['id']}")
    assert 401 == (await api.ask("GET", "/v1/queues", key=new["key"])).status_code
    assert 404 == (await api.ask("DELETE", "/v1/keys/0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88")).status_code


async def test_the_last_use_of_a_key_is_written_down(api: Api) -> None:
    """Once in a while, not with every request."""
    await api.ok("GET", "/v1/queues", role="viewer")
    await api.services.keyring.write_used()
    used = {key["label"]: key["last_used_at"] for key in (await api.ok("GET", "/v1/keys"))["keys"]}
    assert used["viewer:None"] is not None


async def test_the_log_tells_who_did_what(api: Api) -> None:
    """By subject and by actor, a page at a time."""
    await api.ok("PUT", "/v1/accounts/ada", role="billing")
    await api.ok("POST", "/v1/accounts/ada/topups", {"credits": 5}, role="billing")
    await api.ok("POST", "/v1/queues/generation/pause", {"reason": "x"}, role="ops")
    billing = f"key:{(await api.key('billing'))[:12]}"
    page = await api.ok("GET", "/v1/audit-log?subject=ada&limit=1", role="ops")
    rest = await api.ok("GET", f"/v1/audit-log?subject=ada&before={page['next']}", role="ops")
    assert ["purchases.insert", "accounts.insert"] == [one["what"] for one in page["entries"] + rest["entries"]]
    assert 2 == len((await api.ok("GET", f"/v1/audit-log?actor={billing}"))["entries"])
    assert 403 == (await api.ask("GET", "/v1/audit-log", role="viewer")).status_code


async def test_a_quote_for_a_customer_is_by_its_own_plan(api: Api) -> None:
    """The token's account is meant where none is named."""
    await api.account("ada")
    quote = await api.ok("POST", "/v1/quotes", {"kind": "generation", "params": SONG}, key=await api.token("ada"))
    assert 0 < quote["total"]
