"""RELIABILITY.md §5, A: every numbered case has its test. Those that have no better place stand here."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model
from sqlalchemy import event

from tests.integration.api_support import SONG, Api, an_api
from tests.integration.test_api_guard import BODIES
from tests.integration.test_rehearsals import SHIPPED
from tests.servers import Database
from worker.store.reads_account_lists import AccountListReads

ROOT = Path(__file__).parents[2]

#: Case -> the test beside `test_every_bad_body_is_one_clear_answer`, which has the others as its rows.
ELSEWHERE = {
    "A16": "test_api_bad_inputs.py::test_a_price_above_what_the_books_hold_is_refused",
    "A17": "test_api_jobs.py::test_what_the_account_cannot_pay_is_turned_down_at_once",
    "A18": "test_api_jobs.py::test_a_balance_that_is_just_enough_is_enough",
    "A19": "test_api_jobs.py::test_of_fifty_submits_at_once_as_many_are_taken_as_fit",
    "A21": "test_api_jobs.py::test_a_submit_needs_a_key_that_can_be_one",
    "A22": "test_api_jobs.py::test_a_submit_needs_a_key_that_can_be_one",
    "A23": "test_api_jobs.py::test_the_same_key_is_one_job_and_another_body_a_conflict",
    "A24": "test_api_jobs.py::test_the_same_key_is_one_job_and_another_body_a_conflict",
    "A25": "test_api_jobs.py::test_the_same_key_is_one_job_and_another_body_a_conflict",
    "A26": "test_api_bad_inputs.py::test_a_key_stays_the_same_over_a_deploy_that_adds_a_field",
    "A27": "test_api_guard.py::test_parallel_submits_of_one_key_are_one_job",
    "A28": "test_api_guard.py::test_two_accounts_may_use_the_same_key",
    "A29": "test_submits.py::test_a_replay_tells_how_the_job_stands",
    "A30": "test_api_bad_inputs.py::test_a_key_stays_the_same_over_a_deploy_that_adds_a_field",
    "A31": "test_api_bad_inputs.py::test_whose_it_is_can_not_be_told_from_whether_it_is",
    "A32": "test_api_jobs.py::test_a_bound_key_submits_for_its_accounts_only",
    "A33": "test_api_jobs.py::test_what_is_no_job_is_not_found",
    "A34": "test_api_guard.py::test_words_are_stored_as_they_are",
    "A35": "test_api_bad_inputs.py::test_a_search_takes_wildcards_for_what_they_are",
    "A44": "test_api_guard.py::test_a_kind_without_a_price_is_not_sold",
    "A49": "test_api_bad_inputs.py::test_text_that_runs_the_other_way_is_kept_and_kept_apart",
    "A50": "test_api_bad_inputs.py::test_text_is_measured_in_characters_and_in_bytes",
    "A51": "test_api_guard.py::test_a_reason_that_would_play_with_a_terminal_is_refused",
    "A52": "test_api_bad_inputs.py::test_nothing_is_exported_for_a_spreadsheet",
    "A53": "test_dashboard_pages.py::test_what_customers_wrote_is_shown_as_text",
}


def test_every_case_has_a_test() -> None:
    """A1 to A54; whoever renames a test or drops a row hears of it here."""
    rows = {name.split()[0] for name, *_ in BODIES}
    assert {f"A{number}" for number in range(1, 55)} == rows | set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert re.search(rf"def {name}\(", (Path(__file__).parent / file).read_text()), place


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada", 1000)
        yield made


async def test_a_price_above_what_the_books_hold_is_refused(database: Database, tmp_path: Path) -> None:
    """A16: 422 before any statement sees the number, whatever a book makes of units and rates."""
    dear = SHIPPED.replace("base = 4\n", f"base = {10**12}\n", 1)
    async with an_api(database, tmp_path, price_credits_max=10**12) as api:
        await api.account("ada", 10**12)
        await api.ok("POST", "/v1/prices", {"document": dear, "note": "dear", "force": "a test"}, role="product")
        body = {"account": "ada", "kind": "generation", "params": SONG}
        for path, asked in (("/v1/jobs", body), ("/v1/quotes", body)):
            refused = await api.ask("POST", path, asked)
            told = refused.json()
            assert (422, "validation", "kind") == (refused.status_code, told["code"], told["field"])
        assert [] == (await api.ok("GET", "/v1/jobs"))["jobs"]
        assert 10**12 == (await api.ok("GET", "/v1/accounts/ada/balance"))["spendable"]


async def test_a_key_stays_the_same_over_a_deploy_that_adds_a_field(api: Api) -> None:
    """A26, A30: what is left out is what its default spells out; given otherwise it is another request."""
    first = await api.submit(idempotency="k")
    spelled = {**SONG, "variants": 1}
    assert first["id"] == (await api.submit(idempotency="k", params=spelled, metadata={}))["id"]

    kind = api.services.client.kinds["generation"]
    grown = create_model("Grown", __base__=kind.request_model, mood=(str | None, None))
    later: Any = type("Later", (type(kind),), {"request_model": grown})
    new = later.__new__(later)
    new.__dict__.update(getattr(kind, "__dict__", {}))
    object.__setattr__(api.services.client, "kinds", {**api.services.client.kinds, "generation": new})
    again = await api.submit(idempotency="k")
    assert (first["id"], True) == (again["id"], again["replayed"])
    body = {"account": "ada", "kind": "generation", "params": {**SONG, "mood": "blue"}}
    assert 409 == (await api.ask("POST", "/v1/jobs", body, idempotency="k")).status_code


async def test_a_search_takes_wildcards_for_what_they_are(api: Api) -> None:
    """A35: `%` and `_` are letters like others, wherever something is looked for."""
    for account in ("a_b", "axb"):
        await api.account(account)
    reads = AccountListReads(api.services.engine)
    assert ["a_b"] == [one.account for one in (await reads.accounts("a_")).accounts]
    assert () == (await reads.accounts("%")).accounts
    job = await api.submit(metadata={"song": "4_%"})
    await api.submit(metadata={"song": "42x"})
    for given, found in (("4_%25", [job["id"]]), ("4_", []), ("%25", [])):
        jobs = await api.ok("GET", f"/v1/jobs?account=ada&metadata=song%3D{given}")
        assert found == [one["id"] for one in jobs["jobs"]], given
    for query in ("subject=%25", "subject=ad_", "actor=%25"):
        assert [] == (await api.ok("GET", f"/v1/audit-log?{query}"))["entries"]


async def test_text_that_runs_the_other_way_is_kept_and_kept_apart(api: Api) -> None:
    """A49: stored as it came, and isolated on the page, so that it turns nothing around but itself."""
    words = "\u202egnp.exe \u200bа\u0440\u0440le \u2066x"
    job = await api.submit(params={**SONG, "prompt": words})
    assert words == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["request"]["prompt"]
    await api.http.post("/sign-in", data={"key": await api.key()}, headers={"Origin": "http://fermata"})
    page = await api.http.get(f"/jobs/{job['id']}")
    assert f"<bdi>{words}</bdi>" in page.text


async def test_text_is_measured_in_characters_and_in_bytes(api: Api) -> None:
    """A50: an emoji is one character; ten thousand marks on one letter are ten thousand; the body has its own limit."""
    emoji = "🎹" * 2_000
    job = await api.submit(params={**SONG, "prompt": emoji})
    assert emoji == (await api.ok("GET", f"/v1/jobs/{job['id']}"))["request"]["prompt"]
    for prompt in (f"{emoji}🎹", "a" + "\u0301" * 10_000):
        body = {"account": "ada", "kind": "generation", "params": {**SONG, "prompt": prompt}}
        refused = await api.ask("POST", "/v1/jobs", body)
        assert (422, "prompt") == (refused.status_code, refused.json()["field"])
    much = {"account": "ada", "kind": "generation", "params": SONG, "metadata": {"a": "🎹" * 2_050}}
    refused = await api.ask("POST", "/v1/jobs", much)
    assert (422, "metadata") == (refused.status_code, refused.json()["field"])


def test_nothing_is_exported_for_a_spreadsheet() -> None:
    """A52: there is no CSV. Whoever adds one puts a quote before cells that begin with = + - @, and a test here."""
    sources = [path for room in ("worker", "fermata_client", "tasks") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    for path in sources:
        assert not re.search(r"\bimport csv\b|text/csv|\.to_csv\(", path.read_text()), path


@contextmanager
def statements(api: Api) -> Iterator[list[str]]:
    """Every statement that the application sends meanwhile, but for the look at the caller's own key."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM api_keys" not in statement:
            sent.append(statement)

    engine = api.services.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_whose_it_is_can_not_be_told_from_whether_it_is(api: Api, subtests: pytest.Subtests) -> None:
    """A31: of others and unknown are the same statements and the same bytes, so nothing is left to be timed.

    `make bench ONLY=api` measures the times.
    """
    job = await api.submit()
    unknown = "0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"
    bound = await api.key("pipeline", "acme")
    await api.account("acme/eu")
    token = await api.token("acme/eu")
    looks = [("GET", f"/v1/jobs/{{}}{more}", job["id"], unknown) for more in ("", "/receipt", "/events", "?wait=1")]
    looks += [("POST", f"/v1/jobs/{{}}/{act}", job["id"], unknown) for act in ("cancel", "retry")]
    looks += [("GET", f"/v1/accounts/{{}}/{what}", "ada", "eve") for what in ("balance", "journal", "events", "limits")]
    looks += [("GET", "/v1/jobs?account={}", "ada", "eve"), ("GET", "/v1/artifacts?account={}", "ada", "eve")]
    for method, path, theirs, nobodys in looks:
        for key in (bound, token) if method == "GET" else (bound,):
            with subtests.test(f"{method} {path}"):
                answers = []
                for one in (theirs, nobodys):
                    with statements(api) as sent:
                        done = await api.ask(method, path.format(one), key=key, headers={"X-Request-Id": "trace-1234"})
                    answers.append((done.status_code, done.text.replace(one, ""), sent))
                assert 404 == answers[0][0]
                assert answers[0] == answers[1]
