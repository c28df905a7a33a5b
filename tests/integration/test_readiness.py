"""Whether a process may be given work, as facts; and the same over HTTP, with the metrics beside it."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx2
import pytest

from tests.integration.api_support import SONG, an_api
from tests.integration.books import opened
from tests.servers import Database, Servers
from worker.local.ports import free_port
from worker.readiness import readiness_of
from worker.store.doctoring import known_head, read_revision
from worker.web.server import server_of


async def test_a_process_is_ready_while_the_books_answer_with_our_schema(database: Database, servers: Servers) -> None:
    """Redis is told, not needed: submits are taken without it. One that is about to end is not ready."""
    async with opened(database) as store:

        async def ask() -> str | None:
            return await read_revision(store.engine)

        ready = await readiness_of(ask, servers.redis_url)
        assert (True, "") == (ready.ready, ready.why_not)
        assert {"PostgreSQL", "migrations", "Redis", "draining"} == {fact.name for fact in ready.facts if fact.ok}
        without = await readiness_of(ask, "redis://127.0.0.1:1/0")
        assert (True, ["Redis"]) == (without.ready, [fact.name for fact in without.facts if not fact.ok])
        assert "draining: about to end" == (await readiness_of(ask, None, lambda: True)).why_not
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE alembic_version SET version_num = '0001'")
        old = await readiness_of(ask, None)
        assert f"migrations: the schema is at 0001, not {known_head()}: run `fermata migrate`" == old.why_not


async def test_http_says_why_it_is_not_ready_and_tells_metrics(database: Database, tmp_path: Path) -> None:
    """503 with the reason; `/metrics` in Prometheus's words, for keys that may look at queues."""
    async with an_api(database, tmp_path) as api:
        ready = await api.http.get("/readyz")
        assert (200, True) == (ready.status_code, ready.json()["ok"])
        told = await api.ask("GET", "/metrics", role="viewer")
        assert 200 == told.status_code
        assert 'fermata_up{process="api"} 1.0' in told.text
        assert 403 == (await api.ask("GET", "/metrics", role="billing")).status_code
        async with database.connection(as_owner=True) as owner:
            await owner.execute("UPDATE alembic_version SET version_num = '0001'")
        answer = await api.http.get("/readyz")
        assert 503 == answer.status_code
        assert "run `fermata migrate`" in answer.json()["why"]


async def test_an_api_tells_its_figures_on_the_port_for_metrics_too(database: Database, tmp_path: Path) -> None:
    """Without a key, as workers and schedulers do: one scrape over the range of ports finds all processes."""
    port = free_port()
    async with an_api(database, tmp_path, metrics_port=port) as api:
        await api.account("ada", 100)
        await api.submit()
        async with httpx2.AsyncClient() as scraper:
            told = (await scraper.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
        expected = {
            'fermata_up{process="api"} 1.0',
            'fermata_submits_total{answer="stored",kind="generation"} 1.0',
        }
        assert expected <= set(told)
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient() as scraper:
            await scraper.get(f"http://127.0.0.1:{port}/metrics")


async def test_metrics_tell_what_was_asked_for_and_what_ended_here(database: Database, tmp_path: Path) -> None:
    """Submits by kind and answer, refusals among them; ends by kind, state and reason, whoever brought them about."""
    async with an_api(database, tmp_path) as api:
        await api.account("ada", 100)
        await api.account("poor")
        job = await api.submit(idempotency="one")
        await api.submit(idempotency="one")
        for body in ({"account": "poor", "kind": "generation", "params": SONG}, {"account": "ada", "kind": "x" * 50}):
            assert not (await api.ask("POST", "/v1/jobs", body)).is_success
        await api.ok("POST", f"/v1/jobs/{job['id']}/cancel")
        told = (await api.ask("GET", "/metrics", role="viewer")).text.splitlines()
        assert {
            'fermata_submits_total{answer="stored",kind="generation"} 1.0',
            'fermata_submits_total{answer="replayed",kind="generation"} 1.0',
            'fermata_submits_total{answer="insufficient_credits",kind="generation"} 1.0',
            'fermata_submits_total{answer="validation",kind=""} 1.0',
            'fermata_jobs_ended_total{kind="generation",reason="cancelled",state="cancelled"} 1.0',
        } <= set(told)


async def test_an_api_that_was_told_to_end_is_not_ready(database: Database, tmp_path: Path) -> None:
    """From its first SIGTERM on, on connections that are open still."""
    async with an_api(database, tmp_path) as api:
        server = server_of(api.app, api.services.settings)
        assert 200 == (await api.http.get("/readyz")).status_code
        server.handle_exit(signal.SIGTERM, None)
        answer = await api.http.get("/readyz")
        assert (503, "draining: about to end") == (answer.status_code, answer.json()["why"])
