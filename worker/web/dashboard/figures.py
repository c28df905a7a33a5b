"""What a look means, in figures and in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from worker.store.reads_overview import QueueTimes
from worker.store.reads_queues import QueueShown, WorkerState
from worker.web.dashboard.history import DAY, HOUR, MINUTE, Sums
from worker.web.dashboard.live import Look
from worker.web.dashboard.words import named, number, percent, span

#: A scheduler gives its sign every 10 s (`FERMATA_RENEW_SECONDS`).
DISPATCH_LATE_SECONDS = 45.0
#: A job that could have run for so long while slots were free was forgotten by somebody.
STUCK_SECONDS = 60.0
#: Of so many ended jobs at least, this share of failures is worth a word.
_FAILED_SHARE, _FAILED_OF = 0.2, 5
_RATE_SPAN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A line of the overview.

    `free`: slots of its living workers that nothing of any queue takes. `drains_seconds`: until all that could run or
    runs is done, at the pace of the last ten minutes; None while nothing says when: without a worker, or paused.
    """

    queue: QueueShown
    times: QueueTimes | None
    hour: Sums
    free: int
    per_minute: float
    drains_seconds: float | None

    @property
    def waiting(self) -> int:
        return self.queue.ready + self.queue.later + self.queue.blocked

    @property
    def forgotten(self) -> bool:
        """Whether a job could have started long ago: a slot is free, and no limit keeps it from being taken."""
        queue = self.queue
        below = queue.running_max is None or queue.running < queue.running_max
        return bool(queue.ready and self.free and below) and queue.oldest_seconds > STUCK_SECONDS


@dataclass(frozen=True, slots=True)
class Figures:
    """The overview. `tone`: good, warn or bad; `verdict`: the whole in one sentence."""

    tone: str
    verdict: str
    warnings: tuple[str, ...]
    queues: tuple[QueueFigures, ...]
    running: int
    slots: int
    ready: int
    held_back: int
    parked: int
    oldest_seconds: float | None
    hour: Sums
    hour_is_whole: bool
    day: Sums
    day_is_whole: bool
    held: int
    available: int
    workers_alive: int
    workers_lost: int


def figures_of(look: Look) -> Figures:
    """All figures of a look."""
    queues, workers, now = look.now.queues, look.now.workers, look.now.now
    history = look.history
    lines = tuple(_line(look, queue) for queue in queues)
    running, hour = sum(queue.running for queue in queues), history.sums(now, HOUR)
    warnings = (*_serious(look), *_warnings(look, lines))
    tone, verdict = _verdict(look, running, hour, serious=bool(tuple(_serious(look))), warned=bool(warnings))
    return Figures(
        tone=tone,
        verdict=verdict,
        warnings=warnings,
        queues=lines,
        running=running,
        slots=sum(worker.slots for worker in workers if worker.state is WorkerState.ALIVE),
        ready=sum(queue.ready for queue in queues),
        held_back=sum(queue.later + queue.blocked for queue in queues),
        parked=sum(queue.parked for queue in queues),
        oldest_seconds=max((queue.oldest_seconds for queue in queues if queue.ready), default=None),
        hour=hour,
        hour_is_whole=history.covers(now, HOUR),
        day=history.sums(now, DAY),
        day_is_whole=history.covers(now, DAY),
        held=look.slow.held,
        available=look.slow.available,
        workers_alive=sum(worker.state is WorkerState.ALIVE for worker in workers),
        workers_lost=sum(worker.state is WorkerState.LOST for worker in workers),
    )


def _line(look: Look, queue: QueueShown) -> QueueFigures:
    times = next((times for times in look.slow.times if times.queue == queue.queue), None)
    recent = look.history.sums(look.now.now, _RATE_SPAN, queue.queue)
    # The first look of a process has read a few minutes only.
    since = look.history.since or look.now.now
    span = min(_RATE_SPAN, max(MINUTE, look.now.now - since))
    per_minute = (recent.succeeded + recent.failed) / (span / MINUTE)
    left = queue.ready + queue.running
    drains = 60 * left / per_minute if left and per_minute and queue.workers and not queue.paused else None
    serving = (worker for worker in look.now.workers if queue.queue in worker.queues)
    # A worker of several queues has its slots once.
    free = sum(max(0, one.slots - one.running) for one in serving if one.state is WorkerState.ALIVE)
    return QueueFigures(queue, times, look.history.sums(look.now.now, HOUR, queue.queue), free, per_minute, drains)


def _serious(look: Look) -> Iterator[str]:
    """What keeps music from being made."""
    if look.away:
        yield "PostgreSQL does not answer: these figures are from before. Jobs wait, nothing is lost."
    dispatched = look.now.dispatch_seconds
    if dispatched is None:
        yield "No scheduler has ever run on this database: no job will start."
    elif dispatched > DISPATCH_LATE_SECONDS:
        yield f"No scheduler has given a sign for {span(dispatched)}: no further job will start."
    elif (hints := look.now.hints_seconds) is not None and hints > DISPATCH_LATE_SECONDS:
        yield f"No hint has reached Redis for {span(hints)}: no further job will start. `fermata doctor` says why."
    for queue in look.now.queues:
        if queue.ready and not queue.workers:
            yield f"{named(queue.queue)} has {_jobs(queue.ready)} ready and no living worker."


def _warnings(look: Look, lines: tuple[QueueFigures, ...]) -> Iterator[str]:
    for line in lines:
        queue = line.queue
        name = named(queue.queue)
        if queue.paused:
            why = f": {queue.pause_reason}" if queue.pause_reason else ""
            held = f" {_jobs(line.waiting)} wait{'s' if line.waiting == 1 else ''}." if line.waiting else ""
            yield f"{name} is paused{why}.{held}"
        elif line.forgotten:
            yield f"{name} has a job that could have started {span(queue.oldest_seconds)} ago; slots are free."
        ended = line.hour.succeeded + line.hour.failed
        if ended >= _FAILED_OF and line.hour.failed > _FAILED_SHARE * ended:
            yield f"{percent(line.hour.failed, ended)} of the last hour's {name} jobs failed ({line.hour.failed:,})."
    for kind in look.now.paused_kinds:
        yield f"All {named(kind)} jobs are paused by kind."
    if look.slow.paused_accounts:
        yield f"{number(look.slow.paused_accounts)} paused account{'s' if look.slow.paused_accounts > 1 else ''}."
    lost = sum(worker.state is WorkerState.LOST and worker.running > 0 for worker in look.now.workers)
    if lost:
        yield f"{lost} worker{'s' if lost > 1 else ''} went silent with jobs in hand: these are queued again."


def _verdict(look: Look, running: int, hour: Sums, *, serious: bool, warned: bool) -> tuple[str, str]:
    read = "" if look.history.covers(look.now.now, HOUR) else ", which is still being read"
    done = f"{number(hour.succeeded)} done in the last hour{read}"
    waiting = sum(queue.ready for queue in look.now.queues)
    held_back = sum(queue.later + queue.blocked for queue in look.now.queues)
    tone = "bad" if serious else "warn" if warned else "good"
    if running:
        return tone, f"Music is being made: {_jobs(running)} running, {number(waiting)} ready, {done}."
    if waiting:
        return tone, f"Nothing is running although {_jobs(waiting)} could: {done}."
    if held_back:
        are = "is" if held_back == 1 else "are"
        return tone, f"Nothing is running: no job is ready, {number(held_back)} {are} for later or blocked, {done}."
    return tone, f"Nothing to do: no job is ready, {done}."


def _jobs(count: int) -> str:
    return f"{count:,} job{'' if count == 1 else 's'}"
