"""Every route × every role: who is let in stands in this table, and a route without a row fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from config.settings import load
from tests.integration.api_support import Api, an_api
from tests.servers import Database
from worker.credits.outcomes import Ending
from worker.store.api_keys import Role
from worker.web.app import make_app
from worker.webhooks.events import EVENTS

STAFF = "pipeline billing ops product admin viewer"
ALL = f"{STAFF} customer"

#: Method and path -> who may. Whoever may not is answered 403; without a key everybody is answered 401.
WHO: dict[str, str] = {
    "POST /v1/jobs": "pipeline admin",
    "POST /v1/jobs/batch": "pipeline admin",
    "GET /v1/jobs": "pipeline ops admin viewer customer",
    "GET /v1/jobs/{job}": "pipeline ops admin viewer customer",
    "GET /v1/jobs/{job}/events": "pipeline ops admin viewer customer",
    "GET /v1/jobs/{job}/receipt": "pipeline ops admin viewer customer",
    "POST /v1/jobs/{job}/cancel": "pipeline ops admin",
    "POST /v1/jobs/{job}/retry": "pipeline admin",
    "POST /v1/jobs/{job}/compensate": "billing ops admin",
    "POST /v1/jobs/{job}/force-end": "ops admin",
    "POST /v1/jobs/cancel-many": "ops admin",
    "POST /v1/jobs/retry-many": "ops admin",
    "POST /v1/jobs/compensate-many": "billing ops admin",
    "POST /v1/workers/{worker}/drain": "ops admin",
    "POST /v1/kinds/{kind}/pause": "ops admin",
    "POST /v1/kinds/{kind}/resume": "ops admin",
    "POST /v1/quotes": ALL,
    "POST /v1/artifacts": "pipeline admin",
    "GET /v1/artifacts": "pipeline ops admin viewer customer",
    "GET /v1/artifacts/{artifact}": "pipeline ops admin viewer customer",
    "HEAD /v1/artifacts/{artifact}": "pipeline ops admin viewer customer",
    "GET /v1/artifacts/{artifact}/facts": "pipeline ops admin viewer customer",
    "PUT /v1/accounts/{account}": "pipeline billing admin",
    "GET /v1/accounts/{account}/balance": "pipeline billing ops admin viewer customer",
    "GET /v1/accounts/{account}/journal": "pipeline billing ops admin viewer customer",
    "GET /v1/accounts/{account}/events": "pipeline billing ops admin viewer customer",
    "GET /v1/accounts/{account}/limits": "pipeline billing ops admin viewer customer",
    "POST /v1/accounts/{account}/limits": "ops admin",
    "POST /v1/accounts/{account}/topups": "billing admin",
    "POST /v1/accounts/{account}/chargebacks": "billing admin",
    "POST /v1/accounts/{account}/grants": "billing admin",
    "POST /v1/accounts/{account}/subscription": "billing admin",
    "POST /v1/accounts/{account}/subscription/change": "billing admin",
    "POST /v1/accounts/{account}/subscription/cancel": "billing admin",
    "POST /v1/accounts/{account}/subscription/resume": "billing admin",
    "POST /v1/accounts/{account}/subscription/renewed": "billing admin",
    "POST /v1/accounts/{account}/tokens": "pipeline billing admin",
    "POST /v1/accounts/{account}/pause": "ops admin",
    "POST /v1/accounts/{account}/resume": "ops admin",
    # No customer reads what is planned, or what was noted about whom and why.
    "GET /v1/prices": STAFF,
    "GET /v1/prices/history": STAFF,
    "GET /v1/prices/changes": STAFF,
    "GET /v1/plans": ALL,
    "POST /v1/prices": "product admin",
    "POST /v1/prices/rehearsals": "product admin",
    "POST /v1/prices/{book}/revert": "product admin",
    "POST /v1/prices/{book}/withdraw": "product admin",
    "GET /v1/prices/report": "ops product admin viewer",
    "GET /v1/prices/{book}/overcharged": "ops product admin viewer",
    "POST /v1/prices/{book}/overcharged": "billing admin",
    "GET /v1/voices": "pipeline ops product admin viewer",
    "GET /v1/voices/{voice}": "pipeline ops product admin viewer",
    "POST /v1/voices": "product admin",
    "DELETE /v1/voices/{voice}": "product admin",
    "GET /v1/queues": "pipeline ops product admin viewer",
    "GET /v1/workers": "pipeline ops product admin viewer",
    "POST /v1/queues/{queue}/pause": "ops admin",
    "POST /v1/queues/{queue}/resume": "ops admin",
    "POST /v1/queues/{queue}/limit": "ops admin",
    "POST /v1/keys": "admin",
    "GET /v1/keys": "admin",
    "DELETE /v1/keys/{key}": "admin",
    "POST /v1/keys/{key}/rotate": "admin",
    "GET /v1/audit-log": "ops admin",
    "POST /v1/webhooks": "ops admin",
    "GET /v1/webhooks": "ops admin",
    "GET /v1/webhooks/{webhook}": "ops admin",
    "DELETE /v1/webhooks/{webhook}": "ops admin",
    "POST /v1/webhooks/{webhook}/test": "ops admin",
    "POST /v1/webhooks/{webhook}/redeliver": "ops admin",
    "GET /metrics": "pipeline ops product admin viewer",
}

#: These say nothing of anybody.
OPEN = {"GET /livez", "GET /readyz", "GET /v1/openapi.json"}

#: Opened by a signed link and by nothing else: tests/integration/test_api_engines.py.
SIGNED = {"POST /v1/engines/webhooks", "GET /v1/engines/inputs"}

NOBODY = "0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88"
PLACES = {
    "{job}": NOBODY,
    "{artifact}": NOBODY,
    "{key}": NOBODY,
    "{webhook}": NOBODY,
    "{account}": "ada",
    "{queue}": "nothing",
    "{voice}": "nobody",
    "{book}": "7",
    "{worker}": "w-9",
    "{kind}": "nothing",
}


def routes() -> Iterator[str]:
    """Every route of the application."""
    app = make_app(load({}, environment="test"))
    for context in iter_route_contexts(app.routes):
        methods = set(context.methods or ())
        for method in sorted(
            methods - {"HEAD"} if "GET" in methods else methods
        ):  # some GETs answer both by themselves
            yield f"{method} {context.path}"


def test_every_route_has_a_row() -> None:
    """Whoever adds one says who may."""
    assert set(routes()) == set(WHO) | OPEN | SIGNED


def test_the_document_says_which_routes_ask_for_a_key() -> None:
    """Each that has a row, and no other."""
    paths = make_app(load({}, environment="test")).openapi()["paths"]
    secured = {
        f"{method.upper()} {path}"
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation.get("security") == [{"key": []}]
    }
    assert set(WHO) == secured


def test_the_document_describes_every_route_and_shows_a_body_for_each() -> None:
    """What it does, and one way to ask."""
    document = make_app(load({}, environment="test")).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (method, path)
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for ref in [one["$ref"] for one in (body, *body.get("anyOf", ())) if "$ref" in one]:
                assert document["components"]["schemas"][ref.rpartition("/")[2]].get("examples"), (method, path)


def test_the_document_has_each_kinds_fields_and_why_jobs_end() -> None:
    """Whoever writes in another language needs no other page: names, bounds, inputs, endings, events."""
    schemas = make_app(load({}, environment="test")).openapi()["components"]["schemas"]
    semitones = schemas["VocalConversionRequest"]["properties"]["semitones"]
    assert (-24, 24) == (semitones["minimum"], semitones["maximum"])
    for body in ("SubmitBody", "BatchItem", "QuoteBody"):
        fields = schemas[body]["properties"]
        named = {ref["$ref"].rpartition("/")[2] for ref in fields["params"]["anyOf"] if "$ref" in ref}
        assert {"GenerationRequest", "StemSplitRequest", "VocalConversionRequest"} == named
        assert "`generation`, `vocal_conversion`, `stem_split`" in fields["kind"]["description"]
        assert "of `vocal_conversion` `voice`, `reference` (optional)" in fields["inputs"]["description"]
    assert {"quality_gate", "lost_worker"} < set(schemas["Ending"]["enum"]) == set(Ending)
    for shown in ("JobShown", "JobLine", "Receipt"):
        assert {"$ref": "#/components/schemas/Ending"} in schemas[shown]["properties"]["reason"]["anyOf"]
    assert not [name for name in schemas if "__" in name]  # two of one name
    events = schemas["WebhookBody"]["properties"]["events"]
    assert set(EVENTS) == set(events["items"]["enum"])
    assert all(f"`{name}`: {said}" in events["description"] for name, said in EVENTS.items())


def path_of(route: str) -> tuple[str, str]:
    """Its method, and an address where nothing is that could be changed."""
    method, path = route.split(" ")
    for place, value in PLACES.items():
        path = path.replace(place, value)
    return method, path


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(database, tmp_path) as made:
        await made.account("ada")
        yield made


async def test_every_role_meets_its_doors(api: Api, subtests: pytest.Subtests) -> None:
    """403 exactly where the table says so; 401 without a key; never a 5xx."""
    keys = {role: await (api.token("ada") if role == "customer" else api.key(role)) for role in Role}
    for route, who in WHO.items():
        method, path = path_of(route)
        with subtests.test(route):
            assert 401 == (await api.http.request(method, path)).status_code
            answers = {role: (await api.ask(method, path, key=key)).status_code for role, key in keys.items()}
            assert set(who.split()) == {role for role, status in answers.items() if status != 403}
            assert {*answers.values()} < {200, 201, 202, 207, 304, 400, 403, 404, 415, 422}


@pytest.mark.parametrize("route", sorted(OPEN))
async def test_what_is_open_needs_no_key(api: Api, route: str) -> None:
    """Health and the reference."""
    method, path = path_of(route)
    assert 200 == (await api.http.request(method, path)).status_code


#: What touches every account at once, by address and method.
OF_ALL_ACCOUNTS = (
    "/v1/keys",
    "/v1/audit-log",
    "/v1/webhooks",
    "POST /v1/voices",
    "DELETE /v1/voices",
    "GET /v1/voices/",
    "/prices/report",
    "/overcharged",
    "POST /v1/queues",
    "POST /v1/prices",
    "/pause",
    "/resume",
)


@pytest.mark.parametrize("role", ["ops", "product", "admin"])
async def test_a_key_bound_to_accounts_has_no_say_over_all_of_them(api: Api, role: str) -> None:
    """Even one from before such keys were refused: it mints no key without bounds, and hears of nobody else."""
    key = await api.key(role)
    async with api.database.connection(as_owner=True) as connection:
        await connection.execute("UPDATE api_keys SET account_prefix = 'ada' WHERE role = $1", role)
    for route, who in WHO.items():
        method, path = path_of(route)
        if role in who.split() and any(one in route for one in OF_ALL_ACCOUNTS) and "subscription" not in route:
            assert 403 == (await api.ask(method, path, key=key)).status_code, route
    made = await api.ask("POST", "/v1/keys", {"role": "admin", "label": "more"}, key=key)
    assert 403 == made.status_code
