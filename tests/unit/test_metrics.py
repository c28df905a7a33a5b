"""Metrics: what each process tells, and that alerts and dashboard ask for nothing that nobody tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.credits.test_operations import a_claim, a_job, a_page
from worker.credits.operations import Claimed, Dropped, Ended, Fenced, Requeued
from worker.credits.outcomes import Ending
from worker.credits.page import JobChange, Page
from worker.credits.states import JobState
from worker.metrics import BooksWatch, Metrics
from worker.store.reads_figures import BooksFigures, FigureReads
from worker.store.reads_queues import QueueShown

DEPLOY = Path(__file__).parents[2] / "deploy"
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
    watch._figures = BooksFigures((QUEUE,), 40, 0, 2, 3.0, {"worker": 1, "scheduler": 1, "api": 1}, 1, 60.0, 0)
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
    for name in ("fermata_leases_expired", "fermata_hinted_jobs", "fermata_batch_operations"):
        scheduler.watch_count(name, "what", lambda: 1)
    scheduler.watch_count("fermata_batch_transactions", "what", lambda: 1)
    scheduler.duty("dispatch", 0.1)
    api.registry.register(a_watch())
    api.watch_space(lambda: 1e9)
    return {sample.partition("{")[0] for one in (worker, scheduler, api) for sample in told(one)}


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
    assert [3, 2, 12.5, 40, 0, 3.0] == [
        samples[name]
        for name in (
            "fermata_books_jobs{queue=songs,where=ready}",
            "fermata_books_jobs{queue=songs,where=parked}",
            "fermata_books_oldest_seconds{queue=songs}",
            "fermata_books_credits_held",
            "fermata_books_ledger_imbalance",
            "fermata_books_dispatch_age_seconds",
        )
    ]
    watch._answered = False
    assert {"fermata_books_up": 0.0} == {k: v for k, v in told(metrics).items() if k.startswith("fermata_books")}


def rules() -> list[dict[str, object]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_told_and_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """Every metric in it exists; it has a severity, a sentence and an act."""
    asked = set(re.findall(r"fermata_\w+", str(rule["expr"])))
    assert asked
    assert asked <= every_metric()
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["do"]


def test_prometheus_itself_finds_nothing_wrong_with_the_rules() -> None:
    """By its own tool, where it is installed: `.ci/run` does."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    found = subprocess.run([promtool, "check", "rules", DEPLOY / "alerts.yml"], capture_output=True, text=True)
    assert 0 == found.returncode, found.stdout + found.stderr
    assert f"{len(rules())} rules found" in found.stdout


def test_a_dead_scheduler_and_a_wrong_ledger_page_somebody() -> None:
    """What can't wait till tomorrow."""
    pages = {str(rule["alert"]) for rule in rules() if rule["labels"] == {"severity": "page"}}
    assert {"FermataLedgerImbalance", "FermataNoScheduler", "FermataBooksAway", "FermataQueueUnserved"} <= pages


def test_the_dashboard_asks_for_what_is_told() -> None:
    """Each panel has a title and expressions over metrics that exist."""
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    for panel in panels:
        for target in panel["targets"]:
            asked = set(re.findall(r"fermata_\w+", target["expr"]))
            assert asked, panel["title"]
            assert asked <= every_metric(), panel["title"]
