"""Traces of real processes: an API, a scheduler and a worker tell a collector of one job, each its part."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.acceptance.stage import Stage
from tests.endpoints import Endpoint, an_endpoint
from worker import tracing
from worker.store.api_keys import ApiKeys, NewKey, Role

#: The caller's own span.
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
CANARY = "canary-that-sings"
ERROR = 2  # STATUS_CODE_ERROR of the protocol


@dataclass(frozen=True, slots=True)
class Told:
    """A span as the collector got it."""

    name: str
    process: str
    trace: str
    span: str
    parent: str
    failed: str | None
    facts: dict[str, Any]


@pytest.fixture
async def collector() -> AsyncIterator[Endpoint]:
    """A real OTLP receiver over HTTP."""
    async with an_endpoint() as endpoint:
        yield endpoint


def spans_of(collector: Endpoint) -> list[Told]:
    """All spans that have arrived."""
    return [
        Told(
            span.name,
            next(fact.value.string_value for fact in resource.resource.attributes if fact.key == "service.name"),
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.status.message if span.status.code == ERROR else None,
            {fact.key: getattr(fact.value, fact.value.WhichOneof("value")) for fact in span.attributes},
        )
        for told in collector.told
        for resource in ExportTraceServiceRequest.FromString(told.body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


async def test_one_job_is_one_trace_over_three_processes(stage: Stage, collector: Endpoint) -> None:
    """Given a caller's traceparent, then submit, dispatch, claim, run and settle belong to it; a retry runs twice."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"otlp_url": f"{collector.url}/v1/traces", "otlp_headers": f"x-key={CANARY}"}
    logs = [stage.scheduler(**told), stage.worker(**told), stage.api(api_port=port, **told)]
    key = (await ApiKeys(stage.store.engine).create(NewKey(Role.PIPELINE, "trace"), "test")).key
    body = {
        "account": "ada",
        "kind": "failing",
        "params": {"error": "crashed", "times": 1},
        "metadata": {"note": CANARY},
    }
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "song-1", "traceparent": TRACEPARENT}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:

        async def is_up() -> bool:
            try:
                return bool((await http.get("/livez")).status_code == 200)
            except httpx2.HTTPError:
                return False

        await stage.until(is_up, "the API answers")
        answer = await http.post("/v1/jobs", json=body)
        assert 202 == answer.status_code, answer.text
        poor = await stage.account("poor", credits=0)
        turned_down = await http.post(
            "/v1/jobs", json={"account": poor, "kind": "null"}, headers={"Idempotency-Key": "song-2"}
        )
        assert 402 == turned_down.status_code, turned_down.text
    job = answer.json()["id"]

    def ours() -> list[Told]:
        return [span for span in spans_of(collector) if span.facts.get("fermata.job_id") == job]

    expected = {"submit": 1, "dispatch": 2, "claim": 2, "run": 2, "settle": 2}
    await stage.until(lambda: Counter(span.name for span in ours()) >= Counter(expected), "all spans arrived", 60)
    by_name = defaultdict(list)
    for span in ours():
        by_name[span.name].append(span)
    assert {TRACE} == {span.trace for span in ours()}
    (submit,) = by_name["submit"]
    assert (CALLER, "fermata-api") == (submit.parent, submit.process)
    assert {submit.span} == {span.parent for span in by_name["dispatch"]}
    assert {"fermata-scheduler"} == {span.process for span in by_name["dispatch"]}
    first, second = sorted(by_name["claim"], key=lambda span: span.facts["fermata.attempt"])
    assert (submit.span, submit.span) == (first.parent, second.parent)
    assert {first.span: "engine_crashed", second.span: None} == {span.parent: span.failed for span in by_name["run"]}
    assert {first.span: "queued", second.span: "succeeded"} == {
        span.parent: span.facts["fermata.state"] for span in by_name["settle"]
    }
    assert {"fermata-worker"} == {span.process for name in ("claim", "run", "settle") for span in by_name[name]}
    assert ["InsufficientCredits"] == [
        span.failed
        for span in spans_of(collector)
        if span.name == "submit" and span.facts["fermata.account_id"] == poor
    ]
    # Said with the delivery, and to nobody else.
    assert {CANARY} == {told.headers["x-key"] for told in collector.told}
    assert CANARY not in repr(spans_of(collector))
    assert all(CANARY not in process.said and key not in process.said for process in logs)
    _assert_lines_tell(job, "".join(process.said for process in logs))


def _assert_lines_tell(job: str, said: str) -> None:
    """A line for each step of the job, in its order, all with its trace."""
    lines = [json.loads(line) for line in said.splitlines() if f'"{job}"' in line]
    assert all(TRACE == line["trace_id"] for line in lines)
    lines.sort(key=lambda line: line["timestamp"])
    assert [
        ("submitted", None),
        ("running", 1),
        ("queued again", 1),
        ("running", 2),
        ("ended", 2),
    ] == [(line["event"], line.get("attempt")) for line in lines]


async def test_who_runs_nothing_tells_what_it_did(stage: Stage, collector: Endpoint) -> None:
    """A job that a claim refused, and one whose worker was lost, end in the trace that they were submitted in."""
    told = {"otlp_url": f"{collector.url}/v1/traces"}
    stage.scheduler(**told)
    worker = stage.worker(**told)
    poor = await stage.account("poor", credits=0)
    context = copy_context()
    context.run(tracing.arrived_with, TRACEPARENT.encode())
    refused = await asyncio.create_task(stage.submit("null", poor), context=context)
    await stage.until(lambda: _told(collector, refused, "fermata-worker"), "the refusal arrived")
    assert [("claim", "insufficient_credits")] == [
        (span.name, span.failed) for span in _told(collector, refused, "fermata-worker")
    ]
    lost = await asyncio.create_task(stage.submit("gated", gate=str(stage.gate())), context=context)
    await stage.becomes(lost, "running")
    worker.kill()
    await stage.until(lambda: len(_told(collector, lost, "fermata-scheduler")) >= 2, "the reaping arrived")
    assert [("settle", "lost_worker")] == [
        (span.name, span.facts["fermata.reason"])
        for span in _told(collector, lost, "fermata-scheduler")
        if span.name != "dispatch"
    ]


def _told(collector: Endpoint, job: UUID, process: str) -> list[Told]:
    """What that process told of the job, as children of the caller's span."""
    return [
        span
        for span in spans_of(collector)
        if (span.process, span.trace, span.parent) == (process, TRACE, CALLER)
        and span.facts["fermata.job_id"] == str(job)
    ]


@pytest.mark.parametrize("answers", ["nobody listens", "takes all and says nothing"])
async def test_a_collector_that_is_away_holds_up_nothing(stage: Stage, answers: str) -> None:
    """Given nobody who takes spans, or somebody who never answers, jobs run, and their processes end in time."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if answers == "takes all and says nothing":
            taken.listen()
        told = {"otlp_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces"}
        stage.scheduler(**told)
        worker = stage.worker(**told)
        jobs = await stage.submit_many(3)
        assert ["succeeded"] * 3 == [job.state for job in await stage.all_ended(jobs)]
        worker.send(signal.SIGTERM)
        assert 0 == await worker.ended(tracing.CLOSE_SECONDS + 20)
        assert "Traceback" not in worker.said
