"""Following a job to its end, for a person who waits. The job doesn't need us: whoever leaves can look again later."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from worker.cli.output import cell, say, visible, write

if TYPE_CHECKING:
    from worker.store.reads_jobs import JobShown
    from worker.store.reads_tail import Step, Tail

#: Seconds between looks of `jobs tail`.
_TAIL_SECONDS = 0.5


class Watch(Protocol):
    """Who is told of every look."""

    def __call__(self, job: JobShown, /) -> None: ...


def progress() -> AbstractContextManager[Watch]:
    """Shows progress on stderr: a bar on a terminal, else a line whenever something changed."""
    return _Bar() if sys.stderr.isatty() else nullcontext(_Lines())


def doing(job: JobShown) -> str:
    """What the job is at, in a few words."""
    if job.waiting_for is not None:
        return f"{job.state}, waits for {_WAITS_FOR[job.waiting_for]}"
    return f"{job.state}: {visible(job.stage)}" if job.stage else str(job.state)


#: As a person would say what `waiting_for` names.
_WAITS_FOR: Mapping[str, str] = {
    "run_at": "its own start time",
    "backoff": "its next try",
    "paused": "the end of a pause",
    "credits": "credits",
    "account_limit": "another job of its account to end",
    "queue_limit": "another job of its queue to end",
    "no_worker": "a worker that serves its queue",
    "slot": "a free slot",
    "not_dispatched": "the scheduler to dispatch it",
}


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def __call__(self, job: JobShown) -> None:
        if (line := f"job {job.id} {doing(job)}") != self._said:
            say(line)
            self._said = line


class _Bar:
    def __enter__(self) -> Watch:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("submitted", total=1.0)
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, job: JobShown) -> None:
        self._progress.update(self._task, description=doing(job), completed=job.progress)


async def follow(tail: Tail, seconds: float | None, *, as_json: bool) -> None:
    """Write each step of a job on a line of its own, until Ctrl-C, for so long, or as long as anybody reads."""
    ends = None if seconds is None else monotonic() + seconds
    try:
        while ends is None or monotonic() < ends:
            for step in await tail.steps():
                if not write(_step_as_json(step) if as_json else _step(step)):
                    return
            await asyncio.sleep(_TAIL_SECONDS)
    except asyncio.CancelledError:
        return  # Ctrl-C


def _step_as_json(step: Step) -> str:
    import msgspec

    return json.dumps(msgspec.to_builtins(step)) + "\n"


def _step(step: Step) -> str:
    more = f"  {step.reason}, charged {step.charged:,}" if step.charged is not None else f"  on {step.worker}"
    line = f"{cell(step.at)}  {step.job}  {step.account}  {step.kind}  {step.state}{more}"
    return f"{visible(line)}\n"
