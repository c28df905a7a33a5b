"""Jobs over HTTP: stored once a key, turned down without a trace, seen by whom they concern."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fermata_client import calls
from tests.integration.api_support import SONG, Api, an_api
from tests.servers import Database
from worker.client import JobRequest
from worker.web.routes.jobs import BATCH_BYTES_MAX, BATCH_MAX


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada", 1_000_000)
        yield made


async def counted(api: Api, table: str = "jobs") -> int:
    """How many rows a table has."""
    async with api.database.connection() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def test_a_submit_is_stored_and_can_be_looked_at(api: Api) -> None:
    """202 with the quote; the job is there as it was asked, by whom, under its address."""
    body = {"account": "ada", "kind": "generation", "params": SONG, "metadata": {"song": "42"}, "max_credits": 100}
    done = await api.ask("POST", "/v1/jobs", body, role="pipeline", idempotency="take-1")
    assert 202 == done.status_code
    told = done.json()
    assert ("ada", "generation", "queued", False, "take-1") == tuple(
        told[name] for name in ("account", "kind", "state", "replayed", "key")
    )
    found = await api.ok("GET", done.headers["Location"], role="viewer")
    assert (told["id"], told["quoted"], {"song": "42"}) == (found["id"], found["quoted"], found["metadata"])
    async with api.database.connection() as connection:
        actor = await connection.fetchval("SELECT actor FROM jobs")
    assert f"key:{(await api.key('pipeline'))[:12]}" == actor


async def test_the_same_key_is_one_job_and_another_body_a_conflict(api: Api) -> None:
    """However the JSON is written, and however many ask at once."""
    first = await api.submit(idempotency="k", metadata={"a": 1, "b": 2})
    text = '{ "metadata": {"b": 2, "a": 1}, "params": {"seconds": 20, "prompt": "x"},\n "kind":"generation",'
    text += '"account":"ada"}'
    again = await api.ask(
        "POST", "/v1/jobs", idempotency="k", content=text, headers={"Content-Type": "application/json"}
    )
    assert (first["id"], True) == (again.json()["id"], again.json()["replayed"])
    conflict = await api.ask("POST", "/v1/jobs", {**SUBMIT, "metadata": {"a": 2}}, idempotency="k")
    assert (409, "idempotency_conflict") == (conflict.status_code, conflict.json()["code"])

    at_once = await asyncio.gather(*(api.submit(idempotency="twin") for _ in range(10)))
    assert 1 == len({one["id"] for one in at_once})
    assert 2 == await counted(api)


SUBMIT = {"account": "ada", "kind": "generation", "params": SONG}

#: The body, the status, the code and the field that is named.
TURNED_DOWN: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({**SUBMIT, "account": "eve"}, 404, "unknown_account", None),
    ({**SUBMIT, "account": "a b"}, 422, "validation", "account"),
    ({**SUBMIT, "kind": "remix"}, 422, "validation", "kind"),
    ({**SUBMIT, "params": {**SONG, "seconds": 4000}}, 422, "validation", "seconds"),
    ({**SUBMIT, "params": {**SONG, "price": 0}}, 422, "validation", "price"),
    ({**SUBMIT, "price": 0}, 422, "validation", "price"),
    ({**SUBMIT, "state": "succeeded"}, 422, "validation", "state"),
    ({**SUBMIT, "priority": 999}, 422, "validation", "priority"),
    ({**SUBMIT, "max_credits": 1}, 422, "validation", "max_credits"),
    ({**SUBMIT, "max_credits": 1.5}, 422, "validation", "max_credits"),
    ({**SUBMIT, "max_credits": "12"}, 422, "validation", "max_credits"),
    ({**SUBMIT, "max_credits": True}, 422, "validation", "max_credits"),
    ({**SUBMIT, "run_at": "tomorrow"}, 422, "validation", "run_at"),
    ({**SUBMIT, "run_at": "2026-12-01T10:00:00"}, 422, "validation", "run_at"),
    ({**SUBMIT, "on_insufficient": "steal"}, 422, "validation", "on_insufficient"),
    ({**SUBMIT, "inputs": {"voice": "x"}}, 422, "validation", "inputs.voice"),
    ({"account": "ada"}, 422, "validation", "kind"),
]


async def test_what_is_turned_down_leaves_no_trace(api: Api, subtests: pytest.Subtests) -> None:
    """A stable code, the field by its name, the id of the request; nothing stored, and the key is still free."""
    for body, status, code, field in TURNED_DOWN:
        with subtests.test(body=body):
            done = await api.ask("POST", "/v1/jobs", body, idempotency="free")
            told = done.json()
            assert (status, code, field) == (done.status_code, told["code"], told.get("field")), told
            assert "application/problem+json" == done.headers["Content-Type"]
            assert done.headers["X-Request-Id"] == told["request_id"]
    assert 0 == await counted(api)
    assert not (await api.submit(idempotency="free"))["replayed"]


@pytest.mark.parametrize("given", [None, "", "x" * 256, "a\tb"])
async def test_a_submit_needs_a_key_that_can_be_one(api: Api, given: str | None) -> None:
    """400, since a pipeline that forgets it could pay twice."""
    headers = {"Authorization": f"Bearer {await api.key()}"} | ({} if given is None else {"Idempotency-Key": given})
    done = await api.http.post("/v1/jobs", json=SUBMIT, headers=headers)
    assert (400, "idempotency_key") == (done.status_code, done.json()["code"])
    assert 0 == await counted(api)


@pytest.mark.parametrize("key", ["Lied-ü", "Lied-日"])
async def test_a_key_means_the_same_in_a_header_and_in_a_batch(api: Api, key: str) -> None:
    """Written in bytes as UTF-8, as Latin-1 or in JSON: what isn't ASCII is no new key, so nobody pays a job twice."""
    headers: dict[str, Any] = {"Authorization": f"Bearer {await api.key()}"}
    ways = [key.encode()] + ([key.encode("latin-1")] if "ü" in key else [])
    single = [await api.http.post("/v1/jobs", json=SUBMIT, headers=headers | {"Idempotency-Key": way}) for way in ways]
    batch = await api.ok("POST", "/v1/jobs/batch", {"jobs": [{**SUBMIT, "key": key}]})
    whole = await api.http.post(
        "/v1/jobs/batch", json={"jobs": [SUBMIT]}, headers=headers | {"Idempotency-Key": ways[0]}
    )
    told = [one.json() for one in single] + [batch["results"][0]["problem"]]
    told.append(whole.json() if whole.status_code == 400 else whole.json()["results"][0]["problem"])
    for one in told:
        assert one["code"] in ("validation", "idempotency_key"), one
        assert one["field"] in ("key", "Idempotency-Key")
        assert "1 to 255 printable ASCII characters" in one["detail"]
    assert 0 == await counted(api)


