"""What a hostile or broken client sends ends as one clear answer, before it costs anything; and what answers carry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_support import SONG, Api, an_api
from tests.servers import Database
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.errors import NoPrice, StoreError
from worker.web import guard
from worker.web.pace import GUESSES_MAX
from worker.web.problems import TABLE, said

SUBMIT = {"account": "ada", "kind": "generation", "params": SONG}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada", 1000)
        yield made


def with_params(text: str) -> str:
    """A submit whose params are this JSON text."""
    return json.dumps(SUBMIT).replace(json.dumps(SONG), text)


#: RELIABILITY.md §5, A: what comes as a body, how it is typed, and the status.
BODIES: list[tuple[str, str | bytes, dict[str, str], int]] = [
    ("A1 zero", with_params('{"prompt": "x", "seconds": 0}'), JSON, 422),
    ("A2 negative", with_params('{"prompt": "x", "seconds": -1}'), JSON, 422),
    ("A3 2^31", with_params('{"prompt": "x", "seconds": 2147483648}'), JSON, 422),
    ("A4 2^63-1", with_params('{"prompt": "x", "seconds": 9223372036854775807}'), JSON, 422),
    ("A5 2^63", with_params('{"prompt": "x", "seconds": 9223372036854775808}'), JSON, 422),
    ("A6 10^30", with_params(f'{{"prompt": "x", "seconds": {10**30}}}'), JSON, 422),
    ("A7 1.5 of a count", with_params('{"prompt": "x", "seconds": 20, "variants": 1.5}'), JSON, 422),
    ("A8 2.0 of a count", with_params('{"prompt": "x", "seconds": 20, "variants": 2.0}'), JSON, 422),
    ("A9 true", with_params('{"prompt": "x", "seconds": true}'), JSON, 422),
    ("A10 a number as text", with_params('{"prompt": "x", "seconds": "20"}'), JSON, 422),
    ("A11 full-width digits", with_params('{"prompt": "x", "seconds": "２０"}'), JSON, 422),
    ("A12 NaN", with_params('{"prompt": "x", "seconds": NaN}'), JSON, 400),
    ("A12 Infinity", with_params('{"prompt": "x", "seconds": -Infinity}'), JSON, 400),
    ("A12 1e400", with_params('{"prompt": "x", "seconds": 1e400}'), JSON, 400),
    ("A13 -0.0", with_params('{"prompt": "x", "seconds": -0.0}'), JSON, 422),
    ("A14 hexadecimal", with_params('{"prompt": "x", "seconds": 0x10}'), JSON, 400),
    ("A15 5,000 digits", with_params(f'{{"prompt": "x", "seconds": {"9" * 5000}}}'), JSON, 400),
    ("A20 ten hours", with_params('{"prompt": "x", "seconds": 36000}'), JSON, 422),
    ("A36 a name twice", with_params('{"prompt": "x", "seconds": 20, "seconds": 60}'), JSON, 400),
    ("A36 a name twice, outside", '{"account": "ada", "account": "eve", "kind": "generation"}', JSON, 400),
    ("A37 an unknown field", json.dumps({**SUBMIT, "amount": -5}), JSON, 422),
    ("A38 a list", "[]", JSON, 422),
    ("A38 null", "null", JSON, 422),
    ("A38 nothing", "", {}, 400),
    ("A38 text", '"submit"', JSON, 422),
    ("A39 100,000 deep", "[" * 30_000 + "]" * 30_000, JSON, 400),
    ("A39 100 deep", with_params('{"a":' * 100 + "1" + "}" * 100), JSON, 400),
    ("A40 64 KiB and one", json.dumps({**SUBMIT, "metadata": {"a": "x" * 65_536}}), JSON, 413),
    ("A41 another type", json.dumps(SUBMIT), {"Content-Type": "text/plain"}, 415),
    ("A41 no type", json.dumps(SUBMIT), {}, 415),
    ("A41 a form", "account=ada", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ("A41 UTF-16", json.dumps(SUBMIT).encode("utf-16"), JSON, 400),
    ("A41 a byte order mark", b"\xef\xbb\xbf" + json.dumps(SUBMIT).encode(), JSON, 400),
    ("A41 invalid UTF-8", b'{"account": "\xff"}', JSON, 400),
    ("A41 another charset", json.dumps(SUBMIT), {"Content-Type": "application/json; charset=utf-16"}, 415),
    ("A42 compressed", b"\x1f\x8b", {**JSON, "Content-Encoding": "gzip"}, 415),
    ("A43 an unknown kind", json.dumps({**SUBMIT, "kind": "GENERATE"}), JSON, 422),
    ("A45 metadata of 1,000 names", json.dumps({**SUBMIT, "metadata": {f"n{n}": 0 for n in range(1_000)}}), JSON, 422),
    ("A45 metadata with a value of 10 kB", json.dumps({**SUBMIT, "metadata": {"a": "x" * 10_000}}), JSON, 422),
    ("A45 metadata of 21,000 values", json.dumps({**SUBMIT, "metadata": {"a": [0] * 21_000}}), JSON, 422),
    ("A45 as much metadata as there may be", json.dumps({**SUBMIT, "metadata": {"a": "x" * 8_184}}), JSON, 202),
    ("A46 NUL", with_params('{"prompt": "a\\u0000b", "seconds": 20}'), JSON, 422),
    ("A47 half a character", with_params('{"prompt": "\\ud800", "seconds": 20}'), JSON, 422),
    ("A48 NUL in metadata", json.dumps({**SUBMIT, "metadata": {"a": "\0"}}), JSON, 422),
    ("A54 a long prompt", with_params(json.dumps({"prompt": "x" * 60_000, "seconds": 20})), JSON, 422),
]

#: A34: stored as they are, never interpreted.
HARMLESS = ["../../etc", "%2e%2e", "' OR 1=1--", '"; DROP TABLE jobs;--', "$1", "{{7*7}}", "${jndi:ldap://x}", "%s%n"]


async def test_every_bad_body_is_one_clear_answer(api: Api, subtests: pytest.Subtests) -> None:
    """A status of the client's side, a problem document, nothing stored; the process goes on."""
    for name, body, headers, status in BODIES:
        with subtests.test(name):
            done = await api.ask("POST", "/v1/jobs", content=body, headers=headers)
            assert status == done.status_code, done.text
            if status != 202:
                assert "application/problem+json" == done.headers["Content-Type"]
                assert "Traceback" not in done.text
                assert len(done.text) < 3000
    assert 1 == len((await api.ok("GET", "/v1/jobs"))["jobs"])


