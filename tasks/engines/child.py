"""Engines that burn CPU or read strangers' files run in a child process: it can be limited, killed and crash alone.

A child is a fresh Python (no fork: nothing of the worker's memory, sockets or secrets goes along) in a process group
of its own. It stays warm for the next run, since importing the engines costs a second, and is never used again after
a crash, a kill or an unexpected exception.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import structlog

from tasks.engines.answers import is_sound, out_of_memory, returned
from tasks.engines.inside import HEADER, STOP
from tasks.engines.report import output_from_json
from tasks.engines.weighing import Family
from tasks.kind import EngineCrashed, EngineFailure, Listener, Output, RunLimits

log = structlog.get_logger(__name__)

#: Variables of the worker's environment that a child may see. Everything else may be a secret.
PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"),
    "CUDA_VISIBLE_DEVICES",
)
#: How many threads the numeric libraries have: with one each, two runs on two cores don't fight.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: No library of models fetches anything from a hub.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
#: Seconds that a child waits for its next run before it leaves and gives its memory back.
IDLE_SECONDS = 120.0
#: Runs after which a warm child is replaced, whatever its libraries have leaked.
RUNS_MAX = 200
#: Bytes of one message from a child. Ours stay below 10 kB.
MESSAGE_MAX = 1024 * 1024
#: Bytes of a dead child's stderr that go to the log.
LAST_WORDS_MAX = 2000
#: Seconds between two looks at what a child holds in memory: some hundred megabytes may come in between.
MEMORY_LOOK_SECONDS = 0.05
#: Seconds to wait for a killed child to be gone; it takes milliseconds.
REAP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Restraints:
    """What a child may take, beside the memory in `RunLimits`."""

    #: CPU seconds of one run; None leaves it to the caller's deadline.
    processor_seconds: float | None = None
    #: Bytes of any one file it writes.
    file_bytes: int = 4 * 1024**3
    open_files: int = 64
    #: Seconds that it stays without a run; None is `IDLE_SECONDS`.
    idle_seconds: float | None = None
    #: Seconds in which a run that is cancelled may end by itself (see `Report.stop_asked`), before it is killed.
    stop_seconds: float = 0.0
    #: Threads of each numeric library.
    threads: int = 1
    #: Only runs with the same restraints, name and all, come to the same process. One with a name is the only one of
    #: that name: a run with other restraints ends it.
    name: str = ""


async def run_in_child(
    function: str | Callable[..., Any],
    arguments: Mapping[str, Any],
    context: Listener,
    limits: RunLimits,
    restraints: Restraints = Restraints(),
    resident_bytes: int | None = None,
) -> Any:
    """Call `function(report, **arguments)` in a child process and return what it returned (JSON values).

    `function` is "module:name" or a function at the top of a module; `arguments` can be pickled. Its progress goes
    to `context.progress`; each output that it finishes is handed to `context.finished` before it may go on, so what
    was finished stays counted whatever comes after.

    Cancelling kills the child and its descendants at once; `limits.seconds` is the caller's to enforce so.
    `limits.memory_bytes` binds its address space. Where that says nothing of what it uses (a GPU's driver maps
    terabytes), `resident_bytes` binds what it and the programs that it starts hold in memory: looked at often, so it
    may be passed for a moment. A process that holds more from runs that were allowed more is replaced by a fresh one.
    Raises what the function raised if that is an `EngineError`, `OutOfMemory` past either limit,
    `EngineCrashed` if the process died, `EngineFailure` for any other exception (its traceback goes to the log).
    """
    name = _name_of(function)
    job = {
        "function": name,
        "arguments": dict(arguments),
        "workdir": str(context.workdir),
        "processor_seconds": restraints.processor_seconds,
    }
    for other in _taken_namesakes(restraints):
        await other.end()
    child = _idle_child(limits.memory_bytes, restraints) or _Child.started(limits.memory_bytes, restraints)
    if resident_bytes and child.runs and child.family.held_bytes() > resident_bytes:
        await child.end()
        child = _Child.started(limits.memory_bytes, restraints)
    try:
        started = await child.start(job)
        if not started and child.runs:  # it left, or was killed, while it was idle
            await child.end()
            child = _Child.started(limits.memory_bytes, restraints)
            await child.start(job)
        conversation = asyncio.ensure_future(child.converse(context))
        watch = asyncio.ensure_future(child.keep_below(resident_bytes)) if resident_bytes else None
        try:
            answer = await asyncio.shield(conversation)
        except asyncio.CancelledError:
            await child.stop(conversation, context.workdir)
            raise
        finally:
            if watch is not None:
                watch.cancel()
        if answer is None:
            await child.end()
            raise child.crash()
        child.release(sound=is_sound(answer))
        return returned(answer, name, resident_bytes or limits.memory_bytes)
    finally:
        await child.end_unless_released()


async def close_children() -> None:
    """End every idle child of this thread's event loop. For the end of a worker, and of a test."""
    while child := _idle_child():
        await child.end()


