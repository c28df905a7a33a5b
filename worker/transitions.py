"""What became of jobs, told once it is committed: one log line for each step of a job, whoever made it.

A worker tells its claims, runs and settles as spans itself (`runner.py`); of what others do, and of jobs that a claim
did not start, the span is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from worker import tracing
from worker.credits.page import Job, JobChange, Page
from worker.credits.states import JobState

log = structlog.get_logger(__name__)

#: Ends that are none of a job's doing what it was asked for.
UNSUCCESSFUL = frozenset({JobState.FAILED, JobState.REFUSED})


@dataclass(slots=True)
class Transitions:
    """Tells of the pages of one process. `runs_jobs`: it is a worker. `counts`: its metrics, once it has some."""

    runs_jobs: bool = False
    counts: Callable[[Page], None] = lambda page: None

    def tell(self, page: Page) -> None:
        """Every step that the page has taken. Raises nothing: what is told has been committed."""
        try:
            self._tell(page)
            self.counts(page)
        except Exception:
            log.exception("steps of jobs were not told", account_id=page.account_id)

    def _tell(self, page: Page) -> None:
        writes = page.writes
        for row in writes.live:
            log.info("running", attempt=row.job.attempt, held=row.job.quoted, **names(page.account_id, row.job))
        endings = {attempt.job_id: attempt.ending for attempt in writes.attempts}
        for change in writes.jobs:
            about = _about(change, endings.get(change.job.job_id))
            log.info(_word(change), attempt=change.job.attempt, **about, **names(page.account_id, change.job))
            if tracing.is_on() and not (self.runs_jobs and change.job.state is JobState.RUNNING):
                self._trace(page.account_id, change, about)
        for job_id, _ in writes.cancel_asked:
            log.info("cancel asked", attempt=page.jobs[job_id].attempt, **names(page.account_id, page.jobs[job_id]))

    def _trace(self, account_id: str, change: JobChange, about: dict[str, Any]) -> None:
        job = change.job
        if job.traceparent is None:
            return
        facts = {"job_id": str(job.job_id), "account_id": account_id, "attempt": job.attempt, **about}
        with tracing.span(self._name(change), job.traceparent, facts) as span:
            if change.state in UNSUCCESSFUL:
                span.failed(str(change.reason))

    def _name(self, change: JobChange) -> str:
        match change.job.state:
            case JobState.RUNNING:
                return "settle"
            case JobState.WAITING if not change.ended:
                return "wake"
            case _:
                return "claim" if self.runs_jobs or change.state is JobState.WAITING else "end"


def names(account_id: str, job: Job) -> dict[str, str]:
    """What a line names its job by."""
    traced = tracing.trace_id_of(job.traceparent)
    return {
        "job_id": str(job.job_id),
        "account_id": account_id,
        **({"trace_id": traced} if traced is not None else {}),
    }


def _word(change: JobChange) -> str:
    if change.ended:
        return "ended"
    if change.state is JobState.WAITING:
        return "waiting for credits"
    return "queued again" if change.job.state is JobState.RUNNING else "woken"


def _about(change: JobChange, ending: str | None) -> dict[str, Any]:
    if change.ended:
        return {"state": str(change.state), "reason": str(change.reason), "charged": change.charged or 0}
    return {"reason": str(ending)} if ending is not None else {}
