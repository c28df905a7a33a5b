"""Metrics of real processes: each serves its own, and together they tell what happened."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from urllib.request import Request, urlopen
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.stage import Stage
from tests.unit.test_alerts import queries
from worker.local.ports import free_port
from worker.queue.hints import HintSender
from worker.store.api_keys import ApiKeys, NewKey, Role
from worker.store.upkeep import Upkeep


async def test_each_process_tells_what_it_did(stage: Stage) -> None:
    """Given a scheduler and two workers on one machine, then each has a port, and their sums are the jobs."""
    first = _free_ports()
    stage.scheduler(metrics_port=first)
    for _ in range(2):
        stage.worker(metrics_port=first)
    await stage.until(lambda: _answering(first), "three processes serve metrics")
    await stage.account("poor", 15)
    await stage.account("late", 50, expires_at=datetime.now(UTC) + timedelta(seconds=1))
    jobs = [
        *await stage.submit_many(12),
        *await stage.submit_many(2, account_id="poor"),
        await stage.submit("failing", error="unavailable", times=1),
        await stage.submit("failing", error="final"),
    ]
    await stage.all_ended(jobs)
    ended = {
        ("null", "succeeded", "succeeded"): 13,
        ("null", "refused", "insufficient_credits"): 1,
        ("failing", "succeeded", "succeeded"): 1,
        ("failing", "failed", "engine_error"): 1,
    }
    await stage.until(lambda: _sum(first, "fermata_jobs_ended_total") == 16, "all are counted")
    assert ended == {
        (kind, state, reason): _sum(first, "fermata_jobs_ended_total", kind=kind, state=state, reason=reason)
        for kind, state, reason in ended
    }
    told = {
        "fermata_attempts_total{ending=succeeded}": 14,
        "fermata_attempts_total{ending=engine_error}": 1,
        "fermata_attempts_total{ending=engine_unavailable}": 1,
        "fermata_attempts_retried_total": 1,
        "fermata_job_run_seconds_count": 16,
        "fermata_job_wait_seconds_count": 15,
        "fermata_claims_total{answer=claimed}": 16,
        "fermata_claims_total{answer=refused}": 1,
        "fermata_credits_reserved_total": 150,
        "fermata_credits_committed_total": 140,
        "fermata_credits_refunded_total": 10,
        "fermata_leases_expired_total": 0,
        "fermata_settles_fenced_total": -1,  # nobody had one
    }
    assert told == {name: _sum(first, *_named(name)) for name in told}
    await stage.until(lambda: _sum(first, "fermata_credits_expired_total") == 50, "what expired is counted")
    await stage.until(lambda: _sum(first, "fermata_books_ledger_imbalance") == 0, "the sums were taken")
    await stage.until(lambda: _sum(first, "fermata_books_processes", process="scheduler") == 1, "its sign was seen")
    assert 2 == _sum(first, "fermata_books_processes", process="worker")
    hints = _sum(first, "fermata_hint_jobs_count")
    assert 17 <= _sum(first, "fermata_hint_jobs_sum")
    assert hints == _sum(first, "fermata_hints_total")
    assert _sum(first, "fermata_hint_jobs_sum") == _sum(first, "fermata_hinted_jobs_total")
    batches = _one_look(first, "fermata_batch_size_sum", "fermata_batch_operations_total")
    assert 33 <= batches[0] == batches[1]  # seventeen claims, sixteen settles
    batches = _one_look(first, "fermata_batch_size_count", "fermata_batch_transactions_total")
    assert 0 < batches[0] == batches[1]


async def test_what_was_lost_and_fenced_is_counted(stage: Stage) -> None:
    """Given a worker frozen past its lease, when it wakes, then one lease lapsed, one settle was fenced, and its event
    loop was late by as long.
    """
    first = _free_ports()
    stage.scheduler(metrics_port=first)
    sleeper = stage.worker(metrics_port=first, failpoints="settle.before:stop")
    job_id = await stage.submit()
    await stage.until(lambda: sleeper.frozen, "the worker is frozen")
    stage.worker()
    await stage.becomes(job_id, "succeeded")
    sleeper.thaw()
    await stage.until(lambda: _sum(first, "fermata_settles_fenced_total", kind="null") == 1, "it was fenced")
    assert 1 == _sum(first, "fermata_leases_expired_total")
    lag = "fermata_event_loop_lag_seconds"
    await stage.until(lambda: _sum(first, f"{lag}_count") > _sum(first, f"{lag}_bucket", le="0.5"), "it was late")


async def test_all_that_is_asked_for_is_told_by_real_processes(stage: Stage) -> None:
    """Given one process of each kind, then every metric of alerts, dashboard and autoscaling is told by one of them."""
    first, port = _free_ports(), free_port()
    stage.scheduler(metrics_port=first)
    stage.worker(metrics_port=first)
    stage.api(api_port=port)
    key = (await ApiKeys(stage.store.engine).create(NewKey(Role.VIEWER, "metrics"), "test")).key
    asked = {name for _, query in queries() for name in re.findall(r"fermata_\w+", query)}

    async def missing() -> set[str]:
        texts = [*await asyncio.to_thread(_texts, first), await asyncio.to_thread(_of_api, port, key)]
        told = {
            f"{family.name}{ending}"
            for text in texts
            for family in text_string_to_metric_families(text)
            for ending in ("", "_total", "_bucket", "_sum", "_count")
        }
        return asked - told

    async def nothing_missing() -> bool:
        return not await missing()

    # An audit and an endpoint's end are told only once there was one.
    await Upkeep(stage.store.engine).note("audit", {"count": 0})
    await stage.until(nothing_missing, f"all are told: {sorted(asked)}")


async def test_hints_of_nobodys_jobs_are_dropped_and_counted(stage: Stage) -> None:
    """Whether it is the job that nobody knows or the account."""
    first = _free_ports()
    stage.worker(metrics_port=first)
    await stage.until(lambda: _sum(first, "fermata_up") >= 1, "the worker serves metrics")
    sender = HintSender(stage.environment["FERMATA_REDIS_URL"], stage.settings.namespace)
    await sender.send({"null": [("nobody", uuid4()), ("ada", uuid4())]}, per_message=1)
    await sender.close()
    await stage.until(lambda: _sum(first, "fermata_claims_total", answer="unknown") == 2, "both are counted")


#: How many ports after the first a process tries, or a look asks.
PORTS = 6
#: Below those that the kernel gives to outgoing connections: one to a port that nobody listens on yet, but in their
#: range, may be connected to itself and read its own request.
LOWEST, HIGHEST = 20_000, 32_000


def _free_ports() -> int:
    """The first of some ports on which nobody listens."""
    while True:
        first = random.randrange(LOWEST, HIGHEST)
        with ExitStack() as probes:
            try:
                for port in range(first, first + PORTS):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


def _texts(first: int) -> list[str]:
    texts = []
    for port in range(first, first + PORTS):
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                texts.append(answer.read().decode())
        except OSError:
            continue
    return [text for text in texts if "fermata_up" in text]


async def _answering(first: int) -> bool:
    return len(await asyncio.to_thread(_texts, first)) == 3


def _of_api(port: int, key: str) -> str:
    """What an API tells; nothing while it does not answer."""
    request = Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {key}"})
    try:
        with urlopen(request, timeout=2) as answer:  # noqa: S310  our own API, on loopback
            text: str = answer.read().decode()
    except OSError:
        return ""
    return text


def _named(sample: str) -> tuple[str, dict[str, str]]:
    """A name and its labels, from `name{label=value}`."""
    name, _, labels = sample.partition("{")
    return name, dict(label.split("=") for label in labels.rstrip("}").split(",") if label)


def _one_look(first: int, *names: str) -> list[float]:
    """The sums of several metrics at one time in each process."""
    texts = _texts(first)
    return [_summed(texts, name) for name in names]


def _sum(first: int, name: str, labels: Mapping[str, str] | None = None, **more: str) -> float:
    """Over all processes; -1 where nobody tells it."""
    return _summed(_texts(first), name, {**(labels or {}), **more})


def _summed(texts: Sequence[str], name: str, labels: Mapping[str, str] | None = None) -> float:
    values = [
        sample.value
        for text in texts
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and (labels or {}).items() <= sample.labels.items()
    ]
    return sum(values) if values else -1.0
