"""The overview of the queues in a terminal: the same figures and the same words as the dashboard's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worker.cli import values
from worker.cli.output import length, pause_words, table, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

    from worker.cli.opening import Books
    from worker.store.ops import Pause
    from worker.web.dashboard.figures import Figures, QueueFigures
    from worker.web.dashboard.live import Live, Look

#: Wider than any table of ours: what it would need if it had all the room.
_ANY_WIDTH = 10_000
#: Seconds between looks of `queues --watch`.
_WATCH_SECONDS = 1.0


def live_over(books: Books) -> Live:
    """Looks at the overview, each one statement. The first, maybe the only one, reads the whole hour by its minutes."""
    from worker.store.reads_overview import OverviewReads
    from worker.web.dashboard.history import HOUR, History
    from worker.web.dashboard.live import Live

    return Live(OverviewReads(books.store.engine), history=History(first=HOUR))


async def watch(books: Books) -> None:
    """Show the overview on the whole terminal, anew each second, until Ctrl-C, also while PostgreSQL restarts."""
    from rich import live as rich_live
    from rich.console import Console, Group

    from worker.store.errors import LedgerUnavailable, LedgerUnfit

    if not sys.stdout.isatty():
        raise values.Misused("watch", "needs a terminal")
    looks = live_over(books)
    try:
        with rich_live.Live(console=Console(), screen=True, auto_refresh=False) as screen:
            look = await looks.latest()
            while True:
                screen.update(Group(*shown(look)), refresh=True)
                await asyncio.sleep(_WATCH_SECONDS)
                try:
                    look = await looks.latest()
                except LedgerUnfit:
                    raise  # looking again mends no right and no schema
                except LedgerUnavailable:
                    look = replace(look, away=True)  # a restart is no reason to stop looking: the screen says so
    except asyncio.CancelledError:
        return  # Ctrl-C: the last state stays on the screen


def document(look: Look, pauses: Sequence[Pause]) -> dict[str, Any]:
    """The overview as a document: the queues and workers as ever, and what they come to."""
    from worker.web.dashboard.figures import figures_of

    figures = figures_of(look)
    return {
        "queues": look.now.queues,
        "workers": look.now.workers,
        "verdict": figures.verdict,
        "warnings": figures.warnings,
        "pauses": pauses,
        "credits": {"held": figures.held, "available": figures.available},
        "pace": [
            {"queue": line.queue.queue, "per_minute": line.per_minute, "drains_seconds": line.drains_seconds}
            | {name: getattr(line.times, name, None) for name in ("wait_p50", "wait_p95", "run_p50", "run_p95")}
            for line in figures.queues
        ],
    }


def shown(look: Look, pauses: Sequence[Pause] = ()) -> Iterator[RenderableType]:
    """The verdict, what is worth a word, the queues, the workers."""
    from worker.web.dashboard.figures import figures_of

    figures = figures_of(look)
    yield figures.verdict
    yield from (f"! {warning}" for warning in figures.warnings)
    yield from (f"  paused: {visible(pause_words(pause))}" for pause in pauses)
    yield ""
    yield _ByWidth(_queues(figures), _few_of_queues(figures))
    yield f"\n{figures.held:,} credits are held, {figures.available:,} could be"
    if look.now.workers:
        yield ""
        yield _ByWidth(_workers(look), _few_of_workers(look))


@dataclass(frozen=True, slots=True)
class _ByWidth:
    """A table with all its columns where there is room for them, else with those that matter first."""

    wide: Table
    narrow: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        needed = console.measure(self.wide, options=options.update(max_width=_ANY_WIDTH)).maximum
        yield self.wide if needed <= options.max_width else self.narrow


def _workers(look: Look) -> Table:
    return table(
        ["worker", "state", "queues", "running", "slots", "version", "seen"],
        [(w.worker, w.state, ", ".join(w.queues), w.running, w.slots, w.version, w.seen_at) for w in look.now.workers],
        right=["running", "slots"],
    )


def _few_of_workers(look: Look) -> Table:
    return table(
        ["worker", "state", "running", "slots", "queues"],
        [(w.worker, w.state, w.running, w.slots, ", ".join(w.queues)) for w in look.now.workers],
        right=["running", "slots"],
    )


def _few_of_queues(figures: Figures) -> Table:
    numbers = ["ready", "later", "running", "slots", "oldest", "per min", "drained in"]
    rows = [
        (
            *(line.queue.queue, line.queue.ready, line.queue.later + line.queue.blocked + line.queue.parked),
            *(line.queue.running, line.queue.slots, length(line.queue.oldest_seconds) if line.queue.ready else None),
            *(_pace(line), None if line.drains_seconds is None else length(line.drains_seconds)),
            "paused" if line.queue.paused else "runs" if line.queue.workers else "no worker",
        )
        for line in figures.queues
    ]
    made = table(["queue", *numbers, "state"], rows, right=numbers)
    made.padding = (0, 1, 0, 0)
    return made


def _pace(line: QueueFigures) -> float | None:
    return line.per_minute or None


def _queues(figures: Figures) -> Table:
    numbers = ["ready", "later", "blocked", "parked", "running", "oldest", "wait p50/p95", "run p50/p95", "per min"]
    numbers += ["drained in", "workers", "slots", "limit"]
    return table(["queue", *numbers, "state"], [_line(line) for line in figures.queues], right=numbers)


def _line(line: QueueFigures) -> tuple[object, ...]:
    queue, times = line.queue, line.times
    paused = f"paused: {queue.pause_reason or 'no reason given'}"
    return (
        *(queue.queue, queue.ready, queue.later, queue.blocked, queue.parked, queue.running),
        length(queue.oldest_seconds) if queue.ready else None,
        None if times is None else f"{length(times.wait_p50)} / {length(times.wait_p95)}",
        None if times is None else f"{length(times.run_p50)} / {length(times.run_p95)}",
        *(_pace(line), None if line.drains_seconds is None else length(line.drains_seconds)),
        *(queue.workers, queue.slots, queue.running_max),
        paused if queue.paused else "runs" if queue.workers else "no worker",
    )
