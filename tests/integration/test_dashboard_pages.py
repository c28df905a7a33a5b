"""What the pages show and what their forms do: the same functions as the CLI and the API, told in the audit log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
import uuid_utils.compat as uuids

from tests.integration.api_support import Api, an_api
from tests.integration.books import an_output
from tests.integration.dashboard_support import Visit, board_in, visiting
from tests.servers import Database
from worker.credits.operations import Claim, Claimed, Settle
from worker.credits.outcomes import Ending
from worker.store.errors import OutcomeUnknown
from worker.store.ops import Scope
from worker.web.dashboard.doors import explained

NASTY = '<script>alert("x")</script>&\'"'


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path, billing_url="https://shop.example/buy?pack={pack}&who={account}") as opened:
        await opened.account("ada", 100)
        yield opened


@pytest.fixture
async def visit(api: Api) -> AsyncIterator[Visit]:
    async with visiting(api) as opened:
        yield opened


async def told(api: Api, what: str) -> list[tuple[str, str]]:
    """Who did this to whom, by the audit log, the latest first."""
    entries = (await api.services.log.entries()).entries
    return [(entry.actor, entry.subject) for entry in entries if entry.what == what]


async def actor_of(api: Api, role: str = "admin") -> str:
    return f"key:{(await api.key(role))[:12]}"


async def a_song(api: Api) -> dict[str, Any]:
    """A job that has succeeded."""
    job: dict[str, Any] = await api.submit()
    operations, job_id, token = api.services.client.operations, UUID(job["id"]), uuids.uuid7()
    claimed = await operations.do(Claim("ada", job_id, token, "w1", 30))
    assert isinstance(claimed, Claimed)
    await operations.do(
        Settle("ada", job_id, token, Ending.SUCCEEDED, measured=5, outputs=[an_output()], claimed=claimed)
    )
    return job


async def test_a_job_is_shown_with_its_quote_and_why_it_waits(api: Api, visit: Visit) -> None:
    """The page has the receipt's lines and says in words what the job waits for."""
    job = await api.submit(metadata={"take": "7"})
    shown = await visit.page(f"/jobs/{job['id']}")
    for expected in ("8 credits by book", "output 1 seconds_out", "no living worker serves its queue", "take"):
        assert expected in shown
    assert job["id"][-12:] in await visit.page("/jobs?account=ada&state=queued")
    assert job["id"][-12:] in await visit.page("/jobs?account=ada&metadata=take%3D7")
    assert job["id"][-12:] not in await visit.page("/jobs?account=ada&metadata=take%3D8")
    assert str(UUID(job["id"])) in await visit.page(f"/jobs?find={job['id']}")


async def test_what_customers_wrote_is_shown_as_text(api: Api, visit: Visit) -> None:
    """A prompt or metadata that looks like markup is no markup."""
    job = await api.submit(params={"prompt": NASTY, "seconds": 20}, metadata={NASTY: NASTY})
    found = await visit.http.get(f"/jobs/{job['id']}")
    assert "<script>alert" not in found.text
    assert "&lt;script&gt;alert" in found.text


async def test_a_job_that_has_ended_is_not_said_to_be_cancelled(api: Api, visit: Visit) -> None:
    """Somebody whose form stood open for long is told what became of the job, and that nothing was done."""
    job = await api.submit()
    await api.services.client.cancel("ada", UUID(job["id"]), "test")
    said = await visit.send(f"/do/jobs/cancel/{job['id']}", reason="typo", back=f"/jobs/{job['id']}")
    assert '<p class="notice bad" role="alert">Nothing was cancelled: it had ended before, cancelled.</p>' in said.text
    assert [] == await told(api, "jobs.cancel")


async def test_a_job_is_cancelled_and_tried_again(api: Api, visit: Visit) -> None:
    """With a reason; the log names the key that did it."""
    job = await api.submit()
    said = await visit.send(f"/do/jobs/cancel/{job['id']}", reason="typo", back=f"/jobs/{job['id']}")
    assert "It is cancelled" in said.text
    assert "cancelled" == (await api.services.reads.job(UUID(job["id"]))).state
    assert [(await actor_of(api), job["id"])] == await told(api, "jobs.cancel")
    again = await visit.send(f"/do/jobs/retry/{job['id']}", reason="after all")
    assert "This is the new job" in again.text
    assert "tried again before" in (await visit.send(f"/do/jobs/retry/{job['id']}", reason="x")).text
    assert 2 == len((await api.services.reads.jobs("ada")).jobs)
    assert [(await actor_of(api), job["id"])] == await told(api, "jobs.retry")
    (entry,) = (await api.services.log.entries(subject=job["id"], actor=await actor_of(api), limit=1)).entries
    assert "after all" == (entry.after or {})["reason"]