async def test_words_are_stored_as_they_are(api: Api) -> None:
    """Whatever they would mean to a shell, a database or a template."""
    job = await api.submit(metadata={"words": HARMLESS}, params={**SONG, "prompt": " ".join(HARMLESS)})
    shown = await api.ok("GET", f"/v1/jobs/{job['id']}")
    assert (HARMLESS, " ".join(HARMLESS)) == (shown["metadata"]["words"], shown["request"]["prompt"])


async def test_parallel_submits_of_one_key_are_one_job(api: Api) -> None:
    """A27: all get the same id, one of them not as a replay."""
    done = await asyncio.gather(*(api.submit(idempotency="k") for _ in range(20)))
    assert (1, 19) == (len({one["id"] for one in done}), sum(one["replayed"] for one in done))


async def test_two_accounts_may_use_the_same_key(api: Api) -> None:
    """A28: two jobs."""
    await api.account("bob", 100)
    ada, bob = await api.submit("ada", idempotency="k"), await api.submit("bob", idempotency="k")
    assert (False, False) == (ada["replayed"], bob["replayed"])
    assert ada["id"] != bob["id"]


def _leaves(kind: type[Exception]) -> Iterator[type[Exception]]:
    for one in kind.__subclasses__():
        yield one
        yield from _leaves(one)


@pytest.mark.parametrize("kind", sorted(_leaves(StoreError), key=repr))
def test_every_error_of_the_store_has_its_answer(kind: type[Exception]) -> None:
    """A new one is no 500 for want of a row in the table."""
    assert any(issubclass(kind, known) for known, _ in TABLE)


