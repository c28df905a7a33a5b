"""A run in a child process: what it reports, how it ends, and that the worker outlives each of its endings."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tasks.engines import child
from tasks.engines.child import Restraints, close_children, run_in_child
from tasks.kind import EngineCrashed, EngineFailure, EngineUnavailable, InvalidInput, OutOfMemory, Output, RunLimits
from tests.unit.tasks import misbehaviour
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.processes import children, descriptors, ends

LIMITS = RunLimits(memory_bytes=1024**3)


@pytest.fixture
async def context(tmp_path: Path) -> AsyncIterator[Recorder]:
    yield Recorder(tmp_path)
    await close_children()


async def run(context: Recorder, function: Callable[..., Any], **arguments: Any) -> Any:
    return await run_in_child(function, arguments, context, LIMITS)


async def test_a_function_runs_in_another_process_and_returns(context: Recorder) -> None:
    """It gets its arguments, runs in the attempt's folder, and its answer comes back."""
    answer = await run(context, misbehaviour.echo, words="π", number=3)
    assert (answer["words"], answer["number"], answer["cwd"]) == ("π", 3, str(context.workdir))
    assert answer["pid"] != os.getpid()


async def test_a_child_stays_warm_after_a_good_run(context: Recorder) -> None:
    """Importing engines costs a second, so the next run finds the same process."""
    first, second = [await run(context, misbehaviour.echo) for _ in range(2)]
    assert first["pid"] == second["pid"]


async def test_runs_at_once_have_a_child_each(context: Recorder) -> None:
    """Two runs of one worker never share a process."""
    answers = await asyncio.gather(*(run(context, misbehaviour.echo) for _ in range(2)))
    assert answers[0]["pid"] != answers[1]["pid"]