async def test_a_form_that_is_turned_down_says_why_on_its_page(api: Api, visit: Visit) -> None:
    """Without a reason nothing is cancelled, and the message stands where the form stood."""
    job = await api.submit()
    said = await visit.send(f"/do/jobs/cancel/{job['id']}", back=f"/jobs/{job['id']}")
    assert "reason: must be given" in said.text
    assert f"/jobs/{job['id']}" == said.url.path
    assert "queued" == (await api.services.reads.job(UUID(job["id"]))).state
    assert "reason: must be given" not in await visit.page(f"/jobs/{job['id']}")  # said once


async def test_a_queue_is_paused_limited_and_resumed(api: Api, visit: Visit) -> None:
    """The overview says so in words; each step stands in the log with who did it."""
    await visit.send("/do/pause/queue/generation", reason="GPU maintenance")
    assert "generation is paused: GPU maintenance" in await visit.page("/")
    await visit.send("/do/limit/queue/generation", running_max="3")
    limits = {control.name: control.running_max for control in await api.services.controls.controls()}
    assert 3 == limits["generation"]
    await visit.send("/do/resume/queue/generation")
    await visit.send("/do/pause/kind/stem_split", reason="model recall")
    states = {(one.scope, one.name): one.paused for one in await api.services.controls.controls()}
    assert {(Scope.QUEUE, "generation"): False, (Scope.KIND, "stem_split"): True} == states
    who = await actor_of(api)
    assert [(who, "generation"), (who, "generation")] == await told(api, "controls.update")
    assert "no queue 'nothing'" in (await visit.send("/do/pause/queue/nothing", reason="x")).text.replace("&#39;", "'")


async def test_credits_come_in_once_and_are_shown_in_their_kinds(api: Api, visit: Visit) -> None:
    """The same reference twice is one purchase; the lot and the journal show it."""
    for _ in range(2):
        said = await visit.send("/do/accounts/topup/ada", pack="small", reference="order-1", back="/accounts/ada")
    assert "as before" in said.text
    assert "be spent before ada subscribes" in said.text
    await visit.send("/do/accounts/grant/ada", credits="1000", reference="g-1", note="sorry")
    balance = await api.services.reads.balance("ada")
    assert (100, 1100) == (balance.topup.available + balance.topup.frozen, balance.grants.available)
    shown = await visit.page("/accounts/ada")
    for expected in ("order-1", "g-1", "grant: sorry", "1,100"):
        assert expected in shown
    refused = await visit.send("/do/accounts/grant/ada", credits="-5", reference="g-2", back="/accounts/ada")
    assert "must be a whole number" in refused.text


async def test_an_amount_is_what_was_typed_or_refused(api: Api, visit: Visit) -> None:
    """A comma is a point to half the world: nobody is given a hundred times what was meant. As the command has it."""
    for typed in ("10,50", "1,5", "1,000", "1_0", "10.50", "1 000", "1e3", "+5", "٣", ""):
        for verb in ("grant", "topup"):
            said = await visit.send(f"/do/accounts/{verb}/ada", credits=typed, reference=verb, back="/accounts/ada")
            assert "credits: must be a whole number from 1 to 1,000,000,000,000, in digits alone" in said.text
    balance = await api.services.reads.balance("ada")
    assert (0, 100) == (balance.topup.available + balance.topup.frozen, balance.grants.available)
    await visit.send("/do/accounts/grant/ada", credits=" 1050 ", reference="grant", back="/accounts/ada")
    assert 1150 == (await api.services.reads.balance("ada")).grants.available


async def test_an_account_has_limits_of_its_own_until_they_are_taken_away(api: Api, visit: Visit) -> None:
    """A number holds for this account alone; an empty field is the plan's again."""
    said = await visit.send("/do/accounts/limit/ada", running_max="2", warn_below="30")
    assert "at most 2 jobs at a time and is warned below 30 credits" in said.text
    limits = await board_in(api).services.limits.limits("ada")
    assert (2, 30) == (limits.own_running_max, limits.own_warn_below)
    await visit.send("/do/accounts/limit/ada", running_max="", warn_below="")
    limits = await board_in(api).services.limits.limits("ada")
    assert (None, None) == (limits.own_running_max, limits.own_warn_below)