def test_a_kind_without_a_price_is_not_sold() -> None:
    """A44: 409 with its own code, never a price of 0."""
    told = said(NoPrice("kind", "stem_split has no price in book 2"))
    assert (409, "no_price", "kind") == (told.status, told.code, told.more["field"])


# --- before a route --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({f"X-{number}": "x" for number in range(65)}, 431),
        ({"X-Long": "x" * 17_000}, 431),
        ({"Content-Length": "9" * 30}, 413),
        ({"Content-Length": "-1"}, 413),
    ],
)
async def test_headers_have_limits(api: Api, headers: dict[str, str], status: int) -> None:
    """Seen before any key is looked up."""
    done = await api.http.get("/v1/queues", headers=headers)
    assert (status, "application/problem+json") == (done.status_code, done.headers["Content-Type"])


async def test_a_query_has_a_limit(api: Api) -> None:
    """And a filter too many is no filter."""
    assert 400 == (await api.ask("GET", f"/v1/jobs?state={'x' * 5000}")).status_code


@pytest.mark.parametrize(
    ("query", "field"), [("kind=%00", "kind"), ("state=%00", "state"), ("account=ada&metadata=a%00%3Db", "metadata")]
)
async def test_a_filter_with_a_nul_is_refused(api: Api, query: str, field: str) -> None:
    """PostgreSQL knows no such text: the client is told, and no bug of ours is logged."""
    done = await api.ask("GET", f"/v1/jobs?{query}")
    assert (422, field) == (done.status_code, done.json()["field"])


@pytest.mark.parametrize("reason", ["a\nb", "\x1b[31mred", "\u202egnp"])
async def test_a_reason_that_would_play_with_a_terminal_is_refused(api: Api, reason: str) -> None:
    """A51: it stands beside the queue in tables and logs."""
    done = await api.ask("POST", "/v1/queues/generation/pause", {"reason": reason})
    assert (422, "reason") == (done.status_code, done.json()["field"])