async def test_a_child_inherits_neither_sockets_nor_secrets(
    context: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It holds its own socket and nothing else of the worker's, not even an inheritable descriptor."""
    monkeypatch.setenv("FERMATA_DATABASE_URL", "postgresql://secret")
    with (tmp_path / "inheritable").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        seen = await run(context, misbehaviour.surroundings)
    held = sorted(seen["descriptors"].values())
    assert len([one for one in held if one.startswith("socket:")]) == 1
    assert str(tmp_path / "inheritable") not in held
    assert "secret" not in str(seen["environment"])
    assert seen["group"] == seen["pid"]


async def test_numeric_libraries_get_one_thread(context: Recorder) -> None:
    """Two runs on two cores don't fight over them."""
    assert await run(context, misbehaviour.threads) == 0


async def test_each_finished_output_is_counted_before_a_later_one_can_fail(context: Recorder) -> None:
    """The child waits until an output is counted, so a crash right behind it takes nothing back."""
    with pytest.raises(EngineCrashed, match="SIGABRT"):
        await run(context, misbehaviour.finish_then_abort, outputs=3)
    assert [output.name for output in context.outputs] == ["song-0", "song-1", "song-2"]
    assert context.outputs[0].path.read_bytes() == b"sound"


async def test_a_child_waits_until_an_output_is_counted(context: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """`finished` returns in the child only after it returned in the worker: nothing later can come before it."""

    async def count(output: Output) -> None:
        await asyncio.sleep(0.02)  # a child that didn't wait would have gone on by now
        output.path.with_suffix(".counted").touch()

    monkeypatch.setattr(context, "finished", count)
    assert await run(context, misbehaviour.finish_and_look, outputs=3) == [True, True, True]


async def test_an_output_that_the_worker_cant_count_ends_the_run(context: Recorder) -> None:
    """The worker's own error (a lost lease) comes out unchanged, and the child is ended."""
    earlier = children()  # whatever other tests of this process have left to be reaped
    ours: set[int] = set()

    async def lost(output: object) -> None:
        ours.update(set(children()) - set(earlier))
        raise ConnectionResetError("lease lost")

    context.finished = lost  # type: ignore[method-assign] # the refusal of this one test
    with pytest.raises(ConnectionResetError, match="lease lost"):
        await run(context, misbehaviour.finish_then_abort, outputs=1)
    assert 1 == len(ours)
    assert not ours & set(children())


async def test_an_output_outside_the_attempts_folder_is_not_taken(context: Recorder, tmp_path: Path) -> None:
    """A child that was taken over by a file can't hand over somebody else's."""
    context.workdir = tmp_path / "attempt"
    context.workdir.mkdir()
    with pytest.raises(EngineFailure, match="outside its folder"):
        await run(context, misbehaviour.finish_outside, path=str(tmp_path / "elsewhere.wav"))
    assert context.outputs == []


async def test_a_child_that_holds_too_much_is_ended(context: Recorder) -> None:
    """Where its address space says nothing: as out of memory, and the next run gets a fresh one."""
    limits = RunLimits(memory_bytes=2**46)
    bound = 128 * 1024**2
    before = (await run_in_child(misbehaviour.echo, {}, context, limits, resident_bytes=bound))["pid"]
    with pytest.raises(OutOfMemory, match=r"^the engine needed more than its 128 MiB of memory$"):
        async with asyncio.timeout(20):
            await run_in_child(misbehaviour.hold_memory, {"megabytes": 200}, context, limits, resident_bytes=bound)
    after = (await run_in_child(misbehaviour.echo, {}, context, limits, resident_bytes=bound))["pid"]
    assert before != after


async def test_what_a_childs_programs_hold_counts_too(context: Recorder) -> None:
    """Given one that starts a program and lets that hold what it may not, then both are ended."""
    limits, given = RunLimits(memory_bytes=2**46), {"megabytes": 200}
    with pytest.raises(OutOfMemory, match=r"^the engine needed more than its 128 MiB of memory$"):
        async with asyncio.timeout(20):
            await run_in_child(
                misbehaviour.hold_memory_in_a_program, given, context, limits, resident_bytes=128 * 1024**2
            )
    assert ends(int(context.told[-1][1]), seconds=10)
    assert children() == []


async def test_what_earlier_runs_left_costs_no_later_one_its_attempt(context: Recorder) -> None:
    """Given a model that may hold much and stays loaded, then a run that may hold less has a fresh process."""
    limits, bound = RunLimits(memory_bytes=2**46), 128 * 1024**2
    large = await run_in_child(misbehaviour.keep_memory, {"megabytes": 200}, context, limits, resident_bytes=4 * bound)
    small = await run_in_child(misbehaviour.echo, {}, context, limits, resident_bytes=bound)
    again = await run_in_child(misbehaviour.echo, {}, context, limits, resident_bytes=bound)
    assert large != small["pid"] == again["pid"]
    assert [small["pid"]] == children()


async def test_a_name_is_of_one_process(context: Recorder) -> None:
    """Given two models of one device that want unlike threads, then the first process is gone when the second is."""
    one, other = Restraints(name="cuda", threads=1), Restraints(name="cuda", threads=2)
    first = (await run_in_child(misbehaviour.echo, {}, context, LIMITS, one))["pid"]
    second = (await run_in_child(misbehaviour.echo, {}, context, LIMITS, other))["pid"]
    assert first != second
    assert [second] == children()
    await run_in_child(misbehaviour.echo, {}, context, LIMITS, Restraints(threads=2))
    assert 2 == len(children())  # without a name nobody minds


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (misbehaviour.refuse, InvalidInput, "voice: there is no voice in it"),
        (misbehaviour.be_unavailable, EngineUnavailable, "busy"),
        (misbehaviour.fail_with_a_secret, EngineFailure, r"the engine failed unexpectedly \(KeyError\)"),
        (misbehaviour.return_what_is_no_json, EngineFailure, r"the engine failed unexpectedly \(TypeError\)"),
        (misbehaviour.leave, EngineFailure, r"the engine failed unexpectedly \(SystemExit\)"),
        (misbehaviour.segfault, EngineCrashed, r"the engine's process died \(SIGSEGV\)"),
        (misbehaviour.throw_bad_alloc, OutOfMemory, "the engine needed more than its 1024 MiB of memory"),
    ],
)
async def test_every_ending_has_its_error(
    context: Recorder, function: Callable[..., Any], error: type[Exception], message: str
) -> None:
    """The worker can tell a customer's fault from ours, and the next run works as if nothing had been."""
    with pytest.raises(error, match=f"^{message}$") as raised:
        await run(context, function)
    assert "secret" not in str(raised.value)
    assert type(raised.value) is error
    assert (await run(context, misbehaviour.echo, n=1))["n"] == 1