async def test_the_account_page_begins_with_the_latest_entries(api: Api, visit: Visit) -> None:
    """More than a page of them: the last one is there, and a way to the first."""
    await api.account("long", 1)
    for n in range(60):
        await api.services.accounts.grant("long", 1000 + n, f"g{n}", "kim")
    page = await visit.page("/accounts/long")
    assert "journal-title" in page
    journal = page.partition('id="journal-title"')[2]
    assert "1,059" in journal
    assert "1,000" not in journal.partition("</table>")[0]
    assert "from the beginning" in journal
    assert "1,000" in (await visit.page("/accounts/long?after=0")).partition('id="journal-title"')[2]


async def test_an_account_with_slashes_has_its_page_and_its_actions(api: Api, visit: Visit) -> None:
    """Ids are the caller's own: a path in them leads nowhere else."""
    await api.account("acme/eu/7", 10)
    assert "acme/eu/7" in await visit.page("/accounts?find=acme/")
    waits = await api.submit("acme/eu/7")
    await visit.send(f"/do/accounts/pause/{quote('acme/eu/7')}", reason="fraud?")
    assert "paused" in await visit.page("/accounts/acme/eu/7")
    for page in ("/", "/accounts/acme/eu/7", f"/jobs/{waits['id']}"):
        told = await visit.page(page)
        assert "fraud?" in told, page
        assert await actor_of(api) in told, page
    async with visiting(api, "product") as other:  # no account is shown to whoever may not look at accounts
        assert "acme/eu/7" not in await other.page("/")
    assert (await board_in(api).lists.account("acme/eu/7")).paused
    await visit.send(f"/do/accounts/resume/{quote('acme/eu/7')}")
    assert not (await board_in(api).lists.account("acme/eu/7")).paused


async def test_accounts_are_found_by_how_their_id_begins(api: Api, visit: Visit) -> None:
    """A page at a time, in order, none twice and none left out."""
    for number in range(120):
        await api.account(f"label-{number:03}")
    lists = board_in(api).lists
    found, after = [], None
    while True:
        page = await lists.accounts("label-", 50, after)
        found += [line.account for line in page.accounts]
        after = page.next
        if after is None:
            break
    assert [f"label-{number:03}" for number in range(120)] == found
    shown = await visit.page("/accounts?find=label-11")
    assert "label-119" in shown
    assert "label-109" not in shown


async def test_the_customer_sees_one_account_and_no_staff_page(api: Api) -> None:
    """By a token in the address or by signing in with it: their credits, their receipts, nobody else's."""
    await api.account("eve", 50)
    mine, others = await api.submit("ada"), await api.submit("eve")
    token = await api.token("ada")
    async with visiting(api, None) as visit:
        shown = await visit.page(f"/credits?token={token}")
        assert "100" in shown
        assert "https://shop.example/buy?pack=small&who=ada" in shown
        assert "Accounts" not in shown
        assert "Quote" in await visit.page(f"/credits/jobs/{mine['id']}?token={token}")
        await visit.page(f"/credits/jobs/{others['id']}?token={token}", 404)
        assert "Sign in" in await visit.page(f"/credits?token={token[:-2]}xx")
        assert "Sign in" in await visit.page("/accounts/ada")
    async with visiting(api, key=token) as visit:
        assert "Your credits" in await visit.page("/accounts/eve")  # wherever they go, it is their own page
        sent = await visit.http.post("/do/accounts/grant/ada", data={"form_token": "x"})
        assert 403 == sent.status_code


async def test_the_customers_page_may_be_framed_by_named_sites_only(database: Database, tmp_path: Path) -> None:
    """`FERMATA_EMBED_ORIGINS` says which; the staff's pages by none."""
    async with an_api(database, tmp_path, embed_origins="https://product.example") as api:
        await api.account("ada")
        token = await api.token("ada")
        async with visiting(api, None) as visit:
            framed = await visit.http.get(f"/credits?token={token}")
            assert "frame-ancestors https://product.example" in framed.headers["content-security-policy"]
            assert "no-referrer" == framed.headers["referrer-policy"]
            door = await visit.http.get("/sign-in")
            assert "frame-ancestors 'none'" in door.headers["content-security-policy"]