async def test_a_key_from_before_is_still_answered(api: Api) -> None:
    """One that was stored when others were taken: its job again, by the bytes that made it."""
    made = await api.submit(idempotency="Lied-1")
    async with api.database.connection(as_owner=True) as connection:
        await connection.execute("UPDATE jobs SET idempotency_key = 'Lied-Ã¼'")
    headers: dict[str, Any] = {"Authorization": f"Bearer {await api.key()}", "Idempotency-Key": "Lied-ü".encode()}
    again = await api.http.post("/v1/jobs", json=SUBMIT, headers=headers)
    assert (202, made["id"], True) == (again.status_code, again.json()["id"], again.json()["replayed"])
    assert 1 == await counted(api)


async def test_a_batch_answers_each_of_its_jobs(api: Api) -> None:
    """In their order; a bad one harms no other; the same batch again is the same jobs."""
    good, bad = SUBMIT, {**SUBMIT, "kind": "remix"}
    body = {"jobs": [good, bad, {**good, "key": "own"}, {**good, "account": "eve"}]}
    first, again = [await api.ok("POST", "/v1/jobs/batch", body, idempotency="b") for _ in range(2)]
    assert (2, 2) == (first["taken"], first["turned_down"])
    assert ["b/0", None, "own", None] == [one.get("job", {}).get("key") for one in first["results"]]
    assert [None, "validation", None, "unknown_account"] == [
        one.get("problem", {}).get("code") for one in first["results"]
    ]
    for one, other in zip(first["results"], again["results"], strict=True):
        assert one.get("job", {}).get("id") == other.get("job", {}).get("id")
        assert other.get("job", {}).get("replayed", True)
    assert 2 == await counted(api)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"on_insufficient": "wiat"}, "on_insufficient"),
        ({"max_credits": -1}, "max_credits"),
        ({"account": ""}, "account"),
        ({"run_at": "tomorrow"}, "run_at"),
        ({"metdata": {}}, "metdata"),
        ({"key": ""}, "key"),
        ({"metadata": {"a": "\0"}}, None),
        ({"params": {"\ud800": 1}}, None),
        (None, None),
    ],
)
async def test_a_malformed_item_harms_no_other(api: Api, bad: dict[str, Any] | None, field: str | None) -> None:
    """Whatever is wrong with one of a batch, in its place stands what a submit of its own would be told."""
    wrong = None if bad is None else {**SUBMIT, **bad}
    body = json.dumps({"jobs": [SUBMIT, wrong, {**SUBMIT, "key": "own"}]})
    kind = {"Content-Type": "application/json"}
    done = await api.ok("POST", "/v1/jobs/batch", content=body, headers=kind, idempotency="b")
    alone = await api.ask("POST", "/v1/jobs", content=json.dumps(wrong), headers=kind)
    told = done["results"][1]["problem"]
    assert (2, 1) == (done["taken"], done["turned_down"])
    assert ["b/0", None, "own"] == [one.get("job", {}).get("key") for one in done["results"]]
    assert (422, "validation") == (told["status"], told["code"])
    if field is not None:
        single = alone.json()["field"] if field != "key" else field  # alone, a key is a header
        assert field == told["field"] == single
    assert 2 == await counted(api)


