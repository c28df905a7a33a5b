"""What the command can look at and set, HTTP can too: an account's events and limits, voices, what prices did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import uuid_utils.compat as uuids

from tests.integration.api_support import Api, an_api
from tests.integration.test_rehearsals import DEARER
from tests.servers import Database
from tests.unit.tasks.material import pitch_curve, sung
from worker.credits.operations import Claim, Settle
from worker.credits.outcomes import Ending
from worker.store.voices import NewVoice


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada", 1_000)
        yield made


async def sold(api: Api) -> Any:
    """A job that ended and was paid for in full."""
    job = await api.submit()
    job_id, operations = uuids.UUID(job["id"]), api.services.client.operations
    claimed = await operations.do(Claim("ada", job_id, uuids.uuid7(), "w1", 30))
    settle = Settle("ada", job_id, claimed.token, Ending.SUCCEEDED, job["quoted"], outputs_due=False, claimed=claimed)
    await operations.do(settle)
    return job


async def test_an_account_reads_what_it_was_told(api: Api) -> None:
    """Page by page; nothing of another account."""
    job = await sold(api)
    page = await api.ok("GET", "/v1/accounts/ada/events", key=await api.token("ada"))
    assert [("ended", job["id"])] == [(one["what"], one["job"]) for one in page["events"] if one["what"] == "ended"]
    assert [] == (await api.ok("GET", f"/v1/accounts/ada/events?after={page['last']}"))["events"]
    bound = await api.key("viewer", "bob")
    for account in ("ada", "nobody"):
        assert 404 == (await api.ask("GET", f"/v1/accounts/{account}/events", key=bound)).status_code
        assert 404 == (await api.ask("GET", f"/v1/accounts/{account}/limits", key=bound)).status_code


async def test_limits_of_an_account_are_set_left_and_taken_back(api: Api) -> None:
    """What is left out stays; `plan` is the plan's again; in the log by its actor."""
    path = "/v1/accounts/ada/limits"
    assert 3 == (await api.ok("POST", path, {"running_max": 3}, role="ops"))["running_max"]
    both = await api.ok("POST", path, {"warn_below": 50}, role="ops")
    assert (3, 50) == (both["own_running_max"], both["own_warn_below"])
    await api.ok("POST", path, {"running_max": "plan"}, role="ops")
    shown = await api.ok("GET", path, role="billing")
    assert (None, 50) == (shown["own_running_max"], shown["own_warn_below"])
    for body in ({"running_max": 0}, {"running_max": "none"}, {"warn_below": -1}, {"warn_below": True}):
        assert 422 == (await api.ask("POST", path, body, role="ops")).status_code
    assert 404 == (await api.ask("POST", "/v1/accounts/nobody/limits", {"warn_below": 1})).status_code


async def test_what_a_wrong_book_took_is_seen_and_given_back_once(api: Api) -> None:
    """A look gives nothing; the second time there is nothing left to give."""
    await api.ok("POST", "/v1/prices", {"document": DEARER, "note": "slip", "force": "a test"}, role="product")
    job = await sold(api)
    await api.ok("POST", "/v1/prices/1/revert", {"note": "back"}, role="product")
    path = "/v1/prices/2/overcharged"
    look = await api.ok("GET", path, role="product")
    assert (1, False, job["id"]) == (look["jobs"], look["compensated"], look["worst"][0]["job"])
    before = (await api.ok("GET", "/v1/accounts/ada/balance"))["spendable"]
    given = [(await api.ok("POST", path, {"reason": "sorry"}, role="billing"))["given"] for _ in range(2)]
    assert [look["to_give"], 0] == given
    assert before + look["to_give"] == (await api.ok("GET", "/v1/accounts/ada/balance"))["spendable"]
    (line,) = (await api.ok("GET", "/v1/prices/report?days=7", role="viewer"))["lines"]
    assert ("generation", 1) == (line["kind"], line["sold"])
    unknown = await api.ask("GET", "/v1/prices/9/overcharged")
    assert (422, "book") == (unknown.status_code, unknown.json()["field"])


async def test_a_voice_is_registered_listed_and_removed(api: Api, tmp_path: Path) -> None:
    """With a clip of it, by who may; once a key; a name is never used again."""
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, sung(pitch_curve([220.0, 220.0], 1.0, 24_000), 24_000) * 0.5, 24_000)
    words = {"name": "alto", "owner": "ada", "licence": "own recording", "consent": "Ada Singer, contract 7"}
    parts: dict[str, Any] = {
        "params": {**words, "plan": ["creator"]},
        "files": {"file": ("clip.wav", clip.read_bytes(), "audio/wav")},
    }
    made, again = [await api.ask("POST", "/v1/voices", role="product", idempotency="k", **parts) for _ in range(2)]
    assert (201, made.json()) == (made.status_code, again.json()), made.text
    assert float(made.json()["statistics"]["pitch_hz"]) == pytest.approx(220, rel=0.03)
    assert (422, "voice") == (lambda done: (done.status_code, done.json()["field"]))(
        await api.ask("POST", "/v1/voices", role="product", **parts)
    )
    changed: dict[str, Any] = {**parts, "params": {**words, "consent": "somebody else"}}
    assert 409 == (await api.ask("POST", "/v1/voices", role="product", idempotency="k", **changed)).status_code
    assert ["alto"] == [one["name"] for one in (await api.ok("GET", "/v1/voices", role="pipeline"))["voices"]]
    removed = await api.ok("DELETE", "/v1/voices/alto", role="product")
    assert removed["removed_at"] is not None
    assert removed == await api.ok("GET", "/v1/voices/alto")
    unknown = await api.ask("GET", "/v1/voices/nobody")
    assert (404, "unknown_voice") == (unknown.status_code, unknown.json()["code"])


async def test_a_bound_key_lists_the_voices_that_its_accounts_may_name(api: Api, tmp_path: Path) -> None:
    """By plan, by account, or for all; nothing of whose they are, and none that was removed."""
    await api.account("ada/band")
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, sung(pitch_curve([220.0, 220.0], 1.0, 24_000), 24_000), 24_000)
    artifact = (await api.services.client.put("ada", clip, "test")).artifact_id
    for name, plans, accounts in (
        ("all", None, None),
        ("band", None, ("ada/band",)),
        ("gone", None, None),
        ("paying", ("starter",), None),
    ):
        voice = NewVoice(name, "ada", artifact, "CC0", "us", {}, plans, accounts)
        await api.services.voices.add(voice, "test")
    await api.services.voices.remove("gone", "test")
    bound = await api.key("pipeline", "ada")

    async def listed(account: str) -> list[str]:
        return [one["name"] for one in (await api.ok("GET", f"/v1/voices?account={account}", key=bound))["voices"]]

    assert ["all"] == await listed("ada")
    assert ["all", "band"] == await listed("ada/band")
    await api.ok("POST", "/v1/accounts/ada/subscription", {"plan": "starter"})
    seen = (await api.ok("GET", "/v1/voices?account=ada", key=bound))["voices"]
    assert [{"name": name, "licence": "CC0", "statistics": {}} for name in ("all", "paying")] == seen
    refused = await api.ask("GET", "/v1/voices", key=bound)
    assert (422, "account") == (refused.status_code, refused.json()["field"])
    assert 404 == (await api.ask("GET", "/v1/voices?account=eve", key=bound)).status_code
    assert 403 == (await api.ask("GET", "/v1/voices/all", key=bound)).status_code
    assert {"all", "band", "gone", "paying"} == {one["name"] for one in (await api.ok("GET", "/v1/voices"))["voices"]}