async def test_an_audit_is_run_and_its_verdict_kept(api: Api, visit: Visit) -> None:
    """The last verdict stands on the page; drift is named by its rule."""
    assert "The books are exact" in (await visit.send("/do/audit")).text
    async with api.database.connection(as_owner=True) as connection:
        await connection.execute(
            "UPDATE lots SET available = available - 5, spent = spent + 5 WHERE account_id = 'ada'"
        )
    await visit.send("/do/audit")
    shown = await visit.page("/audit")
    assert "violations" in shown
    assert "bucket is fold" in shown


async def test_a_price_draft_is_checked_changed_and_applied(api: Api, visit: Visit) -> None:
    """Wrong drafts keep what was typed; a right one shows what it changes; applied it is a new book by this key."""
    document = (await api.services.prices.shown()).document
    wrong = await visit.send("/do/prices/draft", verb="apply", document=document + "\n[nothing]\n", note="x")
    assert 400 == wrong.status_code
    assert "Not applied" in wrong.text
    assert "[nothing]" in wrong.text
    dearer = document.replace("multiplier = 2.5", "multiplier = 2.6")
    checked = await visit.send("/do/prices/draft", verb="check", document=dearer)
    assert "2.6" in checked.text
    assert 1 == (await api.services.prices.shown()).book
    await visit.send("/do/prices/draft", verb="apply", document=dearer, note="studio costs more")
    book = await api.services.prices.shown()
    assert (2, await actor_of(api)) == (book.book, book.author)
    await visit.send("/do/prices/revert", book="1", note="too dear")
    assert document == (await api.services.prices.shown()).document


async def test_the_form_of_numbers_writes_the_document(api: Api, visit: Visit) -> None:
    """A number typed in the form stands in the document, which is shown with what it changes."""
    document = (await api.services.prices.shown()).document
    fields: dict[str, Any] = {"number:generation/output/base": "3.9"}
    shown = await visit.send("/do/prices/draft", verb="numbers", document=document, **fields)
    assert "base = 3.9" in shown.text
    assert "It can be applied" in shown.text


def fields_of(page: str) -> dict[str, Any]:
    """The form of a draft as a browser would send it again, its buttons aside."""
    form = page.split('action="/do/prices/draft"')[1].split("</form>")[0]
    fields = dict(re.findall(r'<input[^>]* ?name="([^"]+)"[^>]* value="([^"]*)"', form))
    document = re.search(r'<textarea class="document"[^>]*>(.*?)</textarea>', form, re.DOTALL)
    assert document is not None
    return {**{name: unescape(value) for name, value in fields.items()}, "document": unescape(document[1])}


async def draft_of(visit: Visit) -> dict[str, Any]:
    """A draft as the page begins it."""
    return fields_of((await visit.http.get("/prices")).text)


async def test_a_refused_draft_keeps_the_time_and_the_reason(api: Api, visit: Visit) -> None:
    """What was meant for June does not go live today because its first try was refused."""
    await a_song(api)  # something to rehearse on
    dear = (await api.services.prices.shown()).document.replace("\nbase = 4\n", "\nbase = 40\n")
    typed: dict[str, Any] = {"document": dear, "note": "summer", "effective_at": "2099-06-01T00:00", "force": ""}
    kept = {"note": "summer", "effective_at": "2099-06-01T00:00:00", "document": dear}
    refused = await visit.send("/do/prices/draft", verb="apply", **typed)
    assert kept.items() <= fields_of(refused.text).items()
    assert "fermata prices rehearse" in refused.text
    rehearsed = await visit.send("/do/prices/draft", verb="rehearse", **fields_of(refused.text))
    assert kept.items() <= fields_of(rehearsed.text).items()
    applied = await visit.send("/do/prices/draft", verb="apply", **fields_of(rehearsed.text))
    assert "Book 2 is in force from 2099-06-01 00:00:00 UTC" in applied.text
    assert 1 == (await api.services.prices.shown()).book
    wrong = await visit.send(
        "/do/prices/draft", verb="check", **{**typed, "document": "[x", "force": "the board said so"}
    )
    assert {"force": "the board said so", "document": "[x"}.items() <= fields_of(wrong.text).items()


