"""Metrics for Prometheus: each process serves its own figures, so any number of processes is right.

What a process counted itself are counters and histograms: sum them over processes. What was read from the books are
gauges that every reporting process has alike (`fermata_books_…`): take their maximum, never their sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import nan
from socketserver import BaseServer
from time import monotonic, time
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from worker.credits.lots import Move
from worker.credits.operations import Claimed, Dropped, Ended, Fenced, Parked, Requeued
from worker.credits.page import Page
from worker.store.errors import StoreError
from worker.store.group_commit import GroupCommit
from worker.store.leases import Standing
from worker.store.reads_figures import BooksFigures, FigureReads

log = structlog.get_logger(__name__)

#: Ports tried from the one that was given, for several processes on one machine.
PORTS = 32
#: Seconds between two looks at the books, and between two at the sums over all of them.
LOOK_SECONDS, SUMS_SECONDS = 5.0, 60.0
#: Seconds between two measurements of the event loop's lag.
_LAG_SECONDS = 1.0

_WAITS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 900, 3600, 14_400)
_RUNS = (0.05, 0.25, 1, 5, 15, 30, 60, 120, 300, 600, 900)
_LAGS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10)
#: Operations in a transaction, and jobs in a hint.
_BATCHES, _HINTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500), (1, 2, 4, 8, 16)


@dataclass(slots=True)
class Metrics:
    """The figures of one process."""

    process: str  # worker, scheduler or api
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ProcessCollector(registry=self.registry)
        up = Gauge("fermata_up", "1 while the process runs", ["process"], registry=self.registry)
        up.labels(self.process).set(1)
        self._declare_ends()
        if self.process == "worker":
            self._declare_jobs()
        if self.process == "api":
            self._made["fermata_submits"] = Counter(
                "fermata_submits",
                "Jobs asked for, by what was answered: stored, replayed, or the code of the refusal",
                ["kind", "answer"],
                registry=self.registry,
            )
        if self.process == "scheduler":
            self._made["looks"] = Histogram(
                "fermata_duty_seconds", "How long a duty took", ["duty"], buckets=_LAGS, registry=self.registry
            )
            self._made["hints"] = Histogram(
                "fermata_hint_jobs", "Jobs that one hint tells of", buckets=_HINTS, registry=self.registry
            )
        self._made["batches"] = Histogram(
            "fermata_batch_size",
            "Operations that travelled in one transaction: claims, settles and the like, or submits",
            ["of"],
            buckets=_BATCHES,
            registry=self.registry,
        )
        self._made["lag"] = Histogram(
            "fermata_event_loop_lag_seconds", "How late the event loop is", buckets=_LAGS, registry=self.registry
        )

    def _declare_ends(self) -> None:
        for name, what, labels in (
            ("fermata_jobs_ended", "Jobs whose end this process committed", ["kind", "state", "reason"]),
            ("fermata_credits_committed", "Credits that ends charged", ["kind"]),
            ("fermata_credits_refunded", "Credits that ends gave back", ["kind"]),
        ):
            self._made[name] = Counter(name, what, labels, registry=self.registry)
        self._made["fermata_credits_expired"] = Counter(
            "fermata_credits_expired", "Credits that expired, as this process wrote it down", registry=self.registry
        )

    def _declare_jobs(self) -> None:
        for name, what, labels in (
            ("fermata_claims", "Answers to claims", ["kind", "answer"]),
            ("fermata_attempts", "Attempts that ended here, by how they did", ["kind", "ending"]),
            ("fermata_attempts_retried", "Attempts after which a job was queued again", ["kind", "reason"]),
            ("fermata_settles_fenced", "Settles by a process that had lost its job", ["kind"]),
            ("fermata_credits_reserved", "Credits that claims held", ["kind"]),
        ):
            self._made[name] = Counter(name, what, labels, registry=self.registry)
        self._made["wait"] = Histogram(
            "fermata_job_wait_seconds",
            "From submit to the first claim, by this machine's clock",
            ["kind"],
            buckets=_WAITS,
            registry=self.registry,
        )
        self._made["run"] = Histogram(
            "fermata_job_run_seconds", "From claim to settle", ["kind"], buckets=_RUNS, registry=self.registry
        )

    # --- what a worker tells

    def claimed(self, answer: Any) -> None:
        """Count the answer to a claim."""
        if not isinstance(answer, Claimed):
            self._made["fermata_claims"].labels("", _word(answer)).inc()
            return
        job = answer.job
        self._made["fermata_claims"].labels(job.kind, "claimed").inc()
        if job.attempt == 1:
            self._made["fermata_credits_reserved"].labels(job.kind).inc(job.quoted)
            # A uuid7 begins with its milliseconds.
            self._made["wait"].labels(job.kind).observe(max(0.0, time() - (job.job_id.int >> 80) / 1000))

    def settled(self, claim: Claimed, answer: Any, seconds: float) -> None:
        """Count how an attempt ended that took so long."""
        kind = claim.job.kind
        self._made["run"].labels(kind).observe(seconds)
        match answer:
            case Ended():
                self._made["fermata_attempts"].labels(kind, str(answer.reason)).inc()
            case Requeued():
                self._made["fermata_attempts"].labels(kind, str(answer.reason)).inc()
                self._made["fermata_attempts_retried"].labels(kind, str(answer.reason)).inc()
            case Fenced.FENCED | Standing.NOT_OURS:
                self._made["fermata_settles_fenced"].labels(kind).inc()

    # --- what an API tells

    def submitted(self, kind: str, answer: str) -> None:
        """Count the answer to a submit. `kind`: one that we have, else empty: nobody makes up labels."""
        self._made["fermata_submits"].labels(kind, answer).inc()

    # --- what a scheduler tells

    def duty(self, name: str, seconds: float) -> None:
        """Note how long a duty took."""
        self._made["looks"].labels(name).observe(seconds)

    def hint(self, jobs: int) -> None:
        """Note how many jobs a hint tells of."""
        self._made["hints"].observe(jobs)

    # --- what all tell

    def committed(self, page: Page) -> None:
        """Count what a transaction of this process has ended and written off."""
        for change in page.writes.jobs:
            if change.ended:
                kind, charged = change.job.kind, change.charged or 0
                self._made["fermata_jobs_ended"].labels(kind, str(change.state), str(change.reason)).inc()
                if change.job.attempt:  # else nothing was ever held for it
                    self._made["fermata_credits_committed"].labels(kind).inc(charged)
                    self._made["fermata_credits_refunded"].labels(kind).inc(change.job.quoted - charged)
        expired = sum(line.entry.amount for line in page.ledger.lines if line.entry.move is Move.EXPIRE)
        self._made["fermata_credits_expired"].inc(expired)

    def watch_count(self, name: str, what: str, count: Callable[[], int]) -> None:
        """Show what something counts itself."""
        self.registry.register(_Counted(name, what, count))

    def watch_batches(self, operations: GroupCommit[Any], submits: GroupCommit[Any] | None = None) -> None:
        """Show how many operations the transactions of the process's batches have."""
        operations.counts = self._made["batches"].labels("operations").observe
        if submits is not None:
            submits.counts = self._made["batches"].labels("submits").observe
        figures = operations.figures
        self.watch_count("fermata_batch_transactions", "Transactions of batches", lambda: figures.transactions)
        self.watch_count("fermata_batch_operations", "Operations in them", lambda: figures.operations)
        self.watch_count("fermata_batch_busy", "Operations that met their account busy", lambda: figures.busy)

    def watch_books(self, reads: FigureReads) -> BooksWatch:
        """Show what the books have; the watch must be run."""
        watch = BooksWatch(reads)
        self.registry.register(watch)
        return watch

    def watch_space(self, free_bytes: Callable[[], float]) -> None:
        """Show how much room is left where artifacts are worked on."""
        space = Gauge("fermata_artifact_free_bytes", "Room where artifacts are worked on", registry=self.registry)

        def free() -> float:
            try:
                return free_bytes()
            except OSError:
                return nan  # not made yet, or not to be reached: no figure is better than a wrong one

        space.set_function(free)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            asked = monotonic()
            await asyncio.sleep(_LAG_SECONDS)
            self._made["lag"].observe(max(0.0, monotonic() - asked - _LAG_SECONDS))

    def text(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self.registry)


