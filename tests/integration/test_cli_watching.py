"""`queues --watch` and `jobs tail` as people have them: on a terminal, in a pipe, and when a server goes away."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from tests.integration.books import Store, opened
from tests.integration.cli_support import ROOT, run_command
from tests.integration.proxy import wired
from tests.servers import Database
from tests.terminal import Terminal
from worker.cli import queues_shown
from worker.store.ops import Controls, Scope
from worker.store.workers import WorkerCard, Workers

CTRL_C = b"\x03"


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """Ada, who has a hundred credits and one job that is ready."""
    async with opened(database) as made:
        await made.account("ada", 100)
        await made.queued("ada")
        yield made


@contextmanager
def a_terminal(environment: dict[str, str], *arguments: str, columns: int = 200) -> Iterator[Terminal]:
    terminal = Terminal(arguments, environment, columns)
    try:
        yield terminal
    finally:
        terminal.close()


def line_of(screen: str, first: str) -> list[str]:
    """The words of the screen's line that begins with this one."""
    return next((line.split() for line in screen.splitlines() if line.split()[:1] == [first]), [])


def queue_on(terminal: Terminal) -> list[str]:
    """The queue's name and its numbers of ready, later, blocked, parked and running jobs, on the last whole screen."""
    return line_of(terminal.screens[-2], "generation")[:6] if len(terminal.screens) > 1 else []


async def test_the_overview_moves_on_a_terminal_until_ctrl_c(store: Store, environment: dict[str, str]) -> None:
    """Figures as they stand, drawn anew each second, changed when a job moves; Ctrl-C leaves the last state and 0."""
    assert 1.0 == queues_shown._WATCH_SECONDS
    with a_terminal(environment, "queues", "--watch") as terminal:
        await terminal.until(lambda: queue_on(terminal) == ["generation", "1", "0", "0", "0", "0"], "one job is ready")
        assert "Nothing is running although 1 job could" in terminal.screens[-2]
        drawn = len(terminal.screens)
        await terminal.until(lambda: len(terminal.screens) > drawn + 1, "it is drawn anew though nothing moved")
        claimed = await store.running("ada")
        await terminal.until(lambda: queue_on(terminal) == ["generation", "1", "0", "0", "0", "1"], "one job runs")
        await terminal.until(lambda: "10 credits are held" in terminal.screens[-2], "its credits are held", 40)
        await store.settle("ada", claimed)
        await terminal.until(lambda: queue_on(terminal) == ["generation", "1", "0", "0", "0", "0"], "it has ended")
        terminal.press(CTRL_C)
        assert 0 == await terminal.ended()
        assert ["generation", "1", "0", "0", "0", "0"] == line_of(terminal.left, "generation")[:6]
        assert "Traceback" not in terminal.drawn
        assert "\x1b[?25h" in terminal.drawn  # the cursor is back


async def test_a_narrow_terminal_shows_whose_line_it_is(store: Store, environment: dict[str, str]) -> None:
    """Forty columns: no line is wider, and the queue's name is whole."""
    await Workers(store.engine).here(WorkerCard("worker-on-a-machine:4711", "host", 1, "1", ("generation",), 4))
    with a_terminal(environment, "queues", "--watch", columns=40) as terminal:
        await terminal.until(lambda: len(terminal.screens) > 2, "two screens")
        shown = [line.rstrip() for line in terminal.screens[-2].splitlines()]
        terminal.press(CTRL_C)
        assert 0 == await terminal.ended()
    assert all(len(line) <= 40 for line in shown)
    assert any(line.startswith("generation") for line in shown)


async def test_eighty_columns_have_a_line_for_each_queue(store: Store, environment: dict[str, str]) -> None:
    """Headings are whole words on one line, no line is wider, and a piped table still has every column."""
    controls = Controls(store.engine, ("stem_split", "vocal_conversion"))
    await controls.pause(Scope.QUEUE, "vocal_conversion", "a reason that is longer than any column could be", "kim")
    await Workers(store.engine).here(WorkerCard("worker-on-a-machine:4711", "host", 1, "1", ("generation",), 4))
    with a_terminal(environment, "queues", columns=80) as terminal:
        assert 0 == await terminal.ended()
        shown = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", terminal.drawn).splitlines()]
    assert all(len(line) <= 80 for line in shown)
    head = next(place for place, line in enumerate(shown) if line.startswith("queue "))
    heading = "queue ready later running slots oldest per min drained in state"
    assert heading == " ".join(shown[head].split())
    lines = [line.split() for line in shown[head + 1 : head + 3]]
    assert ["generation", "vocal_conversion"] == [line[0] for line in lines]
    assert ["runs", "paused"] == [line[-1] for line in lines]
    assert "" == shown[head + 3]
    piped = await asyncio.to_thread(run_command, environment, "queues")
    assert "per min" in piped.out
    assert "wait p50/p95" in piped.out