@pytest.mark.parametrize(
    ("typed", "said", "kept"),
    [
        ("2099-06-01T00:00+02:00", "It can be applied.", "2099-05-31T22:00:00"),
        ("2099-06-01", "It can be applied.", "2099-06-01T00:00:00"),
        ("next June", "effective_at: must be a time like 2026-12-01T00:00, in UTC", "next June"),
        ("0001-01-01T00:00+14:00", "effective_at: must be between the years 2000 and 2200", "0001-01-01T00:00+14:00"),
        ("2020-06-01T00:00", "effective_at: must not be in the past", "2020-06-01T00:00:00"),
    ],
)
async def test_a_time_is_heeded_with_its_zone_or_refused(
    api: Api, visit: Visit, typed: str, said: str, kept: str
) -> None:
    """Shown again in UTC, as the field says; what is no time stays in a field that can hold it."""
    draft = {**await draft_of(visit), "note": "x", "effective_at": typed}
    draft["document"] = draft["document"].replace("multiplier = 2.5", "multiplier = 2.6")
    checked = (await visit.send("/do/prices/draft", verb="check", **draft)).text
    assert said in checked
    assert kept == fields_of(checked)["effective_at"]
    assert ('type="datetime-local"' in checked) == kept.startswith("20")
    done = await visit.send("/do/prices/draft", verb="apply", **draft)
    history = await api.services.prices.history()
    if said.startswith("It can"):
        assert kept == history[0].effective_at.replace(tzinfo=None).isoformat()
    else:
        assert said in done.text
        assert 1 == len(history)


async def test_a_draft_that_somebody_overtook_is_not_applied(api: Api, visit: Visit) -> None:
    """Two begin with book 1: who comes second is told whose book stands there now, and undoes nothing."""
    mine, theirs = await draft_of(visit), await draft_of(visit)
    assert ("1", "1") == (mine["on"], mine["in_force"])
    theirs["document"] = theirs["document"].replace("\nrate = 5\n", "\nrate = 6\n")
    await visit.send("/do/prices/draft", verb="apply", **{**theirs, "note": "conversions up"})
    assert 2 == (await api.services.prices.shown()).book
    mine["document"] = mine["document"].replace("multiplier = 2.5", "multiplier = 2.6")
    for verb in ("check", "apply", "apply"):
        refused = await visit.send("/do/prices/draft", verb=verb, **{**mine, "note": "studio up"})
        assert 409 == refused.status_code
        assert f"on: book 2 by {await actor_of(api)} (conversions up) is in force since this draft" in refused.text
        assert "multiplier = 2.6" in fields_of(refused.text)["document"]
        mine = fields_of(refused.text)
    assert 2 == (await api.services.prices.shown()).book
    anew = await draft_of(visit)
    anew["document"] = anew["document"].replace("multiplier = 2.5", "multiplier = 2.6")
    await visit.send("/do/prices/draft", verb="apply", **{**anew, "note": "studio up"})
    both = (await api.services.prices.shown()).document
    assert "\nrate = 6\n" in both
    assert "multiplier = 2.6" in both


async def test_a_planned_book_that_comes_into_force_overtakes_a_draft(api: Api, visit: Visit) -> None:
    """Planned before the draft began it stands in its way no sooner than the day it counts."""
    at = datetime.now(UTC) + timedelta(minutes=10)
    soon = {**await draft_of(visit), "note": "soon", "effective_at": at.isoformat()}
    soon["document"] = soon["document"].replace("\nrate = 5\n", "\nrate = 6\n")
    await visit.send("/do/prices/draft", verb="apply", **soon)
    draft = {**await draft_of(visit), "note": "studio up"}
    assert ("2", "1") == (draft["on"], draft["in_force"])
    draft["document"] = draft["document"].replace("multiplier = 2.5", "multiplier = 2.6")
    assert "It can be applied." in (await visit.send("/do/prices/draft", verb="check", **draft)).text
    await api.database.advance(timedelta(minutes=15))
    late = await visit.send("/do/prices/draft", verb="apply", **draft)
    assert (409, 2) == (late.status_code, (await api.services.prices.shown()).book)


async def test_numbers_typed_in_the_form_are_checked_and_applied(api: Api, visit: Visit) -> None:
    """Whichever button follows: they are written into the document first. What was typed there alone stays."""
    draft = {**await draft_of(visit), "note": "up"}
    draft["number:vocal_conversion/output/seconds_in/rate"] = "6"
    draft["document"] = draft["document"].replace("multiplier = 2.5", "multiplier = 2.6")
    checked = (await visit.send("/do/prices/draft", verb="check", **draft)).text
    assert "It can be applied." in checked
    assert "At most: vocal_conversion costs +20 %" in checked
    assert "\nrate = 6\n" in fields_of(checked)["document"]
    await visit.send("/do/prices/draft", verb="apply", **draft)
    document = (await api.services.prices.shown()).document
    assert "\nrate = 6\n" in document
    assert "multiplier = 2.6" in document