def _word(answer: Any) -> str:
    """What a claim came to that did not start its job."""
    match answer:
        case Ended():
            return str(answer.state)
        case Parked():
            return "waiting"
        case Dropped():
            return str(answer)
        case _:
            return "none"


class _Counted(Collector):
    def __init__(self, name: str, what: str, count: Callable[[], int]) -> None:
        self._name, self._what, self._count = name, what, count

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._what, self._count())


class BooksWatch(Collector):
    """The books' own figures, read every few seconds however often somebody scrapes."""

    def __init__(self, reads: FigureReads) -> None:
        self._reads = reads
        self._figures: BooksFigures | None = None
        self._imbalance: int | None = None
        self._answered = False

    async def run(self) -> None:
        """Look until cancelled."""
        summed = float("-inf")
        while True:
            try:
                self._figures = await self._reads.figures()
                if monotonic() - summed >= SUMS_SECONDS:
                    self._imbalance = await self._reads.imbalance()
                    summed = monotonic()
                self._answered = True
            except StoreError as error:
                self._answered = False
                log.warning("metrics wait for the books", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Nothing that is out of date: without the books only that they don't answer."""
        yield _gauge("up", "1 if the books answered the last look", int(self._answered))
        figures = self._figures
        if figures is None or not self._answered:
            return
        yield from _of_queues(figures)
        yield _gauge("credits_held", "Credits that reservations hold", figures.held)
        yield _gauge("credits_expired_unwritten", "Credits that expired and are not journaled yet", figures.unwritten)
        yield _gauge("webhooks_waiting", "Events that wait for their endpoints", figures.deliveries)
        yield _gauge("webhooks_dead", "Events that an endpoint never took", figures.dead_deliveries)
        if figures.audit_seconds is not None and figures.audit_violations is not None:
            yield _gauge("audit_age_seconds", "Since the last audit, whoever ran it", figures.audit_seconds)
            yield _gauge("audit_violations", "What the last audit found: must be 0", figures.audit_violations)
        if figures.dispatch_seconds is not None:
            yield _gauge("dispatch_age_seconds", "Since a scheduler gave a sign", figures.dispatch_seconds)
        if figures.hints_seconds is not None:
            yield _gauge("hints_age_seconds", "Since a scheduler's dispatch reached Redis", figures.hints_seconds)
        alive = GaugeMetricFamily("fermata_books_processes", "Processes seen within 30 s", labels=["process"])
        for process, count in figures.processes.items():
            alive.add_metric([process], count)
        yield alive
        if self._imbalance is not None:
            yield _gauge("ledger_imbalance", "Held by lots, less held by reservations: must be 0", self._imbalance)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fermata_books_{name}", what, value)


def _of_queues(figures: BooksFigures) -> Iterator[GaugeMetricFamily]:
    depth = GaugeMetricFamily("fermata_books_jobs", "Unfinished jobs", labels=["queue", "where"])
    oldest = GaugeMetricFamily("fermata_books_oldest_seconds", "Since the oldest could run", labels=["queue"])
    slots = GaugeMetricFamily("fermata_books_slots", "Slots of living workers", labels=["queue"])
    paused = GaugeMetricFamily("fermata_books_paused", "1 if a person paused it", labels=["queue"])
    for queue in figures.queues:
        for where in ("ready", "later", "blocked", "parked", "running"):
            depth.add_metric([queue.queue, where], getattr(queue, where))
        oldest.add_metric([queue.queue], queue.oldest_seconds)
        slots.add_metric([queue.queue], queue.slots)
        paused.add_metric([queue.queue], int(queue.paused))
    yield from (depth, oldest, slots, paused)


def serve(metrics: Metrics, host: str, port: int) -> Callable[[], None]:
    """Serve the figures in a thread, on the first free port from `port` on; returns how to stop that."""
    for candidate in range(port, port + PORTS):
        try:
            server, _ = start_http_server(candidate, addr=host, registry=metrics.registry)
        except OSError:
            continue
        log.info("metrics", process=metrics.process, host=host, port=candidate)
        return partial(_stop, server)
    log.error("no free port for metrics", first=port, last=port + PORTS - 1)
    return lambda: None


def _stop(server: BaseServer) -> None:
    server.shutdown()
    server.server_close()
