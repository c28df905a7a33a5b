"""Metrics of real processes: each serves its own, and together they tell what happened."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import ExitStack
from urllib.request import urlopen
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.stage import Stage
from worker.queue.hints import HintSender


async def test_each_process_tells_what_it_did(stage: Stage) -> None:
    """Given a scheduler and two workers on one machine, then each has a port, and their sums are the jobs."""
    first = _free_ports()
    stage.scheduler(metrics_port=first)
    for _ in range(2):
        stage.worker(metrics_port=first)
    await stage.until(lambda: _answering(first), "three processes serve metrics")
    jobs = await stage.submit_many(12)
    await stage.all_ended(jobs)
    await stage.until(lambda: _sum(first, "fermata_jobs_ended_total", state="succeeded") == 12, "all are counted")
    assert (12, 120, 120, 0) == tuple(
        _sum(first, f"fermata_{name}")
        for name in (
            *("job_run_seconds_count", "credits_reserved_total", "credits_committed_total", "credits_refunded_total"),
        )
    )
    await stage.until(lambda: _sum(first, "fermata_books_ledger_imbalance") == 0, "the sums were taken")
    assert _sum(first, "fermata_hinted_jobs_total") >= 12
    await stage.until(lambda: _sum(first, "fermata_books_processes", process="scheduler") == 1, "its sign was seen")
    assert 2 == _sum(first, "fermata_books_processes", process="worker")


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


def _sum(first: int, name: str, **labels: str) -> float:
    """Over all processes; -1 where nobody tells it."""
    values = [
        sample.value
        for text in _texts(first)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(values) if values else -1.0
