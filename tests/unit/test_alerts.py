"""Alerts, dashboard and autoscaling: they ask for what is told, and each alert comes when it should and not before."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_metrics import every_metric
from worker.metrics import PORTS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

#: What pages and files of ours call by names that look like a metric's.
NO_METRICS = {
    *("fermata_app", "fermata_owner", "fermata_product", "fermata_worker"),
    *("fermata_client", "fermata_empty_defaults", "fermata_make_partitions", "fermata_now", "fermata_restored"),
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((DEPLOY / "grafana.json").read_text())["panels"])


def autoscaling() -> list[str]:
    """The queries of DEPLOY's example for KEDA."""
    documents = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "DEPLOY.md").read_text(), re.S)
    (scaled,) = (yaml.safe_load(one) for one in documents if "ScaledObject" in one)
    return [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]


def queries() -> Iterator[tuple[str, str]]:
    """Every expression that we ship, by where it stands."""
    for rule in rules():
        yield str(rule["alert"]), str(rule["expr"])
    for panel in panels():
        for target in panel["targets"]:
            yield str(panel["title"]), str(target["expr"])
    for number, query in enumerate(autoscaling()):
        yield f"KEDA {number}", query


@pytest.mark.parametrize(("where", "query"), [pytest.param(*one, id=one[0]) for one in queries()])
def test_only_what_is_told_is_asked_for(where: str, query: str) -> None:
    """By alerts, the dashboard and the example for autoscaling."""
    asked = set(re.findall(r"fermata_\w+", query))
    assert asked, where
    assert asked <= every_metric()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_pages_name_only_metrics_that_are_told(page: Path) -> None:
    """A name that nobody tells would be looked for in the middle of a night."""
    named = set(re.findall(r"\bfermata_[a-z0-9_]+\b", page.read_text())) - NO_METRICS
    assert named <= every_metric()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """It has a severity, a sentence and an act."""
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["do"]


def test_a_dead_scheduler_and_a_wrong_ledger_page_somebody() -> None:
    """What can't wait till tomorrow."""
    pages = {str(rule["alert"]) for rule in rules() if rule["labels"] == {"severity": "page"}}
    never_tomorrow = {"FermataLedgerImbalance", "FermataNoScheduler", "FermataBooksAway", "FermataQueueUnserved"}
    assert {*never_tomorrow, "FermataRedisAway"} <= pages


def test_every_panel_of_the_dashboard_is_one_of_its_own() -> None:
    """By its id and its title."""
    shown = panels()
    assert len({panel["id"] for panel in shown}) == len({panel["title"] for panel in shown}) == len(shown) > 10


@dataclass(frozen=True)
class Case:
    """What is told, in steps of half a minute, and what an alert says of it at `minutes`; nothing while `silent`."""

    alert: str
    series: Mapping[str, str]
    minutes: float
    summary: str
    silent: float
    labels: Mapping[str, str] = field(default_factory=dict)