async def test_batches_whose_long_keys_begin_alike_are_two(api: Api) -> None:
    """A key of 255 characters counts to its last one; the same batch again is the same jobs."""
    keys = ["z" * 254 + last for last in "aba"]
    done = [await api.ok("POST", "/v1/jobs/batch", {"jobs": [SUBMIT]}, idempotency=key) for key in keys]
    first, second, again = (one["results"][0]["job"] for one in done)
    assert first["id"] != second["id"]
    assert (first["id"], True) == (again["id"], again["replayed"])


async def test_a_thousand_jobs_in_one_batch_and_not_one_more(api: Api) -> None:
    """All taken, each once; 1,001 are refused as a whole."""
    done = await api.ok("POST", "/v1/jobs/batch", {"jobs": [SUBMIT] * 1000})
    assert 1000 == done["taken"] == len({one["job"]["id"] for one in done["results"]})
    refused = await api.ask("POST", "/v1/jobs/batch", {"jobs": [SUBMIT] * 1001})
    assert 422 == refused.status_code
    assert 1000 == await counted(api)


async def test_a_batch_that_is_too_large_is_told_how_large_it_may_be(api: Api) -> None:
    """In bytes; the client's own limit is the same."""
    done = await api.ask("POST", "/v1/jobs/batch", content=b" " * (calls.BATCH_BYTES_MAX + 1))
    assert (413, "too_large") == (done.status_code, done.json()["code"])
    assert "at most 8,388,608 bytes" in done.json()["detail"]
    assert (calls.BATCH_MAX, calls.BATCH_BYTES_MAX) == (BATCH_MAX, BATCH_BYTES_MAX)


async def test_a_job_is_cancelled_once(api: Api) -> None:
    """With a reason for the customer, as it was typed, and in the log; the second time it had ended before."""
    job = await api.submit()
    path = f"/v1/jobs/{job['id']}/cancel"
    done = await api.ok("POST", path, {"reason": "changed my mind"}, role="ops")
    assert ("cancelled", False, False) == (done["state"], done["cancel_asked"], done["already_ended"])
    again = await api.ask("POST", path, role="ops")
    assert (409, "already_ended", "cancelled") == (again.status_code, again.json()["code"], again.json()["state"])
    shown = await api.ok("GET", f"/v1/jobs/{job['id']}")
    assert "changed my mind" == shown["message"]
    (entry,) = (await api.services.log.entries(subject=job["id"])).entries
    assert ("jobs.cancel", "queued", "cancelled") == (
        entry.what,
        (entry.before or {})["state"],
        (entry.after or {})["state"],
    )


