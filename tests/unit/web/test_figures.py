"""What the overview says of a look: nothing that is not so, of pauses, limits, shared slots and forecasts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.store.reads_overview import EndedMinute, Now, Slow
from worker.store.reads_queues import QueueShown, WorkerShown, WorkerState
from worker.web.dashboard.figures import Figures, figures_of
from worker.web.dashboard.history import HOUR, MINUTE, History
from worker.web.dashboard.live import Look

NOON = datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)
#: A queue with two jobs that could have run for two minutes.
QUEUE = QueueShown(
    queue="generation",
    ready=2,
    later=0,
    blocked=0,
    parked=0,
    running=0,
    oldest_seconds=120.0,
    workers=1,
    slots=4,
    paused=False,
    pause_reason=None,
    running_max=None,
)
WORKER = WorkerShown("w1", "host", 1, "1", ("generation",), 4, 0, WorkerState.ALIVE, NOON, NOON)


def a_queue(**more: Any) -> QueueShown:
    return replace(QUEUE, **more)


def figures(*queues: QueueShown, workers: tuple[WorkerShown, ...] = (WORKER,), span: Any = HOUR) -> Figures:
    """Of a look at these, a scheduler at work; ten jobs of each queue ended in the last ten minutes, one a minute."""
    ended = [
        EndedMinute(NOON.replace(second=0) - back * MINUTE, queue.queue, "succeeded", 1, 1, 0)
        for queue in queues
        for back in range(10)
    ]
    history = History().with_ended(ended, NOON.replace(second=0) - span, NOON + MINUTE)
    return figures_of(Look(1, Now(NOON, queues, workers, 1.0, (), ()), Slow((), 0, 0, 0), history))


def test_a_job_that_was_forgotten_is_worth_a_word() -> None:
    """A slot is free, nothing keeps it, and a minute is over."""
    said = figures(a_queue()).warnings
    assert ("generation has a job that could have started 2 min ago; slots are free.",) == said


@pytest.mark.parametrize(
    ("queue", "workers"),
    [
        (a_queue(running=1, running_max=1), (replace(WORKER, running=1),)),
        (a_queue(), (replace(WORKER, queues=("generation", "null"), running=4),)),
        (a_queue(running=1), (replace(WORKER, running=4), replace(WORKER, worker="w2", state=WorkerState.LOST))),
        (a_queue(oldest_seconds=30.0), (WORKER,)),
    ],
    ids=["at its limit", "slots taken by another queue", "free ones of a lost worker only", "for half a minute"],
)
def test_a_job_that_can_not_start_yet_is_none_that_was_forgotten(
    queue: QueueShown, workers: tuple[WorkerShown, ...]
) -> None:
    """A limit that somebody set, and workers of several queues whose slots are all taken, are usual."""
    assert () == figures(queue, workers=workers).warnings


@pytest.mark.parametrize(
    ("queue", "seconds"),
    [
        (a_queue(ready=9, running=1), 600.0),
        (a_queue(ready=9, running=1, later=50, blocked=50), 600.0),
        (a_queue(ready=0, oldest_seconds=0.0, later=1), None),
        (a_queue(ready=0, oldest_seconds=0.0, blocked=2, paused=True), None),
        (a_queue(ready=0, oldest_seconds=0.0, running=1, paused=True), None),
        (a_queue(workers=0, slots=0), None),
    ],
    ids=["ten at one a minute", "what can't run", "only later", "paused", "paused, one runs", "no worker"],
)
def test_a_forecast_is_of_what_could_run(queue: QueueShown, seconds: float | None) -> None:
    """What waits for tomorrow, for a person or for a worker is done nobody knows when."""
    assert pytest.approx(seconds) == figures(queue).queues[0].drains_seconds


def test_nothing_could_run_in_a_paused_queue() -> None:
    """Its jobs are blocked: the verdict says so rather than wonder."""
    said = figures(a_queue(ready=0, blocked=2, oldest_seconds=0.0, paused=True, pause_reason="GPU")).verdict
    assert "Nothing is running: no job is ready, 2 are for later or blocked, 10 done in the last hour." == said


@pytest.mark.parametrize(
    ("minutes", "end"), [(60, "10 done in the last hour."), (9, "10 done in the last hour, which is still being read.")]
)
def test_an_hour_that_is_not_all_there_is_not_said_to_be_whole(minutes: int, end: str) -> None:
    """A process that has just begun has read some minutes of it."""
    found = figures(a_queue(), span=minutes * MINUTE)
    assert (True, minutes == 60) == (found.verdict.endswith(end), found.hour_is_whole)