async def test_nobody_without_a_key_has_a_body_read(api: Api) -> None:
    """401 while the body is still to come."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b" " * 1000

    done = await api.http.post("/v1/jobs", content=endless(), headers=JSON)
    assert (401, 0) == (done.status_code, read)


async def test_a_slow_body_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """408, so that a thousand of them hold nothing."""
    monkeypatch.setattr(guard, "_PAUSE_SECONDS", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    done = await api.ask("POST", "/v1/jobs", content=slow(), headers=JSON)
    assert (408, "timeout") == (done.status_code, done.json()["code"])


async def test_a_body_that_trickles_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep it alive."""
    monkeypatch.setattr(guard, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(guard, "_PACE_BYTES", 10**9)

    async def trickling() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    assert 408 == (await api.ask("POST", "/v1/jobs", content=trickling(), headers=JSON)).status_code


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/jobs/", "/v1/admin", "/v1/docs", "/v1/jobs//"])
async def test_there_is_nothing_elsewhere(api: Api, path: str) -> None:
    """404 as a problem; pages for people begin outside /v1."""
    done = await api.ask("GET", path)
    assert (404, "application/problem+json") == (done.status_code, done.headers["Content-Type"])


async def test_a_wrong_method_is_said_to_be(api: Api) -> None:
    """405, with those that are right."""
    done = await api.ask("DELETE", "/v1/jobs")
    assert (405, "method_not_allowed") == (done.status_code, done.json()["code"])


# --- what every answer carries ---------------------------------------------------------------------------------


async def test_every_answer_has_an_id_and_no_answer_is_a_page(api: Api) -> None:
    """The caller's own id where it can stand in a log; and the headers that keep browsers from guessing."""
    for path, key in (("/v1/queues", None), ("/v1/nothing", None), ("/v1/queues", "x")):
        done = await api.ask("GET", path, key=key, headers={"X-Request-Id": "trace-1234"})
        assert "trace-1234" == done.headers["X-Request-Id"]
        assert "nosniff" == done.headers["X-Content-Type-Options"]
        assert "no-store" == done.headers["Cache-Control"]
        assert "default-src 'none'" in done.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in done.headers
    for bad in ("x", "a\x1bbcdefgh", "x" * 100):
        done = await api.ask("GET", "/v1/queues", headers={"X-Request-Id": bad})
        assert bad != done.headers["X-Request-Id"]


async def test_a_bug_of_ours_is_told_by_its_id_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 without a word of what went wrong inside."""

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CANARY-secret")

    monkeypatch.setattr(type(api.services.reads), "queues", broken)
    done = await api.ask("GET", "/v1/queues")
    assert (500, "internal") == (done.status_code, done.json()["code"])
    assert "CANARY" not in done.text
    assert done.json()["request_id"] == done.headers["X-Request-Id"]


# --- limits by key ---------------------------------------------------------------------------------------------


async def test_a_key_has_its_share_of_a_minute(database: Database, tmp_path: Path, redis_url: str) -> None:
    """Counted for all processes together; another key has its own."""
    async with (
        an_api(database, tmp_path, redis_url=redis_url, api_requests_per_minute=10) as one,
        an_api(database, tmp_path, redis_url=redis_url, api_requests_per_minute=10) as two,
    ):
        key = await one.key("viewer")
        answers = [await api.ask("GET", "/v1/queues", key=key) for _ in range(10) for api in (one, two)]
        assert [200] * 10 + [429] * 10 == sorted(done.status_code for done in answers)
        assert ("rate_limited", "10") == (answers[-1].json()["code"], answers[-1].headers["Retry-After"])
        assert 200 == (await two.ask("GET", "/v1/queues", key=await two.key("ops"))).status_code


async def test_limits_are_counted_here_while_redis_is_away(database: Database, tmp_path: Path) -> None:
    """Never an outage: the limit holds for the one process, and requests go through."""
    nowhere = "redis://127.0.0.1:1/0"
    async with an_api(database, tmp_path, redis_url=nowhere, api_requests_per_minute=5) as api:
        key = await api.key("viewer")
        answers = [(await api.ask("GET", "/v1/queues", key=key)).status_code for _ in range(7)]
        assert [200] * 5 + [429] * 2 == answers


async def test_an_address_that_guesses_keys_is_slowed(api: Api) -> None:
    """Whoever holds a right key is let in from the same address, also one that never opened here before."""
    key, unused = await api.key("viewer"), (await api.services.keys.create(NewKey(Role.OPS, "unused"), "test")).key
    assert 200 == (await api.ask("GET", "/v1/queues", key=key)).status_code
    answers = [
        (await api.ask("GET", "/v1/queues", key=f"fmt_{number}")).status_code for number in range(GUESSES_MAX + 1)
    ]
    assert [401] * GUESSES_MAX + [429] == answers
    assert 200 == (await api.ask("GET", "/v1/queues", key=key)).status_code
    assert 200 == (await api.ask("GET", "/v1/queues", key=unused)).status_code
    assert 429 == (await api.ask("GET", "/v1/queues", key=f"fmt_{'x' * 43}")).status_code


async def test_wrong_keys_cost_little(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be no key is never looked up; of an address that guesses two at a time are, and the same one once."""
    now = most = looks = 0
    opening = ApiKeys.opening_by

    async def counted(keys: ApiKeys, digest: bytes) -> Any:
        nonlocal now, most, looks
        looks, now = looks + 1, now + 1
        most = max(most, now)
        await asyncio.sleep(0)
        try:
            return await opening(keys, digest)
        finally:
            now -= 1

    monkeypatch.setattr(ApiKeys, "opening_by", counted)
    for number in range(GUESSES_MAX):
        await api.ask("GET", "/v1/queues", key=f"guess-{number}")
    assert 0 == looks
    guesses = [f"fmt_{number:043}" for number in range(20)]
    await asyncio.gather(*(api.ask("GET", "/v1/queues", key=guess) for guess in guesses))
    assert (20, 2) == (looks, most)
    unused = (await api.services.keys.create(NewKey(Role.OPS, "unused"), "test")).key
    answers = await asyncio.gather(*(api.ask("GET", "/v1/queues", key=unused) for _ in range(20)))
    assert {200} == {done.status_code for done in answers}
    assert looks <= 22