async def test_a_cancel_that_can_not_be_logged_is_none(api: Api) -> None:
    """The log's entry is part of the transaction: nobody cancels or ends a job unseen."""
    job = await api.submit()
    async with api.database.connection(as_owner=True) as connection:
        await connection.execute("ALTER TABLE audit_log ADD CONSTRAINT none_of_these CHECK (what NOT LIKE 'jobs.%')")
    done = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel", role="ops")
    assert (500, "internal") == (done.status_code, done.json()["code"])
    assert "queued" == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["state"]


async def test_an_ended_job_is_tried_again_once(api: Api) -> None:
    """A new job each key; a job that goes on is not."""
    job = await api.submit(metadata={"song": "42"})
    path = f"/v1/jobs/{job['id']}/retry"
    headers = {"Authorization": f"Bearer {await api.key()}"}
    assert 422 == (await api.http.post(path, headers=headers)).status_code
    await api.ok("POST", f"/v1/jobs/{job['id']}/cancel")
    first, again = [(await api.http.post(path, headers=headers)).json() for _ in range(2)]
    assert (first["id"], True, f"retry:{job['id']}") == (again["id"], again["replayed"], again["key"])
    assert {"song": "42"} == (await api.ok("GET", f"/v1/jobs/{first['id']}"))["metadata"]
    assert 2 == await counted(api)


async def test_a_job_is_compensated_by_no_more_than_it_was_charged(api: Api) -> None:
    """One that was charged nothing gets nothing, and one that goes on is not compensated."""
    job = await api.submit()
    path, body = f"/v1/jobs/{job['id']}/compensate", {"amount": 1, "reason": "sorry"}
    assert "job" == (await api.ask("POST", path, body, role="ops")).json()["field"]
    await api.ok("POST", f"/v1/jobs/{job['id']}/cancel")
    assert "amount" == (await api.ask("POST", path, body, role="ops")).json()["field"]


async def test_a_receipt_explains_the_price(api: Api) -> None:
    """Its lines sum to the quote."""
    job = await api.submit()
    receipt = await api.ok("GET", f"/v1/jobs/{job['id']}/receipt")
    assert job["quoted"] == receipt["quoted"] == sum(float(line["amount"]) for line in receipt["quote_lines"])


async def test_a_quote_stores_nothing(api: Api) -> None:
    """And is what a submit then pins."""
    quote = await api.ok("POST", "/v1/quotes", {"kind": "generation", "params": SONG, "account": "ada"}, role="product")
    assert quote["total"] == (await api.submit())["quoted"]
    assert 1 == await counted(api)


