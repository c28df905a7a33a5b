"""Metrics: what each process tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.credits.test_operations import a_claim, a_job, a_page
from worker.credits.operations import Claimed, Dropped, Ended, Fenced, Requeued
from worker.credits.outcomes import Ending
from worker.credits.page import JobChange, Page
from worker.credits.states import JobState
from worker.metrics import BooksWatch, Metrics
from worker.store.group_commit import GroupCommit
from worker.store.reads_figures import BooksFigures, FigureReads
from worker.store.reads_queues import QueueShown

QUEUE = QueueShown("songs", 3, 1, 0, 2, 1, 12.5, 1, 4, False, None, None)


class _Reads(FigureReads):
    """Reads that were answered before: the figures of one look."""

    def __init__(self) -> None:
        return


def told(metrics: Metrics) -> dict[str, float]:
    """Every sample, by name and labels."""
    samples = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def a_watch() -> BooksWatch:
    watch = BooksWatch(_Reads())
    watch._figures = BooksFigures((QUEUE,), 40, 0, 2, 3.0, {"worker": 1, "scheduler": 1, "api": 1}, 1, 60.0, 0, 4.0)
    watch._imbalance, watch._answered = 0, True
    return watch


def every_metric() -> set[str]:
    """The names of all samples of all three processes."""
    worker, scheduler, api = (Metrics(process) for process in ("worker", "scheduler", "api"))
    worker.claimed(_claimed())
    worker.settled(_claimed(), Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 7), 1.0)
    worker.settled(_claimed(), Requeued(Ending.ENGINE_FAILURE, a_page().now), 1.0)
    worker.settled(_claimed(), Fenced.FENCED, 1.0)
    worker.committed(_refused())
    worker.committed(_sold())
    api.submitted("generation", "stored")
    for name in ("fermata_leases_expired", "fermata_hinted_jobs", "fermata_hints"):
        scheduler.watch_count(name, "what", lambda: 1)
    scheduler.watch_batches(GroupCommit(_nothing))
    scheduler.duty("dispatch", 0.1)
    api.registry.register(a_watch())
    api.watch_space(lambda: 1e9)
    return {sample.partition("{")[0] for one in (worker, scheduler, api) for sample in told(one)}


async def _nothing(operations: Sequence[object], wait: bool) -> list[object]:
    return list(operations)


def _claimed() -> Claimed:
    job = UUID(int=1)
    claimed = a_claim(job).decide(a_page(a_job(job_id=job)))
    assert isinstance(claimed, Claimed)
    return claimed


def _refused() -> Page:
    """A page whose claim could not be paid, and a lot that expired."""
    job = UUID(int=1)
    page = a_page(a_job(job_id=job, quoted=10**6))
    assert isinstance(a_claim(job).decide(page), Ended)
    return page


def _sold() -> Page:
    """A page on which a job of 10 credits was charged 7."""
    job = a_job(job_id=UUID(int=1), attempt=1)
    page = a_page(job)
    page.writes.jobs.append(JobChange(job, JobState.SUCCEEDED, 0, ended=True, reason=Ending.SUCCEEDED, charged=7))
    return page


def test_a_worker_counts_what_became_of_its_jobs() -> None:
    """Credits, outcomes by kind and reason, refusals, retries and fenced settles."""
    metrics = Metrics("worker")
    metrics.claimed(_claimed())
    metrics.claimed(Dropped.PAUSED)
    metrics.claimed(Ended(JobState.REFUSED, Ending.INSUFFICIENT_CREDITS))
    metrics.committed(_refused())
    metrics.committed(_sold())
    metrics.settled(_claimed(), Ended(JobState.SUCCEEDED, Ending.SUCCEEDED, 7), 2.0)
    metrics.settled(_claimed(), Fenced.FENCED, 1.0)
    samples = told(metrics)
    expected = {
        "fermata_up{process=worker}": 1,
        "fermata_claims_total{answer=claimed,kind=generation}": 1,
        "fermata_claims_total{answer=paused,kind=}": 1,
        "fermata_claims_total{answer=refused,kind=}": 1,
        "fermata_jobs_ended_total{kind=generation,reason=insufficient_credits,state=refused}": 1,
        "fermata_attempts_total{ending=succeeded,kind=generation}": 1,
        "fermata_jobs_ended_total{kind=generation,reason=succeeded,state=succeeded}": 1,
        "fermata_credits_reserved_total{kind=generation}": 10,
        "fermata_credits_committed_total{kind=generation}": 7,
        "fermata_credits_refunded_total{kind=generation}": 3,
        "fermata_settles_fenced_total{kind=generation}": 1,
        "fermata_job_run_seconds_count{kind=generation}": 2,
        "fermata_job_wait_seconds_count{kind=generation}": 1,
    }
    assert expected == {name: samples.get(name) for name in expected}


def test_the_books_figures_are_told_only_while_they_answer() -> None:
    """A figure that is out of date would look like peace; that they don't answer is told instead."""
    metrics, watch = Metrics("api"), a_watch()
    metrics.registry.register(watch)
    samples = told(metrics)
    assert [3, 2, 12.5, 40, 0, 3.0, 4.0] == [
        samples[name]
        for name in (
            "fermata_books_jobs{queue=songs,where=ready}",
            "fermata_books_jobs{queue=songs,where=parked}",
            "fermata_books_oldest_seconds{queue=songs}",
            "fermata_books_credits_held",
            "fermata_books_ledger_imbalance",
            "fermata_books_dispatch_age_seconds",
            "fermata_books_hints_age_seconds",
        )
    ]
    watch._answered = False
    assert {"fermata_books_up": 0.0} == {k: v for k, v in told(metrics).items() if k.startswith("fermata_books")}


def test_the_sizes_of_batches_and_hints_are_told_as_histograms() -> None:
    """How many had how many, so that a mean hides nothing."""
    metrics = Metrics("scheduler")
    operations: GroupCommit[Any] = GroupCommit(_nothing)
    metrics.watch_batches(operations)
    assert operations.counts is not None
    for size in (1, 3, 40):
        operations.counts(size)
    for jobs in (16, 16, 5):
        metrics.hint(jobs)
    samples = told(metrics)
    expected = {
        "fermata_batch_size_bucket{le=1.0,of=operations}": 1,
        "fermata_batch_size_bucket{le=4.0,of=operations}": 2,
        "fermata_batch_size_bucket{le=32.0,of=operations}": 2,
        "fermata_batch_size_bucket{le=64.0,of=operations}": 3,
        "fermata_batch_size_sum{of=operations}": 44,
        "fermata_hint_jobs_bucket{le=4.0}": 0,
        "fermata_hint_jobs_bucket{le=8.0}": 1,
        "fermata_hint_jobs_sum": 37,
    }
    assert expected == {name: samples.get(name) for name in expected}