#: Of each alert one story in which it comes, and the last minute at which it has not come yet.
CASES = [
    Case(
        "FermataLedgerImbalance",
        {
            'fermata_books_ledger_imbalance{instance="a"}': "0x4 5x10",
            'fermata_books_ledger_imbalance{instance="b"}': "0x14",
        },
        5,
        "Lots hold 5 credits more than reservations do: it must be 0",
        silent=4,
    ),
    Case(
        "FermataLedgerImbalance",
        {"fermata_books_ledger_imbalance": "0x4 -3x10"},
        5,
        "Lots hold -3 credits more than reservations do: it must be 0",
        silent=4,
    ),
    Case(
        "FermataNoScheduler",
        {"fermata_books_dispatch_age_seconds": "0+30x10"},
        3,
        "No scheduler gives a sign, for 3m 0s: no further job will start",
        silent=2,
    ),
    Case(
        "FermataNoScheduler",
        {"fermata_books_dispatch_age_seconds": "2x3 _x10"},
        10,
        "No scheduler gives a sign: no further job will start",
        silent=5,
    ),
    Case(
        "FermataBooksAway",
        {'fermata_books_up{instance="a"}': "1x3 0x10", 'fermata_books_up{instance="b"}': "1x5 0x8"},
        4,
        "PostgreSQL does not answer: jobs wait, nothing is lost",
        silent=3.5,
    ),
    Case(
        "FermataRedisAway",
        {
            'fermata_books_hints_age_seconds{instance="a"}': "4x2 10+30x10",
            'fermata_books_hints_age_seconds{instance="b"}': "4x2 10+30x10",
            "fermata_books_dispatch_age_seconds": "4x14",
        },
        3,
        "No hint has reached Redis for 1m 40s: no further job will start",
        silent=2.5,
    ),
    Case(
        "FermataNoApi",
        {'fermata_books_processes{process="api"}': "1x3 0x10", 'fermata_books_processes{process="worker"}': "2x13"},
        4,
        "No API process is alive",
        silent=3.5,
    ),
    Case(
        "FermataQueueUnserved",
        {
            'fermata_books_jobs{queue="songs",where="ready"}': "0x3 7x10",
            'fermata_books_slots{queue="songs"}': "0x13",
            'fermata_books_jobs{queue="stems",where="ready"}': "7x13",
            'fermata_books_slots{queue="stems"}': "4x13",
            # Somebody stopped its workers after a pause.
            'fermata_books_jobs{queue="voices",where="ready"}': "7x13",
            'fermata_books_slots{queue="voices"}': "0x13",
            'fermata_books_paused{queue="voices"}': "1x13",
            'fermata_books_paused{queue="songs"}': "0x13",
        },
        4,
        "songs has jobs ready and no living worker",
        silent=3.5,
        labels={"queue": "songs"},
    ),
    Case(
        "FermataQueueOld",
        {
            'fermata_books_oldest_seconds{queue="songs"}': "900x3 930x20",
            'fermata_books_paused{queue="songs"}': "0x23",
            'fermata_books_oldest_seconds{queue="voices"}': "930x23",
            'fermata_books_paused{queue="voices"}': "1x23",
        },
        7,
        "The oldest job of songs could have run for 15m 30s",
        silent=6.5,
        labels={"queue": "songs"},
    ),
    Case(
        "FermataQueuePaused",
        {
            'fermata_books_paused{queue="songs"}': "0x3 1x200",
            'fermata_books_jobs{queue="songs",where="blocked"}': "2x203",
            'fermata_books_paused{queue="empty"}': "1x203",
            'fermata_books_jobs{queue="empty",where="blocked"}': "0x203",
            'fermata_books_paused{queue="stems"}': "0x203",
            'fermata_books_jobs{queue="stems",where="blocked"}': "2x203",
        },
        62,
        "songs has been paused for an hour, and its jobs wait",
        silent=61,
        labels={"queue": "songs"},
    ),
    Case(
        "FermataJobsFail",
        {
            'fermata_jobs_ended_total{kind="generation",state="succeeded",reason="succeeded"}': "0+3x60",
            'fermata_jobs_ended_total{kind="generation",state="failed",reason="engine_error"}': "0+1x60",
            'fermata_jobs_ended_total{kind="stem_split",state="succeeded",reason="succeeded"}': "0+9x60",
            'fermata_jobs_ended_total{kind="stem_split",state="failed",reason="engine_error"}': "0+1x60",
        },
        12,
        "25% of generation jobs fail",
        silent=10,
        labels={"kind": "generation"},
    ),
    Case(
        "FermataLeasesExpire",
        {"fermata_leases_expired_total": "0x20 0+1x40"},
        25,
        "20 leases lapsed within 10 minutes: workers die or stand still",
        silent=11.5,
    ),
    Case(
        "FermataSettlesFenced",
        {
            'fermata_settles_fenced_total{kind="generation",instance="a"}': "0x20 0+1x40",
            'fermata_settles_fenced_total{kind="generation",instance="b"}': "0x20 0+1x40",
        },
        25,
        "40 runs were thrown away within 10 minutes: their jobs were another's by then",
        silent=11,
    ),
    Case(
        "FermataEventLoopLate",
        {
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="a",le="0.5"}': "0+1x40",
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="a",le="2"}': "0+2x40",
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="a",le="+Inf"}': "0+2x40",
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="b",le="0.5"}': "0+2x40",
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="b",le="2"}': "0+2x40",
            'fermata_event_loop_lag_seconds_bucket{job="fermata",instance="b",le="+Inf"}': "0+2x40",
        },
        6,
        "The event loop of a is late: its machine is full, or something blocks it",
        silent=5,
        labels={"job": "fermata", "instance": "a"},
    ),
    Case(
        "FermataDiskFull",
        {
            'fermata_artifact_free_bytes{instance="a"}': "5000000000x3 1073741824x20",
            'fermata_artifact_free_bytes{instance="b"}': "9e9x23",
        },
        7,
        "1GiB are left for audio",
        silent=6.5,
    ),
    Case(
        "FermataAuditFound",
        {"fermata_books_audit_violations": "0x3 2x10"},
        2,
        "The last audit found 2 violations: it must be 0",
        silent=1.5,
    ),
    Case(
        "FermataWebhooksDead",
        {"fermata_books_webhooks_dead": "1x120 4x200"},
        90,
        "3 events were given up within the hour: an endpoint does not take them",
        silent=60,
    ),
    Case(
        "FermataRefusals",
        {
            'fermata_submits_total{kind="generation",answer="stored"}': "0+1x80",
            'fermata_submits_total{kind="generation",answer="insufficient_credits"}': "0+3x80",
            'fermata_submits_total{kind="stem_split",answer="stored"}': "0+3x80",
            'fermata_submits_total{kind="stem_split",answer="validation"}': "0+1x80",
        },
        20,
        "75% of the submits of generation are answered insufficient_credits",
        silent=15,
        labels={"kind": "generation", "answer": "insufficient_credits"},
    ),
]