async def test_jobs_are_found_a_page_at_a_time(api: Api) -> None:
    """By account, state, kind, time, metadata and key; each once, over all pages."""
    await api.account("bob", 100)
    mine = [(await api.submit(metadata={"album": str(number % 2)}))["id"] for number in range(5)]
    other = (await api.submit("bob"))["id"]
    await api.ok("POST", f"/v1/jobs/{mine[0]}/cancel")

    async def found(query: str) -> list[str]:
        return [job["id"] for job in (await api.ok("GET", f"/v1/jobs?{query}"))["jobs"]]

    assert [other, *reversed(mine)] == await found("")
    assert [*reversed(mine)] == await found("account=ada")
    assert [mine[0]] == await found("account=ada&state=cancelled") == await found("state=cancelled")
    assert [*reversed(mine[1:])] == await found("account=ada&state=queued")
    assert [mine[4], mine[2], mine[0]] == await found("account=ada&metadata=album%3D0")
    assert [mine[3], mine[1]] == await found("account=ada&state=queued&metadata=album%3D1")
    assert [] == await found("kind=stem_split")
    assert [] == await found("account=ada&metadata=album%3D%25")
    shown = await api.ok("GET", f"/v1/jobs/{mine[3]}")
    assert [mine[3]] == await found(f"account=ada&key={shown['key']}")
    assert [] == await found(f"account=bob&key={shown['key']}") == await found("account=ada&key=never")
    assert [] == await found(f"account=ada&state=cancelled&key={shown['key']}")
    created = (await api.ok("GET", f"/v1/jobs/{mine[2]}"))["created_at"].replace("+", "%2B")
    assert mine[2] not in await found(f"created_before={created}")
    assert [other, mine[4], mine[3], mine[2]] == await found(f"created_from={created}")

    pages, after = [], ""
    while True:
        page = await api.ok("GET", f"/v1/jobs?limit=2{after}")
        pages += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [other, *reversed(mine)] == pages


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=1.5", "limit"),
        ("limit=%2B5", "limit"),
        ("state=gone", "state"),
        ("after=x", "after"),
        ("account=a%00b", "account"),
        ("created_from=yesterday", "created_from"),
        ("metadata=a%3Db", "metadata"),
        ("account=ada&metadata=a", "metadata"),
        ("key=take-3", "key"),
        ("account=ada&key=", "key"),
        ("account=ada&key=a%00b", "key"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(api: Api, query: str, field: str) -> None:
    """422 with the field, not an empty list that looks like an answer."""
    done = await api.ask("GET", f"/v1/jobs?{query}")
    assert (422, field) == (done.status_code, done.json()["field"]), done.text


UNKNOWN = "0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"


@pytest.mark.parametrize("job", ["1", "x" * 36, f"{{{UNKNOWN}}}", UNKNOWN.replace("-", ""), UNKNOWN])
async def test_what_is_no_job_is_not_found(api: Api, job: str) -> None:
    """404, whatever shape the id has."""
    for method, path in (("GET", ""), ("GET", "/receipt"), ("POST", "/cancel"), ("POST", "/retry")):
        assert 404 == (await api.ask(method, f"/v1/jobs/{job}{path}")).status_code


# --- whose job it is -------------------------------------------------------------------------------------------


async def test_the_jobs_of_others_are_not_there(api: Api) -> None:
    """For a bound key and for a customer's token: the very answer that an unknown job gets."""
    await api.account("acme/eu", 100)
    await api.account("acme2", 100)
    ours, theirs, near = [(await api.submit(one))["id"] for one in ("acme/eu", "ada", "acme2")]
    bound, token = await api.key("pipeline", "acme"), await api.token("acme/eu")
    for key in (bound, token):
        assert ours == (await api.ok("GET", f"/v1/jobs/{ours}", key=key))["id"]
        for other in (theirs, near):
            for path in (f"/v1/jobs/{other}", f"/v1/jobs/{other}/receipt"):
                known = await api.ask("GET", path, key=key)
                unknown = await api.ask("GET", path.replace(other, UNKNOWN), key=key)
                assert 404 == known.status_code == unknown.status_code
                assert known.json().keys() == unknown.json().keys()
                assert "unknown_job" == known.json()["code"] == unknown.json()["code"]
    for path in ("cancel", "retry"):
        assert 404 == (await api.ask("POST", f"/v1/jobs/{theirs}/{path}", key=bound)).status_code
    assert "queued" == (await api.ok("GET", f"/v1/jobs/{theirs}"))["state"]


async def test_a_bound_key_submits_for_its_accounts_only(api: Api) -> None:
    """For another's it is as if the account were not there; in a batch too; and it lists one account at a time."""
    await api.account("acme", 100)
    bound = await api.key("pipeline", "acme")
    assert "acme" == (await api.submit("acme", key=bound))["account"]
    refused = await api.ask("POST", "/v1/jobs", SUBMIT, key=bound)
    assert (404, "unknown_account") == (refused.status_code, refused.json()["code"])
    batch = await api.ok("POST", "/v1/jobs/batch", {"jobs": [SUBMIT, {**SUBMIT, "account": "acme"}]}, key=bound)
    assert ["unknown_account", None] == [one.get("problem", {}).get("code") for one in batch["results"]]
    assert 422 == (await api.ask("GET", "/v1/jobs", key=bound)).status_code
    assert 404 == (await api.ask("GET", "/v1/jobs?account=ada", key=bound)).status_code
    assert 2 == len((await api.ok("GET", "/v1/jobs?account=acme", key=bound))["jobs"])
    assert {"acme"} == {job["account"] for job in (await api.ok("GET", "/v1/jobs"))["jobs"]}


async def test_a_customer_sees_the_jobs_of_one_account_and_changes_none(api: Api) -> None:
    """Without naming it; and 403 for whatever writes."""
    await api.account("bob", 100)
    await api.submit("bob")
    job = await api.submit("ada")
    token = await api.token("ada")
    assert [job["id"]] == [one["id"] for one in (await api.ok("GET", "/v1/jobs", key=token))["jobs"]]
    for path, body in (
        ("/v1/jobs", SUBMIT),
        (f"/v1/jobs/{job['id']}/cancel", None),
        (f"/v1/jobs/{job['id']}/retry", None),
    ):
        assert 403 == (await api.ask("POST", path, body, key=token)).status_code


async def test_only_a_key_that_opens_is_let_in(api: Api) -> None:
    """Missing, wrong, revoked and expired ones get the same answer."""
    made = await api.key("viewer")
    revoked = (await api.services.keys.find(made[:12])).id
    await api.services.keys.revoke(revoked, "test")
    for headers in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": f"Bearer {made}"},
    ):
        done = await api.http.get("/v1/jobs", headers=headers)
        assert (401, "unauthorized", "Bearer") == (
            done.status_code,
            done.json()["code"],
            done.headers["WWW-Authenticate"],
        )


