"""Who gets into the dashboard, what they see there, and what no other site can make them do."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.api_support import Api, an_api
from tests.integration.dashboard_support import visiting
from tests.servers import Database

PAGES = ("/", "/jobs", "/accounts", "/workers", "/prices", "/audit", "/queues/generation", "/accounts/ada")


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as opened:
        await opened.account("ada", 100)
        yield opened


async def test_a_key_opens_a_session_that_scripts_and_other_sites_cannot_use(api: Api) -> None:
    """The cookie is HttpOnly and SameSite=Strict, holds no key, and the database keeps only its hash."""
    async with visiting(api, None) as visit:
        key = await api.key("viewer")
        entered = await visit.send("/sign-in", key=key, next="/jobs", follow=False)
        cookie = entered.headers["set-cookie"]
        assert "/jobs" == entered.headers["location"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        secret = cookie.partition("=")[2].partition(";")[0]
        assert secret not in key
        assert key not in cookie
        async with api.database.connection() as connection:
            rows = await connection.fetch("SELECT CAST(s AS text) AS row FROM sessions AS s")
        assert 1 == len(rows)
        assert secret not in rows[0]["row"]


async def test_the_cookie_travels_over_tls_only_in_production(api: Api) -> None:
    """Over HTTPS the cookie is Secure."""
    async with visiting(api, None) as visit:
        entered = await visit.http.post("https://fermata/sign-in", data={"key": await api.key(), "next": "/"})
        assert "Secure" in entered.headers["set-cookie"]


@pytest.mark.parametrize("given", ["", "fmt_wrong", "x" * 5000])
async def test_what_is_no_key_opens_nothing(api: Api, given: str) -> None:
    """A wrong key is told as such, and sets no cookie."""
    async with visiting(api, None) as visit:
        turned_away = await visit.send("/sign-in", key=given, next="/")
        assert 403 == turned_away.status_code
        assert "set-cookie" not in turned_away.headers
        assert "opens nothing" in turned_away.text


async def test_a_bound_key_is_turned_away(api: Api) -> None:
    """The dashboard shows every account, so a key of some accounts must not open it."""
    async with visiting(api, None) as visit:
        bound = await api.key("pipeline", "acme")
        turned_away = await visit.send("/sign-in", key=bound, next="/")
        assert 403 == turned_away.status_code
        assert "bound to some accounts" in turned_away.text


@pytest.mark.parametrize("path", [*PAGES, "/live/overview", "/plots/jobs"])
async def test_nobody_sees_a_page_without_a_session(api: Api, path: str) -> None:
    """Whoever is not signed in is brought to the door, and afterwards to where they wanted to go."""
    async with visiting(api, None) as visit:
        found = await visit.http.get(path)
        assert found.status_code in (303, 401)
        assert "ada" not in found.text
        if found.status_code == 303:
            assert found.headers["location"].startswith("/sign-in")


async def test_the_door_leads_nowhere_else(api: Api) -> None:
    """`next` is a path of ours or nothing: a link can't send whoever signs in to another site."""
    async with visiting(api, None) as visit:
        for wanted in ("https://evil.example", "//evil.example", "/\\evil.example"):
            entered = await visit.send("/sign-in", key=await api.key(), next=wanted, follow=False)
            assert "/" == entered.headers["location"]


async def test_a_revoked_key_ends_its_sessions_at_once(api: Api) -> None:
    """The next page after the revocation is the door."""
    made = await api.services.keys.find((await api.key("viewer"))[:12])
    async with visiting(api, "viewer") as visit:
        await visit.page("/jobs")
        await api.services.keys.revoke(made.id, "test")
        assert "Sign in" in await visit.page("/jobs")


async def test_signing_out_ends_the_session(api: Api) -> None:
    """The cookie's secret opens nothing afterwards, also where somebody kept it."""
    async with visiting(api, "viewer") as visit:
        kept = dict(visit.http.cookies)
        await visit.send("/sign-out")
        visit.http.cookies.update(kept)
        assert "Sign in" in await visit.page("/jobs")


@pytest.mark.parametrize(
    "broken",
    [
        {"fields": {"form_token": ""}},
        {"fields": {"form_token": "0" * 64}},
        {"headers": {"sec-fetch-site": "cross-site"}},
        {"headers": {"origin": "https://evil.example"}},
    ],
    ids=["no token", "wrong token", "cross-site", "other origin"],
)
async def test_another_site_cannot_make_a_visitor_act(api: Api, broken: dict[str, dict[str, str]]) -> None:
    """A form without this session's token, or sent by another site, changes nothing."""
    async with visiting(api) as visit:
        fields = {"form_token": visit.form_token, "reason": "x", "back": "/"} | broken.get("fields", {})
        sent = await visit.http.post("/do/accounts/pause/ada", data=fields, headers=broken.get("headers", {}))
        assert 403 == sent.status_code
        async with api.database.connection() as connection:
            assert not await connection.fetchval("SELECT paused FROM accounts WHERE account_id = 'ada'")