@pytest.mark.parametrize("typed", ["4,5", "1e3", "\uff14", "05", ""])
async def test_a_number_that_is_none_stays_in_its_field(api: Api, visit: Visit, typed: str) -> None:
    """With the reason, whichever button was pressed; the other fields keep theirs too, and nothing is written."""
    draft = {**await draft_of(visit), "number:generation/output/base": typed, "note": "up"}
    draft["number:vocal_conversion/output/seconds_in/rate"] = "6"
    for verb in ("numbers", "check", "rehearse", "apply"):
        refused = await visit.send("/do/prices/draft", verb=verb, **draft)
        assert 400 == refused.status_code
        assert "base: must be a number like 4 or 0.5" in refused.text
        assert draft == fields_of(refused.text)
    assert 1 == (await api.services.prices.shown()).book
    mended = {**fields_of(refused.text), "number:generation/output/base": "3.9"}
    assert "It can be applied." in (await visit.send("/do/prices/draft", verb="check", **mended)).text


async def test_a_number_typed_beside_a_broken_document_is_not_lost(api: Api, visit: Visit) -> None:
    """Its field stays though the document has none, and it is written once the document is whole again."""
    draft = {**await draft_of(visit), "number:generation/output/base": "3.9", "note": "down"}
    whole = draft["document"]
    broken = (await visit.send("/do/prices/draft", verb="check", **{**draft, "document": f"{whole}\n[broken"})).text
    assert "is no TOML" in broken
    assert "3.9" == fields_of(broken)["number:generation/output/base"]
    mended = await visit.send("/do/prices/draft", verb="apply", **{**fields_of(broken), "document": whole})
    assert "Book 2 is in force from" in mended.text
    assert "\nbase = 3.9\n" in (await api.services.prices.shown()).document


async def test_a_check_says_what_apply_would(api: Api, visit: Visit) -> None:
    """A change that wants a rehearsal is refused by both, in the same words; after it both let it in."""
    await a_song(api)
    draft = {**await draft_of(visit), "note": "up"}
    draft["document"] = draft["document"].replace("\nbase = 4\n", "\nbase = 1000\n")
    checked = (await visit.send("/do/prices/draft", verb="check", **draft)).text
    refused = (await visit.send("/do/prices/draft", verb="apply", **draft)).text
    (why,) = re.findall(r"<li>(rehearsal: .*?)</li>", refused)
    assert [why] == re.findall(r"<li>(rehearsal: .*?)</li>", checked)
    assert "can&#39;t be applied as it is" in checked.replace("'", "&#39;")
    for page in (checked, refused):  # what it changes is told all the same
        assert "At most: generation costs +" in page
    assert "It can be applied." in (await visit.send("/do/prices/draft", verb="rehearse", **draft)).text
    unsaid = (await visit.send("/do/prices/draft", verb="check", **{**draft, "note": ""})).text
    assert "It can be applied, with a note that says why." in unsaid
    assert 1 == len(await api.services.prices.history())
    assert "Book 2 is in force from" in (await visit.send("/do/prices/draft", verb="apply", **draft)).text


async def test_a_number_in_another_base_takes_no_page_down(api: Api, visit: Visit) -> None:
    """It is TOML, and a book may say so: it is checked, applied and shown like any other."""
    document = (await api.services.prices.shown()).document.replace("\nrate = 5\n", "\nrate = 0x5\n")
    await visit.send("/do/prices/draft", verb="apply", document=document, note="in hex")
    assert 2 == (await api.services.prices.shown()).book
    assert "rate = 0x5" in await visit.page("/prices")


async def test_the_calculator_prices_by_the_book_that_is_shown(visit: Visit) -> None:
    """Line by line; what can't be asked is said."""
    found = await visit.page("/prices?kind=generation&params=prompt%3Dx%0Aseconds_max%3D60")
    assert "At most, by the book shown" in found
    assert "16" in found
    assert "prompt" in await visit.page("/prices?kind=generation&params=seconds_max%3D60")
    studio = await visit.page("/prices?kind=stem_split&seconds=240&params=")
    assert "At most, by the book shown" in studio