# --- can it be paid? -------------------------------------------------------------------------------------------


async def price_of(api: Api) -> int:
    """What a song costs."""
    return int((await api.ok("POST", "/v1/quotes", {"kind": "generation", "params": SONG}))["total"])


async def test_what_the_account_cannot_pay_is_turned_down_at_once(api: Api) -> None:
    """402 with what is missing and the pack that would do; nothing stored, the key still free."""
    price = await price_of(api)
    await api.account("bob")
    await api.ok("POST", "/v1/accounts/bob/subscription", {"plan": "starter"})
    have = (await api.ok("GET", "/v1/accounts/bob/balance"))["spendable"]
    queued = have // price
    for number in range(queued):
        await api.submit("bob", idempotency=f"fits-{number}")
    done = await api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"}, idempotency="dear")
    left = have - queued * price
    told = done.json()
    assert (402, "insufficient_credits") == (done.status_code, told["code"])
    assert (price, left, price - left) == (told["needed"], told["available"], told["shortfall"])
    assert told["smallest_pack"]["credits"] >= price - left
    assert queued == await counted(api)
    await api.ok("POST", "/v1/accounts/bob/topups", {"pack": told["smallest_pack"]["name"]})
    assert not (await api.submit("bob", idempotency="dear"))["replayed"]