def _name_of(function: str | Callable[..., Any]) -> str:
    if isinstance(function, str):
        return function
    if "." in function.__qualname__ or function.__module__ == "__main__":
        raise TypeError("a child can only run a function at the top of a module")
    return f"{function.__module__}:{function.__qualname__}"


# The children


@dataclass(slots=True)
class _Child:
    """One child process, and the parent's end of the socket to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    complaints: IO[bytes]  # its stderr, a file without a name
    memory_bytes: int
    restraints: Restraints
    family: Family
    thread: int = field(default_factory=threading.get_ident)
    runs: int = 0
    released: bool = False
    #: Bytes that it was killed for passing.
    outgrown: int | None = None
    last_words: str = ""

    @classmethod
    def started(cls, memory_bytes: int, restraints: Restraints) -> _Child:
        """Start one. Blocks for the few milliseconds of an exec.

        In this thread on purpose: the kernel kills it when the thread that started it ends (PDEATHSIG).
        """
        ours, theirs = socket.socketpair()
        complaints = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed in kill()
        idle_seconds = IDLE_SECONDS if restraints.idle_seconds is None else restraints.idle_seconds
        limits = (idle_seconds, memory_bytes, restraints.file_bytes, restraints.open_files)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.engines.inside"]
                + [str(number) for number in (theirs.fileno(), os.getpid(), *limits)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(theirs.fileno(),),
                env=_environment(restraints.threads),
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            complaints.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours, complaints, memory_bytes, restraints, Family(process.pid))

    async def start(self, job: Mapping[str, Any]) -> bool:
        """Send a job. False if the child is gone."""
        os.ftruncate(self.complaints.fileno(), 0)
        os.lseek(self.complaints.fileno(), 0, os.SEEK_SET)  # the child shares this position
        return await self._send(job) and await self._received() == {"started": True}

    async def _send(self, what: object) -> bool:
        """Whether the child was there to be told."""
        body = pickle.dumps(what)
        try:
            await asyncio.get_running_loop().sock_sendall(self.connection, HEADER.pack(len(body)) + body)
        except ConnectionError:
            return False
        return True

    async def converse(self, context: Listener) -> dict[str, Any] | None:
        """Pass on progress and finished outputs until the child says how it ended; None if it died first."""
        while (message := await self._received()) is not None:
            if "progress" in message:
                context.progress(_fraction(message["progress"]), str(message["stage"])[:200])
            elif "finished" in message:
                await context.finished(_output_within(context.workdir, message["finished"]))
                if not await self._send("counted"):
                    return None  # it died while its output was being kept
            else:
                return message
        return None

    async def _received(self) -> dict[str, Any] | None:
        """The child's next message, or None if it is gone or talks nonsense."""
        try:
            (length,) = HEADER.unpack(await self._exactly(HEADER.size))
            message = json.loads(await self._exactly(length)) if length <= MESSAGE_MAX else None
        except (ConnectionError, EOFError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    async def _exactly(self, count: int) -> bytes:
        loop, parts = asyncio.get_running_loop(), bytearray()
        while len(parts) < count:
            part = await loop.sock_recv(self.connection, count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    async def keep_below(self, most_bytes: int) -> None:
        """Kill it once it and what it started hold more in memory; until cancelled."""
        while self.family.held_bytes() <= most_bytes:  # noqa: ASYNC110 - nobody tells of memory that is taken
            await asyncio.sleep(MEMORY_LOOK_SECONDS)
        self.outgrown = most_bytes
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def stop(self, conversation: asyncio.Future[dict[str, Any] | None], workdir: Path) -> None:
        """Let a run that is not wanted any more end by itself, if it may; then the process serves the next one."""
        if self.restraints.stop_seconds > 0:
            (workdir / STOP).touch()
            await asyncio.wait({conversation}, timeout=self.restraints.stop_seconds)
        if conversation.done() and not conversation.cancelled() and conversation.exception() is None:
            answer = conversation.result()
            if answer is not None:
                self.release(sound=is_sound(answer))
        conversation.cancel()

    def release(self, *, sound: bool) -> None:
        """Keep it for the next run, if it ended this one in its own words and isn't worn out."""
        self.runs += 1
        if sound and self.runs < RUNS_MAX:
            self.released = True
            _idle.append(self)

    async def end_unless_released(self) -> None:
        if not self.released:
            await self.end()

    async def end(self) -> None:
        """Kill it with its descendants and wait until it is gone. Killed at once, even if the wait is cancelled."""
        self.kill()
        waiting = asyncio.ensure_future(_gone(self.process))
        _waits.add(waiting)
        waiting.add_done_callback(_waits.discard)
        await asyncio.shield(waiting)

    def kill(self) -> None:
        """Send SIGKILL to its process group and close what ties us to it. Does nothing the second time."""
        if self.process.returncode is None:  # not reaped yet: its number is still its own
            with contextlib.suppress(ProcessLookupError):  # unless somebody reaps children that aren't theirs
                os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        if not self.complaints.closed:
            size = os.fstat(self.complaints.fileno()).st_size
            words = os.pread(self.complaints.fileno(), LAST_WORDS_MAX, max(0, size - LAST_WORDS_MAX))
            self.last_words = words.decode(errors="replace")
            self.complaints.close()

    def crash(self) -> EngineFailure:
        """What the death of an ended child means. Its last words go to the log."""
        status = self.process.returncode
        name = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
        log.error("engine_crashed", ended_by=name, last_words=self.last_words)
        if self.outgrown is not None:
            return out_of_memory(self.outgrown)
        if "bad_alloc" in self.last_words or "MemoryError" in self.last_words:
            return out_of_memory(self.memory_bytes)
        return EngineCrashed(f"the engine's process died ({name})")


def _idle_child(memory_bytes: int | None = None, restraints: Restraints | None = None) -> _Child | None:
    """Take the child of this thread that was used last and has these limits (None: any), if one is alive."""
    for child in reversed(_idle):
        fits = memory_bytes in (None, child.memory_bytes) and restraints in (None, child.restraints)
        if child.thread != threading.get_ident() or not fits:
            continue
        _idle.remove(child)
        if child.process.poll() is None:
            child.released = False
            return child
        child.kill()
    return None


def _taken_namesakes(restraints: Restraints) -> list[_Child]:
    """Take this thread's idle children of that name which have other restraints."""
    here = threading.get_ident()
    others = [one for one in _idle if one.restraints.name == restraints.name and one.restraints != restraints]
    found = [one for one in others if restraints.name and one.thread == here]
    for child in found:
        _idle.remove(child)
    return found


async def _gone(process: subprocess.Popen[bytes]) -> None:
    """Wait until a killed process is reaped. By asking: a child watcher would tie us to one loop and one thread."""
    pause_seconds, waited_seconds = 0.001, 0.0
    while process.poll() is None:
        if waited_seconds > REAP_SECONDS:
            log.error("engine_not_reaped", pid=process.pid)
            return
        await asyncio.sleep(pause_seconds)
        waited_seconds += pause_seconds
        pause_seconds = min(pause_seconds * 2, 0.02)


def _environment(threads: int) -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("OPENBLAS_")}
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return passed_on | dict.fromkeys(THREADS, str(threads)) | OFFLINE | {"PYTHONPATH": path}


def _fraction(sent: object) -> float:
    value = float(sent) if isinstance(sent, int | float) else 0.0
    return 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)


def _output_within(workdir: Path, sent: Mapping[str, Any]) -> Output:
    """A finished output as the child told of it. Its file must lie in the attempt's own folder."""
    try:
        output = output_from_json(sent)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise EngineFailure("the engine told of an output that makes no sense") from None
    if output.path.is_symlink() or output.path.resolve().parent != workdir.resolve():
        raise EngineFailure("the engine told of an output outside its folder")
    return output


def _kill_idle() -> None:
    while _idle:
        child = _idle.pop()
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(REAP_SECONDS)


#: Warm children, the last used at the end.
_idle: list[_Child] = []
#: Waits for killed children that nobody may be waiting for any more.
_waits: set[asyncio.Future[None]] = set()

atexit.register(_kill_idle)
os.register_at_fork(after_in_child=_idle.clear)