async def test_many_jobs_are_looked_at_before_anything_happens_to_them(api: Api, visit: Visit) -> None:
    """The preview changes nothing; the confirmation cancels what matches, and only that, and stands in the log."""
    await api.account("eve", 100)
    mine = [await api.submit("ada") for _ in range(3)]
    other = await api.submit("eve")
    fields: dict[str, Any] = {"account": "ada", "kind": "generation", "state": "queued", "limit": "1000"}
    looked = await visit.send("/do/jobs/preview", verb="cancel", **fields)
    assert "3 jobs</b> match" in looked.text
    assert 4 == len((await api.services.reads.jobs(state="queued")).jobs)
    refused = await visit.send("/do/jobs/many", verb="cancel", **fields)
    assert "reason: must be given" in refused.text
    done = await visit.send("/do/jobs/many", verb="cancel", reason="wrong model", **fields)
    assert "3 of 3 jobs" in done.text
    assert [UUID(other["id"])] == [job.id for job in (await api.services.reads.jobs(state="queued")).jobs]
    assert {UUID(job["id"]) for job in mine} == {
        job.id for job in (await api.services.reads.jobs(state="cancelled")).jobs
    }
    assert [(await actor_of(api), "ada")] == await told(api, "jobs.cancel_many")


async def test_many_jobs_are_tried_again_once(api: Api, visit: Visit) -> None:
    """By why they ended; a second click makes no further jobs."""
    for _ in range(2):
        job = await api.submit()
        await api.services.client.cancel("ada", UUID(job["id"]), "test")
    fields: dict[str, Any] = {"account": "ada", "ended_for": "cancelled", "limit": "10"}
    assert "2 jobs</b> match" in (await visit.send("/do/jobs/preview", verb="retry", **fields)).text
    assert "2 of 2 jobs" in (await visit.send("/do/jobs/many", verb="retry", **fields)).text
    assert "0 of 2 jobs" in (await visit.send("/do/jobs/many", verb="retry", **fields)).text
    assert 4 == len((await api.services.reads.jobs("ada")).jobs)


async def test_many_jobs_are_narrowed_and_compensated_on_the_page(api: Api, visit: Visit) -> None:
    """The filter's times and metadata go along to the preview and the confirmation; a reference is asked for."""
    await api.submit(metadata={"album": "blue"})
    await api.submit(metadata={"album": "red"})
    found = await visit.page("/jobs?account=ada&metadata=album%3Dblue&from=2020-01-01T00%3A00")
    assert 'name="metadata" value="album=blue"' in found
    fields: dict[str, Any] = {"account": "ada", "metadata": "album=blue", "from": "2020-01-01T00:00", "limit": "10"}
    looked = (await visit.send("/do/jobs/preview", verb="cancel", **fields)).text
    assert "1 jobs</b> match" in looked
    assert 'name="from" value="2020-01-01T00:00"' in looked
    assert "1 of 1 jobs" in (await visit.send("/do/jobs/many", verb="cancel", reason="wrong", **fields)).text
    given = (await visit.send("/do/jobs/preview", verb="compensate", percent="50", reference="monday", **fields)).text
    assert "They would be given 0 credits in all" in given
    assert (
        "reference: must be given"
        in (await visit.send("/do/jobs/preview", verb="compensate", percent="50", **fields)).text
    )


async def test_what_lies_beyond_the_limit_follows_in_portions(api: Api, visit: Visit) -> None:
    """The preview counts all of them; each portion offers the next one, until none is left."""
    for _ in range(5):
        await api.submit()
    looked = (await visit.send("/do/jobs/preview", verb="cancel", account="ada", limit="2")).text
    assert "2 jobs</b> match, and 3 more beyond the limit" in looked
    page, told = looked, []
    while fields := dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)):
        page = (await visit.send("/do/jobs/many", **{"reason": "wrong model", **fields})).text
        told += re.findall(r"\d of \d jobs cancelled", page)
        if "Go on with the next 2" not in page:
            break
    assert ["2 of 2 jobs cancelled", "2 of 2 jobs cancelled", "1 of 1 jobs cancelled"] == told
    assert 5 == len((await api.services.reads.jobs(state="cancelled")).jobs)
    assert "0 jobs</b> match" in (await visit.send("/do/jobs/preview", verb="cancel", account="ada", limit="2")).text


async def test_a_confirmation_reaches_no_job_that_the_look_could_not_show(api: Api, visit: Visit) -> None:
    """Whoever confirms has seen all that it can touch: what is submitted meanwhile is left alone."""
    await api.submit()
    looked = (await visit.send("/do/jobs/preview", verb="cancel", account="ada", limit="10")).text
    later = await api.submit()
    fields: dict[str, Any] = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', looked))
    done = await visit.send("/do/jobs/many", **fields, reason="wrong")
    assert "1 of 1 jobs" in done.text
    assert [UUID(later["id"])] == [job.id for job in (await api.services.reads.jobs(state="queued")).jobs]
    # A time of another zone would mean other jobs than it says.
    zoned = await visit.send("/do/jobs/preview", verb="cancel", until="2199-01-01T00:00+05:00", limit="10")
    assert "until: must be a time like 2026-12-01T00:00, in UTC and without a zone" in zoned.text