async def test_who_bought_credits_without_a_subscription_is_told_what_to_do(api: Api) -> None:
    """402 names the frozen ones and how they thaw; where nothing was bought, that buying alone would not do."""
    await api.account("bob")
    bare = (await api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"})).json()
    assert (0, None) == (bare["frozen"], bare["smallest_pack"])
    assert bare["detail"].endswith("bought credits would not do without an active subscription")
    await api.ok("POST", "/v1/accounts/bob/topups", {"credits": 100})
    done = await api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"}, idempotency="song")
    told = done.json()
    assert (402, 0, 100, None) == (done.status_code, told["available"], told["frozen"], told["smallest_pack"])
    assert "100 bought ones, frozen until it has an active subscription: subscribe or resume it" in told["detail"]
    await api.ok("POST", "/v1/accounts/bob/subscription", {"plan": "starter"})
    assert "queued" == (await api.submit("bob", idempotency="song"))["state"]


async def test_of_fifty_submits_at_once_as_many_are_taken_as_fit(api: Api) -> None:
    """A19: the queue's quotes count; what waits for credits on purpose is always taken."""
    price = await price_of(api)
    await api.account("bob", 7 * price + price - 1)
    done = await asyncio.gather(*(api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"}) for _ in range(50)))
    assert [202] * 7 + [402] * 43 == sorted(one.status_code for one in done)
    assert 7 == await counted(api)
    await api.submit("bob", on_insufficient="wait")
    batch = await api.ok("POST", "/v1/jobs/batch", {"jobs": [{**SUBMIT, "account": "bob"}, SUBMIT]})
    assert ["insufficient_credits", None] == [one.get("problem", {}).get("code") for one in batch["results"]]


async def test_one_request_that_comes_twenty_times_at_once_is_paid_once(api: Api) -> None:
    """Its twins are told of the job that is stored, not that it can't be paid, and leave room for others."""
    price = await price_of(api)
    await api.account("bob", 2 * price)
    asked = [api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"}, idempotency="k") for _ in range(20)]
    *done, other = await asyncio.gather(*asked, api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"}))
    assert {202} == {one.status_code for one in (*done, other)}
    assert 1 == len({one.json()["id"] for one in done})
    assert 2 == await counted(api)


async def test_two_processes_that_meet_the_last_credits_by_one_key_agree(api: Api, tmp_path: Path) -> None:
    """Whoever finds the credits taken by the very same request is told of its job."""
    price = await price_of(api)
    async with an_api(api.database, tmp_path / "other") as other:
        for number in range(10):
            await api.account(f"bob{number}", price)
            body = {**SUBMIT, "account": f"bob{number}"}
            key = await api.key()
            asked = [one.ask("POST", "/v1/jobs", body, idempotency="k", key=key) for one in (api, other) * 4]
            done = await asyncio.gather(*asked)
            assert {202} == {one.status_code for one in done}
            assert 1 == len({one.json()["id"] for one in done})


async def test_a_balance_that_is_just_enough_is_enough(api: Api) -> None:
    """A18: the last credit counts; a cancelled job gives its room back at once."""
    await api.account("bob", await price_of(api))
    job = await api.submit("bob")
    assert 402 == (await api.ask("POST", "/v1/jobs", {**SUBMIT, "account": "bob"})).status_code
    await api.ok("POST", f"/v1/jobs/{job['id']}/cancel")
    await api.submit("bob")


async def test_a_replay_is_answered_whatever_the_balance(api: Api) -> None:
    """And a job that is free needs nothing; our own client leaves the question to the claim."""
    await api.account("bob", await price_of(api))
    first = await api.submit("bob", idempotency="k")
    again = await api.submit("bob", idempotency="k")
    assert (first["id"], True) == (again["id"], again["replayed"])
    asked = JobRequest("bob", "generation", SONG)
    assert "queued" == (await api.services.client.submit(asked, "test")).state


async def test_each_of_a_batch_is_told_its_position(api: Api) -> None:
    """As a single submit is, and a retry."""
    items = [{"account": "ada", "kind": "generation", "params": SONG} for _ in range(3)]
    done = await api.ok("POST", "/v1/jobs/batch", {"jobs": items}, idempotency="b")
    assert [1, 2, 3] == [one["job"]["position"] for one in done["results"]]
    assert [None] * 3 == [
        one["job"]["position"]
        for one in (await api.ok("POST", "/v1/jobs/batch", {"jobs": items}, idempotency="b"))["results"]
    ]


async def test_the_position_in_the_queue_is_told(api: Api) -> None:
    """At the submit about, on a look as the dispatch would go; None once it is not queued."""
    jobs = [await api.submit() for _ in range(3)]
    assert 1 == jobs[0]["position"]
    shown = [(await api.ok("GET", f"/v1/jobs/{job['id']}"))["position"] for job in jobs]
    assert [1, 2, 3] == shown
    await api.ok("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert [None, 1, 2] == [(await api.ok("GET", f"/v1/jobs/{job['id']}"))["position"] for job in jobs]
