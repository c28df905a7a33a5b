"""What every engine has to do, as checks that any of them can be put through."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tasks.kind import EngineCrashed, EngineFailure, EngineUnavailable, InputFile, Kind, OutOfMemory, Output, RunLimits
from tasks.tiers import Tiered
from tasks.validation import parse
from tests.unit.tasks.contexts import Recorder
from tests.unit.tasks.processes import children, ends
from tests.waiting import wait_until

#: What a run may usually take.
LIMITS = RunLimits()


@dataclass(frozen=True, slots=True)
class Case:
    """One engine at work: a short job, and one that would last for minutes."""

    kind: Kind
    params: Mapping[str, Any]
    inputs: Mapping[str, InputFile]
    long_params: Mapping[str, Any]
    long_inputs: Mapping[str, InputFile]
    #: Makes sure that the long job is really under way, and lasts; and that jobs end again.
    endless: Callable[[], object] = field(default=lambda: None)
    mend: Callable[[], object] = field(default=lambda: None)
    #: Ends what makes the sound, as a crash does.
    crash: Callable[[], object] = field(default=lambda: kill_children())  # noqa: PLW0108 - it stands below
    limits: RunLimits = LIMITS

    @property
    def deterministic(self) -> bool:
        assert isinstance(self.kind, Tiered)
        return self.kind.engines[self.params.get("model", "standard")].deterministic

    async def make(self, context: Recorder, limits: RunLimits | None = None) -> None:
        request = parse(self.kind, self.params)
        await self.kind.run(request, self.inputs, context, limits or self.limits)

    def long(self, context: Recorder) -> Awaitable[None]:
        self.endless()
        return self.kind.run(parse(self.kind, self.long_params), self.long_inputs, context, self.limits)


def anew(context: Recorder) -> Recorder:
    """Another attempt of the same job, which remembers nothing."""
    folder = context.workdir.with_name(f"{context.workdir.name}+")
    folder.mkdir()
    return Recorder(folder)


async def makes_what_was_quoted(case: Case, context: Recorder) -> None:
    """Each output that was asked, in order, whole on disk, as it says of itself, and using no more than its quote."""
    await case.make(context)
    request = parse(case.kind, case.params)
    asked = case.kind.usage(request, {name: file.info for name, file in case.inputs.items()})
    assert len(asked) == len(context.outputs) == len({output.name for output in context.outputs})
    for output, most in zip(context.outputs, asked, strict=True):
        assert output.usage.seconds_in <= most.seconds_in
        assert 0 < output.usage.seconds_out <= most.seconds_out
        assert output.path.parent == context.workdir
        content = output.path.read_bytes()
        assert (output.bytes, output.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert {"peak_db", "mean_db", "clipped_ppm"} <= output.measures.keys()
    fractions = [fraction for fraction, _ in context.told]
    assert fractions
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1


async def makes_the_same_again(case: Case, context: Recorder) -> None:
    """Where that is promised: byte by byte."""
    await case.make(context)
    await case.make(later := anew(context))
    assert [output.sha256 for output in context.outputs] == [output.sha256 for output in later.outputs]


async def stops_when_it_is_cancelled(case: Case, context: Recorder) -> None:
    """Within two seconds, nothing more is handed over, and the next run works."""
    working = asyncio.ensure_future(case.long(context))
    await asyncio.to_thread(wait_until, lambda: context.told or working.done(), "it is under way")
    assert not working.done(), working
    context.abandoned = True
    began = time.monotonic()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert time.monotonic() - began < 2
    handed_over = list(context.outputs)
    case.mend()
    await case.make(later := anew(context))
    assert handed_over == context.outputs
    assert later.outputs


async def stops_at_its_deadline(case: Case, context: Recorder) -> None:
    """A limit around it is all that it takes, whenever it comes."""
    limit = asyncio.timeout(None)

    async def limited() -> None:
        async with limit:
            await case.long(context)

    working = asyncio.ensure_future(limited())
    await asyncio.to_thread(wait_until, lambda: context.told or working.done(), "it is under way")
    assert not working.done(), working
    began = time.monotonic()
    limit.reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await working
    assert time.monotonic() - began < 2


async def survives_a_crash_before_any_output(case: Case, context: Recorder) -> None:
    """The attempt ends so that another may help, nothing is handed over, and the next one works."""
    working = asyncio.ensure_future(case.long(context))
    await asyncio.to_thread(wait_until, lambda: context.told or working.done(), "it is under way")
    await asyncio.to_thread(case.crash)
    with pytest.raises(EngineFailure) as ended:
        await working
    assert ended.value.retryable
    assert isinstance(ended.value, EngineCrashed | EngineUnavailable)
    assert [] == context.outputs
    case.mend()
    await case.make(later := anew(context))
    assert later.outputs


def kill_children() -> None:
    """Kill what engines of this machine run in, once it is there."""
    wait_until(children, "its process runs")
    killed = children()
    for process in killed:
        os.kill(process, signal.SIGKILL)
    assert all(ends(process, 5) for process in killed)


async def keeps_what_was_finished(case: Case, context: Recorder) -> None:
    """What was handed over before a crash is whole, and stays."""
    first_came = asyncio.Event()

    async def finished(output: Output) -> None:
        context.outputs.append(output)
        first_came.set()
        for process in children():
            os.kill(process, signal.SIGKILL)

    context.finished = finished  # type: ignore[method-assign] # a worker in whose hands the engine dies
    with pytest.raises(EngineFailure):
        await case.make(context)
    [output] = context.outputs
    assert output.sha256 == _sha256(output.path)


async def ends_for_want_of_memory(case: Case, context: Recorder) -> None:
    """As that, not as a crash; with enough of it the next run works."""
    with pytest.raises(OutOfMemory):
        await case.make(context, RunLimits(memory_bytes=80 * 1024**2))
    case.mend()
    await case.make(later := anew(context))
    assert later.outputs


#: All of it. Every engine goes through each, or stands in `EXCEPT`.
PROPERTIES = {
    check.__name__: check
    for check in (
        makes_what_was_quoted,  # its progress never goes back
        makes_the_same_again,
        stops_when_it_is_cancelled,
        stops_at_its_deadline,
        survives_a_crash_before_any_output,
        keeps_what_was_finished,
        ends_for_want_of_memory,
    )
}
EMBEDDED, SERVICES, OWN, MODELS = (
    ("composer", "vocoder", "splitter"),
    ("cog", "ace_step_server"),
    ("whistle",),
    (
        "ace_step",
        "demucs",
    ),
)
_NO_PROMISE = "a service promises nothing of the kind"
#: What an engine need not do, and why.
EXCEPT = {
    ("vocoder", "keeps_what_was_finished"): "it makes one output, the last",
    ("cog", "makes_the_same_again"): _NO_PROMISE,
    ("ace_step_server", "makes_the_same_again"): _NO_PROMISE,
}


async def goes_through(engine: str, name: str, case: Case, context: Recorder) -> None:
    """One property of one engine. Skipped with its reason where it is excepted, which must be true."""
    if reason := EXCEPT.get((engine, name)):
        if reason == _NO_PROMISE:
            assert not case.deterministic
        else:
            request = parse(case.kind, case.params)
            assert 1 == len(case.kind.usage(request, {name: file.info for name, file in case.inputs.items()}))
        pytest.skip(f"{engine}: {reason}")
    await PROPERTIES[name](case, context)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
