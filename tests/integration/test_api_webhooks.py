"""Webhooks over HTTP: made, listed, tested, told again and deleted, each act by its actor in the log."""

from __future__ import annotations

from pathlib import Path

import standardwebhooks

from tests.endpoints import an_endpoint
from tests.integration.api_support import an_api
from tests.servers import Database


async def test_an_endpoint_over_http(database: Database, tmp_path: Path) -> None:
    """Its secret is shown once, signs what it is sent, and stands in no other answer and not in the log."""
    async with an_api(database, tmp_path, webhook_private_targets=True) as api, an_endpoint() as endpoint:
        made = await api.ok("POST", "/v1/webhooks", {"url": endpoint.url, "events": ["ended", "ended"]}, role="ops")
        path = f"/v1/webhooks/{made['webhook']}"
        tested = await api.ok("POST", f"{path}/test")
        assert (True, 200) == (tested["taken"], tested["status"])
        heard = endpoint.told[0]
        assert "test" == standardwebhooks.Webhook(made["secret"]).verify(heard.body, heard.headers)["type"]
        listed, shown = await api.ok("GET", "/v1/webhooks"), await api.ok("GET", path)
        assert [["ended"]] == [one["events"] for one in listed["webhooks"]]
        assert 0 == (await api.ok("POST", f"{path}/redeliver"))["events"]
        assert (await api.ok("DELETE", path))["deleted"]
        log = await api.ok("GET", "/v1/audit-log", params={"subject": made["webhook"]})
        assert ["webhooks.delete", "webhooks.insert"] == [entry["what"] for entry in log["entries"]]
        assert all(entry["actor"].startswith("key:") for entry in log["entries"])
        assert made["secret"] not in str([listed, shown, log])
        gone = await api.ask("GET", path)
        assert (404, "unknown_webhook") == (gone.status_code, gone.json()["code"])


async def test_what_can_be_no_endpoint_is_refused(database: Database, tmp_path: Path) -> None:
    """By field, and nothing is stored."""
    async with an_api(database, tmp_path) as api:
        for body, field in (
            ({"url": "http://example.com"}, "url"),
            ({"url": "https://169.254.169.254/"}, "url"),
            ({"url": "https://example.com", "events": ["Ended!"]}, "events.0"),
            ({"url": "https://example.com", "events": ["ended", "job.finished"]}, "events"),
            ({"url": "https://example.com", "secret": "mine"}, "secret"),
        ):
            refused = await api.ask("POST", "/v1/webhooks", body)
            assert (422, field) == (refused.status_code, refused.json()["field"])
        unknown = await api.ask("POST", "/v1/webhooks", {"url": "https://example.com", "account": "nobody"})
        assert (404, "unknown_account") == (unknown.status_code, unknown.json()["code"])
        bad = await api.ask("POST", "/v1/webhooks/0198c2f4-7a10-7b3e-9c55-0d6f2a1b4e88/redeliver", {"event": 0})
        assert 422 == bad.status_code
        assert [] == (await api.ok("GET", "/v1/webhooks"))["webhooks"]