@pytest.mark.parametrize(
    ("role", "seen", "hidden"),
    [
        ("viewer", ["Overview", "Jobs", "Accounts", "Workers", "Prices"], ["Audit"]),
        ("ops", ["Overview", "Jobs", "Accounts", "Workers", "Audit"], []),
        ("billing", ["Accounts", "Prices"], ["Overview", "Jobs", "Workers", "Audit"]),
        ("product", ["Overview", "Prices"], ["Jobs", "Accounts", "Audit"]),
    ],
)
async def test_what_a_role_cannot_see_is_not_offered(api: Api, role: str, seen: list[str], hidden: list[str]) -> None:
    """The navigation has the pages of the role, and a page beyond it is refused when it is asked for."""
    paths = {"Overview": "/", "Jobs": "/jobs", "Accounts": "/accounts", "Workers": "/workers", "Audit": "/audit"}
    async with visiting(api, role) as visit:
        offered = re.findall(
            r'<a href="/[a-z]*"(?: aria-current="page")?>([A-Z][a-z]+)</a>', await visit.page("/prices")
        )
        assert set(seen) <= set(offered)
        assert not set(hidden) & set(offered)
        for name in hidden:
            if name != "Overview":  # the root leads whoever may not see it to what they may
                assert 403 == (await visit.http.get(paths[name])).status_code


@pytest.mark.parametrize(
    ("role", "path"),
    [
        ("viewer", "/do/pause/queue/generation"),
        ("billing", "/do/pause/queue/generation"),
        ("ops", "/do/accounts/topup/ada"),
        ("ops", "/do/prices/draft"),
        ("product", "/do/accounts/grant/ada"),
        ("viewer", "/do/audit"),
    ],
)
async def test_what_a_role_may_not_do_is_refused(api: Api, role: str, path: str) -> None:
    """An action that is not shown is refused all the same when its form is sent."""
    async with visiting(api, role) as visit:
        await visit.page("/prices")
        sent = await visit.send(path, reason="x", reference="r", credits="5", verb="check", document="")
        assert 403 == sent.status_code


async def test_every_page_carries_a_policy_without_inline_code(api: Api) -> None:
    """Scripts and styles come from files of ours only; no page has any inline, and none may be framed."""
    async with visiting(api) as visit:
        for path in PAGES:
            found = await visit.http.get(path)
            policy = found.headers["content-security-policy"]
            assert "script-src 'self';" in policy
            assert "style-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert not re.search(r"<style|style=|<script(?![^>]*\bsrc=)|\son[a-z]+=|javascript:", found.text), path
            assert not re.search(r'(?:src|href|action)="https?:', found.text), path


async def test_unknown_addresses_are_told_by_whom_they_belong_to(api: Api) -> None:
    """People get a page, programs below /v1 a problem document."""
    async with visiting(api) as visit:
        assert "leads nowhere" in await visit.page("/nothing", 404)
        assert "application/problem+json" == (await visit.http.get("/v1/nothing")).headers["content-type"]
        assert "No such account" in await visit.page("/accounts/nobody", 404)
        assert "No such job" in await visit.page("/jobs/nothing", 404)


async def test_a_large_or_foreign_form_is_refused(api: Api) -> None:
    """Only URL-encoded forms of bounded size are read."""
    async with visiting(api) as visit:
        assert 413 == (await visit.send("/do/audit", x="y" * 100_000)).status_code
        sent = await visit.http.post("/do/audit", json={"form_token": visit.form_token})
        assert 400 == sent.status_code


async def test_a_form_with_a_nul_or_a_number_without_end_is_told_so(api: Api) -> None:
    """No page of ours fails by what somebody typed."""
    async with visiting(api, "admin") as visit:
        for path, fields in (
            ("/do/jobs/preview", {"verb": "cancel", "limit": "10", "kind": "\0"}),
            ("/do/pause/queue/generation", {"reason": "\0"}),
            ("/do/accounts/grant/ada", {"credits": "0" * 5000, "reference": "r"}),
        ):
            done = await visit.send(path, follow=False, **fields)
            assert done.status_code in (303, 400), path
            assert done.status_code == 400 or "bad%3A" in done.headers["set-cookie"]


@pytest.mark.parametrize(
    "path", ["/jobs?account=%00", "/jobs?kind=%00", "/accounts/%00", "/accounts?find=%00", "/audit?actor=%00"]
)
async def test_an_address_with_a_nul_leads_nowhere(api: Api, path: str) -> None:
    """PostgreSQL knows no such text: the visitor is told, and no bug of ours is logged."""
    async with visiting(api, "admin") as visit:
        assert "must not contain NUL" in await visit.page(path, 400)