async def test_watching_needs_a_terminal(store: Store, environment: dict[str, str]) -> None:
    """In a pipe one clear sentence and 2; without --watch the same figures, once and uncut."""
    refused = await asyncio.to_thread(run_command, environment, "queues", "--watch")
    assert (2, "", "fermata: watch: needs a terminal\n") == (refused.code, refused.out, refused.err)
    piped = await asyncio.to_thread(run_command, environment, "queues")
    assert (0, "") == (piped.code, piped.err)
    assert ["generation", "1", "0", "0", "0", "0"] == line_of(piped.out, "generation")[:6]
    assert "\x1b" not in piped.out


async def test_the_overview_outlives_a_restart_of_postgresql(store: Store, environment: dict[str, str]) -> None:
    """It says that the figures are from before, and goes on by itself once the server is back."""
    async with wired(store.database) as wire:
        with a_terminal({**environment, "FERMATA_DATABASE_URL": wire.database.url}, "queues", "--watch") as terminal:
            await terminal.until(lambda: queue_on(terminal), "it shows the queue")
            await wire.close()
            await terminal.until(lambda: "PostgreSQL does not answer" in terminal.screens[-2], "it says so")
            assert queue_on(terminal) == ["generation", "1", "0", "0", "0", "0"]
            await wire.open_again()
            await store.running("ada")
            await terminal.until(lambda: queue_on(terminal) == ["generation", "1", "0", "0", "0", "1"], "it goes on")
            assert "PostgreSQL does not answer" not in terminal.screens[-2]
            terminal.press(CTRL_C)
            assert 0 == await terminal.ended()
            assert "Traceback" not in terminal.drawn


@pytest.mark.parametrize("verb", [("jobs", "tail")], ids=" ".join)
async def test_a_server_that_goes_away_is_told_in_one_message(
    store: Store, environment: dict[str, str], verb: tuple[str, ...]
) -> None:
    """Exit code 3, on the screen that was there before; no traceback."""
    async with wired(store.database) as wire:
        through = {**environment, "FERMATA_DATABASE_URL": wire.database.url}
        with a_terminal(through, *verb) as terminal:
            await told_of(terminal, store)
            await wire.close()
            assert 3 == await terminal.ended()
            said = [line for line in terminal.left.splitlines() if line.startswith("fermata: ")]
            assert 1 == sum("PostgreSQL is out of reach" in line for line in said)
            assert 1 == sum("is the server running where FERMATA_DATABASE_URL says?" in line for line in said)
            assert 2 == len(said)
            assert "Traceback" not in terminal.drawn


async def told_of(terminal: Terminal, store: Store) -> str:
    """A job that started once the tail was there to tell of it; its id."""
    begun = []

    async def begin() -> None:
        begun.append(str((await store.running("ada", 1)).job.job_id))

    while not any(job in terminal.drawn for job in begun):
        await begin()
        await asyncio.sleep(0.5)  # its first look tells nothing: go on until it has looked
    return begun[-1]


async def test_the_tail_tells_each_step_on_a_line_until_ctrl_c(store: Store, environment: dict[str, str]) -> None:
    """Who, what, when, by which worker or for which charge; then 0."""
    with a_terminal(environment, "jobs", "tail") as terminal:
        await told_of(terminal, store)
        claimed = await store.running("ada", 10)
        job = str(claimed.job.job_id)
        started = re.compile(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC  {job}  ada  generation  running  on w1\b")
        await terminal.until(lambda: started.search(terminal.drawn), "its start is told")
        await store.settle("ada", claimed, measured=7)
        ended = re.compile(rf"UTC  {job}  ada  generation  succeeded  succeeded, charged 7\b")
        await terminal.until(lambda: ended.search(terminal.drawn), "its end is told")
        terminal.press(CTRL_C)
        assert 0 == await terminal.ended()
        assert 2 == terminal.drawn.count(job)
        assert "Traceback" not in terminal.drawn


async def test_a_piped_tail_is_a_document_a_line_and_ends_with_its_reader(
    store: Store, environment: dict[str, str]
) -> None:
    """`jobs tail --json | head -1`: each line as it happens; when nobody reads on it ends without a complaint."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.cli", "jobs", "tail", "--json"),
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    reading = asyncio.create_task(child.stdout.readline())
    while not reading.done():  # its first look tells nothing: go on until it has looked
        await store.running("ada", 1)
        await asyncio.wait({reading}, timeout=0.5)
    step = json.loads(reading.result())
    seen = tuple(step[name] for name in ("account", "kind", "state", "worker"))
    assert ("ada", "generation", "running", "w1") == seen
    child._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # the reader goes away
    ending = asyncio.create_task(child.wait())
    while not ending.done():
        await store.running("ada", 1)
        await asyncio.wait({ending}, timeout=0.5)
    assert child.stderr is not None
    assert (0, b"") == (ending.result(), await child.stderr.read())
