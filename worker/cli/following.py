"""Following a job to its end, for a person who waits. The job doesn't need us: whoever leaves can look again later."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from worker.cli.output import say, visible

if TYPE_CHECKING:
    from worker.store.reads_jobs import JobShown


class Watch(Protocol):
    """Who is told of every look."""

    def __call__(self, job: JobShown, /) -> None: ...


def progress() -> AbstractContextManager[Watch]:
    """Shows progress on stderr: a bar on a terminal, else a line whenever something changed."""
    return _Bar() if sys.stderr.isatty() else nullcontext(_Lines())


def doing(job: JobShown) -> str:
    """What the job is at, in a few words."""
    if job.waiting_for is not None:
        return f"{job.state}, waits for {job.waiting_for.replace('_', ' ')}"
    return f"{job.state}: {visible(job.stage)}" if job.stage else str(job.state)


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