async def test_an_unknown_name_is_our_failure(context: Recorder) -> None:
    """A misspelt function ends the run, not the worker."""
    with pytest.raises(EngineFailure, match="AttributeError"):
        await run_in_child("tasks.kind:nothing_such", {}, context, LIMITS)


async def test_a_local_function_is_refused_before_a_child_starts(context: Recorder) -> None:
    """Only what a fresh Python can import by name can run there."""
    with pytest.raises(TypeError, match="top of a module"):
        await run_in_child(lambda report: None, {}, context, LIMITS)


async def test_the_known_crash_of_ogg_written_at_once_costs_one_attempt(context: Recorder) -> None:
    """libsndfile 1.2 segfaults on a minute of Vorbis in one call: one attempt is lost, the next one works.

    If this stops crashing, libsndfile was mended and the rule of writing in blocks can be thought over.
    """
    with pytest.raises(EngineCrashed, match="SIGSEGV"):
        await run(context, misbehaviour.write_a_minute_of_ogg_at_once)
    assert (await run(context, misbehaviour.echo, n=1))["n"] == 1


async def test_our_writer_writes_the_same_sound_without_a_crash(context: Recorder) -> None:
    """In blocks, the sound that segfaults in one call comes out whole."""
    await run(context, misbehaviour.write_a_minute_and_a_half, audio_format="ogg")
    assert context.outputs[0].info.frames == 90 * 44_100


@pytest.mark.parametrize("function", [misbehaviour.take_memory, misbehaviour.take_memory_in_numpy])
async def test_memory_is_limited(context: Recorder, function: Callable[..., Any]) -> None:
    """Taking more than the limit is `OutOfMemory`; less is fine."""
    with pytest.raises(OutOfMemory, match="1024 MiB"):
        await run(context, function, megabytes=1100)
    assert await run(context, function, megabytes=50)


async def test_too_little_memory_to_load_an_engine_is_out_of_memory_too(context: Recorder) -> None:
    """A library that finds no room at import is not reported as a broken installation."""
    with pytest.raises(OutOfMemory):
        await run_in_child(
            misbehaviour.take_memory_in_numpy, {"megabytes": 1}, context, RunLimits(memory_bytes=80 * 1024**2)
        )


async def test_files_and_processor_time_are_limited(context: Recorder) -> None:
    """A run can't fill the disk with one file nor burn past its CPU seconds; a new run has its full share again."""
    restraints = Restraints(processor_seconds=1, file_bytes=1024**2)
    with pytest.raises(EngineFailure, match="OSError"):
        await run_in_child(misbehaviour.write_a_big_file, {"megabytes": 2}, context, LIMITS, restraints)
    with pytest.raises(EngineCrashed, match="SIGXCPU"):
        await run_in_child(misbehaviour.burn, {}, context, LIMITS, restraints)


async def test_cancelling_kills_the_child_and_its_descendants_at_once(context: Recorder) -> None:
    """Within a second of the cancel, usually milliseconds, nothing of the run is left, not even a zombie."""
    running = asyncio.create_task(run(context, misbehaviour.burn_with_a_descendant))
    await asyncio.wait_for(context.first_told.wait(), 20)
    engine, program = (int(pid) for pid in context.told[0][1].split())
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < 1
    assert engine not in children()
    assert ends(program, 1)


@pytest.mark.parametrize(
    ("function", "stays"), [(misbehaviour.end_when_asked, True), (misbehaviour.burn_with_a_descendant, False)]
)
async def test_a_run_may_be_asked_to_end_before_it_is_killed(
    context: Recorder, function: Callable[..., Any], stays: bool
) -> None:
    """What ends in time keeps its process, and with it what is loaded there; the rest is killed when time is up."""
    restraints = Restraints(stop_seconds=0.5)
    first = (await run_in_child(misbehaviour.echo, {}, context, LIMITS, restraints))["pid"]
    running = asyncio.create_task(run_in_child(function, {}, context, LIMITS, restraints))
    await asyncio.wait_for(context.first_told.wait(), 20)
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < 1.5
    (context.workdir / ".stop").unlink()
    second = (await run_in_child(misbehaviour.echo, {}, context, LIMITS, restraints))["pid"]
    assert stays is (first == second)