@pytest.mark.parametrize(("role", "offered"), [("ops", True), ("viewer", False)])
async def test_one_job_is_compensated_by_whom_many_are(api: Api, role: str, offered: bool) -> None:
    """The page of a job goes by the same permission as the form for many and the API."""
    job = await a_song(api)
    before = (await api.services.reads.balance("ada")).spendable
    async with visiting(api, role) as visit:
        assert offered == (f"/do/jobs/compensate/{job['id']}" in await visit.page(f"/jobs/{job['id']}"))
        fields: dict[str, Any] = {"credits": "2", "reason": "noise", "reference": "r-1", "back": f"/jobs/{job['id']}"}
        said = [(await visit.send(f"/do/jobs/compensate/{job['id']}", **fields)).text for _ in range(2)]
    assert [offered] * 2 == ["2 credits given." in said[0], "2 credits given, as before." in said[1]]
    assert before + 2 * offered == (await api.services.reads.balance("ada")).spendable


async def test_a_compensation_whose_answer_was_lost_is_not_given_twice(api: Api, visit: Visit) -> None:
    """The page loaded anew has the same reference until credits were given; the error sends people there to look."""
    job = str((await a_song(api))["id"])
    before = (await api.services.reads.balance("ada")).spendable
    forms = [await _reference(visit, job) for _ in range(2)]
    assert forms[0] == forms[1]
    for reference in forms:
        await visit.send(f"/do/jobs/compensate/{job}", credits="2", reason="noise", reference=reference, back="/")
    assert before + 2 == (await api.services.reads.balance("ada")).spendable
    assert forms[0] != await _reference(visit, job)  # more may be given
    status, title, what = explained(OutcomeUnknown("the answer of a COMMIT was lost"))
    assert (503, "It may have been done, or not") == (status, title)
    assert "look before you do it again" in what


async def _reference(visit: Visit, job: str) -> str:
    """That of the form which compensates it."""
    found = re.search(r'name="reference" value="([^"]+)"', await visit.page(f"/jobs/{job}"))
    assert found
    return found[1]


async def test_what_does_not_run_is_not_ended_by_force(api: Api, visit: Visit) -> None:
    """A queued job is cancelled instead, and a worker that nobody knows is not drained: both are said."""
    job = await api.submit()
    forced = await visit.send(f"/do/jobs/force-end/{job['id']}", reason="stuck", back=f"/jobs/{job['id']}")
    assert "cancel it instead" in forced.text
    drained = await visit.send("/do/workers/drain/nobody", back="/workers")
    assert "is alive" in drained.text


async def test_an_endpoint_is_made_tried_and_deleted(api: Api, visit: Visit) -> None:
    """Its secret is shown once; what may not be called is refused; a test that fails says how."""
    refused = await visit.send("/do/webhooks/create", url="http://127.0.0.1/hook", back="/events")
    assert "url:" in refused.text
    made = await visit.send("/do/webhooks/create", url="https://hooks.example.com/x", account="ada", events="ended")
    (hook,) = await board_in(api).webhooks.webhooks.all()
    assert ("ada", ["ended"]) == (hook.account, list(hook.events))
    secret = made.text.partition("whsec_")[2][:20]
    assert secret
    shown = await visit.page(f"/webhooks/{hook.webhook}")
    assert secret not in shown
    await api.submit()
    assert "hooks.example.com" in await visit.page("/events")
    assert "No such endpoint" in await visit.page("/webhooks/nothing", 404)
    await visit.send(f"/do/webhooks/delete/{hook.webhook}")
    assert () == await board_in(api).webhooks.webhooks.all()


async def test_events_of_an_account_are_listed(api: Api, visit: Visit) -> None:
    """In the order in which they happened; without an account, what ended last of all."""
    job = await api.submit()
    await api.services.client.cancel("ada", UUID(job["id"]), "test")
    assert "ended" in await visit.page("/events?account=ada")
    assert job["id"][-12:] in await visit.page("/events")
    await visit.page("/events?account=nobody", 404)