def test_every_alert_has_a_story() -> None:
    """One that no test has seen come may never come."""
    assert {str(rule["alert"]) for rule in rules()} == {case.alert for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_comes_when_it_should_and_not_before(case: Case, tmp_path: Path) -> None:
    """As Prometheus itself works it out, with the words that a person is then shown."""
    rule = next(rule for rule in rules() if rule["alert"] == case.alert)
    act = rule["annotations"]["do"]
    for name, value in case.labels.items():
        act = act.replace(f"{{{{ $labels.{name} }}}}", value)
    told = {"summary": case.summary, "do": act}
    alert = {"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": told}
    story = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": _time(case.silent), "alertname": case.alert, "exp_alerts": []},
            {"eval_time": _time(case.minutes), "alertname": case.alert, "exp_alerts": [alert]},
        ],
    }
    _prometheus_agrees(tmp_path, story)


#: What is told while one part is away, and the only alert of all that then comes.
OUTAGES = {
    "FermataBooksAway": {
        "fermata_books_up": "1x3 0x30",
        "fermata_books_dispatch_age_seconds": "2x3 _x30",
        "fermata_books_hints_age_seconds": "2x3 _x30",
    },
    "FermataNoScheduler": {
        "fermata_books_up": "1x33",
        "fermata_books_dispatch_age_seconds": "2x3 10+30x30",
        "fermata_books_hints_age_seconds": "2x3 10+30x30",
    },
    "FermataRedisAway": {
        "fermata_books_up": "1x33",
        "fermata_books_dispatch_age_seconds": "2x33",
        "fermata_books_hints_age_seconds": "2x3 10+30x30",
    },
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_one_outage_pages_once(outage: str, tmp_path: Path) -> None:
    """Two pages for one cause send the second person after a part that works."""
    others = [name for name in OUTAGES if name != outage]
    quiet = [
        {"eval_time": f"{30 * step}s", "alertname": name, "exp_alerts": []} for name in others for step in range(33)
    ]
    series = [{"series": name, "values": values} for name, values in OUTAGES[outage].items()]
    _prometheus_agrees(tmp_path, {"interval": "30s", "input_series": series, "alert_rule_test": quiet})


def test_workers_are_asked_for_by_what_waits(tmp_path: Path) -> None:
    """The example's first query is the age of the oldest; its second the seconds of work that are queued.

    40 jobs are ready, and those of the last hour took 12 s each; every process tells the same of the books.
    """
    series = {
        'fermata_books_oldest_seconds{queue="generation",instance="a"}': "90x120",
        'fermata_books_oldest_seconds{queue="generation",instance="b"}': "90x120",
        'fermata_books_oldest_seconds{queue="stem_split",instance="a"}': "900x120",
        'fermata_books_jobs{queue="generation",where="ready",instance="a"}': "40x120",
        'fermata_books_jobs{queue="generation",where="ready",instance="b"}': "40x120",
        'fermata_books_jobs{queue="generation",where="later",instance="a"}': "9x120",
        'fermata_job_run_seconds_sum{kind="generation",instance="w1"}': "0+20x120",
        'fermata_job_run_seconds_count{kind="generation",instance="w1"}': "0+2x120",
        'fermata_job_run_seconds_sum{kind="generation",instance="w2"}': "0+28x120",
        'fermata_job_run_seconds_count{kind="generation",instance="w2"}': "0+2x120",
        'fermata_job_run_seconds_sum{kind="stem_split",instance="w1"}': "0+999x120",
        'fermata_job_run_seconds_count{kind="stem_split",instance="w1"}': "0+1x120",
    }
    answers = [90, 480]
    story = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": "60m", "exp_samples": [{"labels": "{}", "value": answer}]}
            for query, answer in zip(autoscaling(), answers, strict=True)
        ],
    }
    _prometheus_agrees(tmp_path, story)


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    """Alerts as they are; those of the dashboard and of the example as if they were rules, too."""
    recorded = [{"record": f"q:{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    found = _promtool("check", "rules", str(DEPLOY / "alerts.yml"), str(path))
    assert f"{len(rules())} rules found" in found
    assert f"{len(recorded)} rules found" in found


def test_the_example_scrapes_every_process(tmp_path: Path) -> None:
    """Prometheus takes DEPLOY's configuration as it stands, and an API is a target: it alone counts submits."""
    documents = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "DEPLOY.md").read_text(), re.S)
    (example,) = (one for one in documents if "scrape_configs" in one)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    path = tmp_path / "prometheus.yml"
    path.write_text(example)
    _promtool("check", "config", str(path))
    (scrape,) = yaml.safe_load(example)["scrape_configs"]
    targets = [target for group in scrape["static_configs"] for target in group["targets"]]
    assert {"api", "worker", "scheduler"} == {target.partition("-")[0] for target in targets}
    assert all(9500 <= int(target.rpartition(":")[2]) < 9500 + PORTS for target in targets)


def _time(minutes: float) -> str:
    return f"{round(60 * minutes)}s"


def _prometheus_agrees(folder: Path, story: Mapping[str, Any]) -> None:
    path = folder / "story.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(DEPLOY / "alerts.yml")], "evaluation_interval": "30s", "tests": [story]})
    )
    _promtool("test", "rules", str(path))


def _promtool(*arguments: str) -> str:
    """What Prometheus' own tool says; `.ci/run` installs it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    command: Sequence[str] = [promtool, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 0 == found.returncode, found.stdout + found.stderr
    return found.stdout