async def test_a_deadline_of_the_caller_ends_a_run(context: Recorder) -> None:
    """`asyncio.timeout` around a run is all that a time limit needs."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await run(context, misbehaviour.burn)
    assert children() == []


async def test_progress_is_kept_between_nothing_and_all(context: Recorder) -> None:
    """An engine's nonsense reaches nobody: fractions are clamped, stages clipped."""
    for fraction in (2.0, -1.0, float("nan")):
        await run(context, misbehaviour.tell, fractions=[fraction])
    assert [fraction for fraction, _ in context.told] == [1.0, 0.0, 0.0]
    assert max(len(stage) for _, stage in context.told) <= 200


async def test_a_library_may_print(context: Recorder) -> None:
    """What is printed in the child doesn't get into the conversation."""
    await run(context, misbehaviour.chatter)
    assert (await run(context, misbehaviour.echo, n=1))["n"] == 1


async def test_a_warm_child_that_died_is_replaced_without_an_error(context: Recorder) -> None:
    """The kernel may take an idle child's memory; the next run doesn't notice."""
    killed = (await run(context, misbehaviour.echo))["pid"]
    os.kill(killed, signal.SIGKILL)
    assert ends(killed, 5)
    stopped = (await run(context, misbehaviour.echo))["pid"]
    assert stopped != killed
    # One that seems alive when it is asked, and dies before it answers.
    os.kill(stopped, signal.SIGSTOP)
    asked = asyncio.create_task(run(context, misbehaviour.echo))
    await asyncio.sleep(0)
    os.kill(stopped, signal.SIGKILL)
    assert (await asked)["pid"] != stopped


async def test_an_idle_child_gives_its_memory_back(context: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without a run it leaves; the next run starts a fresh one."""
    monkeypatch.setattr(child, "IDLE_SECONDS", 0.05)
    first = (await run(context, misbehaviour.echo))["pid"]
    assert ends(first, 5)
    assert (await run(context, misbehaviour.echo))["pid"] != first


async def test_fifty_runs_leave_nothing_behind(context: Recorder) -> None:
    """No descriptor, no process: not after good runs, refusals, crashes, nor cancelled ones."""
    await run(context, misbehaviour.echo)
    await close_children()
    before = descriptors()
    for number in range(50):
        if number % 10 == 3:
            with pytest.raises(EngineCrashed):
                await run(context, misbehaviour.segfault)
        elif number % 10 == 6:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await run(context, misbehaviour.burn)
        else:
            await run(context, misbehaviour.echo)
    await close_children()
    assert descriptors() == before
    assert children() == []


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_works_in_a_loop_of_another_thread(factory: Callable[[], Any], tmp_path: Path) -> None:
    """A worker's event loop runs in a thread of its own, asyncio's or uvloop's, without a child watcher."""
    answers: list[Any] = []

    async def all_of_it() -> None:
        context = Recorder(tmp_path)
        answers.append((await run(context, misbehaviour.echo, n=1))["n"])
        running = asyncio.create_task(run(context, misbehaviour.burn))
        await asyncio.wait_for(context.first_told.wait(), 20)
        running.cancel()
        answers.append(await asyncio.gather(running, return_exceptions=True))
        await close_children()

    def in_the_thread() -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(all_of_it())

    thread = threading.Thread(target=in_the_thread)
    thread.start()
    thread.join(30)
    assert answers[0] == 1
    assert isinstance(answers[1][0], asyncio.CancelledError)
    assert children() == []


def test_a_child_dies_with_its_worker(tmp_path: Path) -> None:
    """A worker killed with SIGKILL leaves no engine burning on."""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as worker:
        assert worker.stdout is not None
        engine = int(worker.stdout.readline())
        worker.kill()
    assert ends(engine, 5)


WORKER = """
import asyncio, sys
from pathlib import Path
from tasks.engines.child import run_in_child
from tasks.kind import RunLimits
from tests.unit.tasks.contexts import Recorder

class Printing(Recorder):
    def progress(self, fraction, stage):
        print(stage, flush=True)

context = Printing(Path(sys.argv[1]))
asyncio.run(run_in_child("tests.unit.tasks.misbehaviour:burn", {}, context, RunLimits()))
"""
