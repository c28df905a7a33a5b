"""The child's side: a loop that takes a function's name and arguments, runs it under limits, and reports by JSON.

Started by `tasks.engines.child` as `python -m tasks.engines.inside`. It dies with its parent, holds no socket but
the one to it, and leaves by itself when nothing was asked for a while.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.engines.report import output_to_json
from tasks.kind import EngineError, Output

#: A message is its length in four bytes, then its body.
HEADER = struct.Struct(">I")
#: Seconds between two progress messages, except the last: a chunk of a fast engine takes less.
PROGRESS_SECONDS = 0.05
#: The file in a run's folder by which the worker asks for its end.
STOP = ".stop"
#: Characters of a traceback that travel to the worker's log.
TRACEBACK_MAX = 8000

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Serve runs on a socket until the parent closes it or is silent for too long.

    The arguments: the socket's number, the parent's, idle seconds, and the limits of `_limit`.
    """
    descriptor, parent, memory_bytes, file_bytes, open_files = (int(arguments[n]) for n in (0, 1, 3, 4, 5))
    idle_seconds = float(arguments[2])
    _die_with(parent)
    Path("/proc/self/oom_score_adj").write_text(
        "500"
    )  # should the machine run out, the kernel takes us, not the worker
    _limit(memory_bytes, file_bytes, open_files)
    faulthandler.enable()
    with socket.socket(fileno=descriptor) as connection:
        connection.settimeout(idle_seconds)
        while (job := _received(connection)) is not None:
            connection.settimeout(None)
            _send(connection, {"started": True})
            _send(connection, _answer(connection, job))
            os.chdir("/")
            connection.settimeout(idle_seconds)


def _die_with(parent: int) -> None:
    """Be killed when the thread that started us ends; leave now if it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def _limit(memory_bytes: int, file_bytes: int, open_files: int) -> None:
    for which, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),  # a core dump would hold a customer's audio
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _limit_processor(seconds: float | None) -> None:
    """Allow this run so many CPU seconds more than the process has used; SIGXCPU ends it after."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = resource.RLIM_INFINITY if seconds is None else int(used + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _answer(connection: socket.socket, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job and say how it ended. Never raises: the worker tells the endings apart by this answer."""
    try:
        os.chdir(job["workdir"])
        _limit_processor(job["processor_seconds"])
        module, _, name = job["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        returned = function(PipeReport(connection, Path(job["workdir"])), **job["arguments"])
        json.dumps(returned)  # what can't be sent is this function's failure, not a crash
        return {"returned": returned}
    except EngineError as error:
        return {"failed": [f"{one.__module__}:{one.__qualname__}" for one in type(error).__mro__], "text": str(error)}
    except MemoryError:
        return {"out_of_memory": True}
    except BaseException as error:
        # A library that can't be loaded for want of address space comes as an ImportError.
        if isinstance(error, ImportError) and ("allocate memory" in str(error) or "failed to map" in str(error)):
            return {"out_of_memory": True}
        return {"unexpected": type(error).__name__, "traceback": traceback.format_exc()[-TRACEBACK_MAX:]}


class PipeReport:
    """The `Report` that speaks over the socket."""

    def __init__(self, connection: socket.socket, workdir: Path) -> None:
        self._connection = connection
        self._workdir = workdir
        self._told_at = float("-inf")

    @property
    def workdir(self) -> Path:
        return self._workdir

    @property
    def stop_asked(self) -> bool:
        return (self._workdir / STOP).exists()

    def progress(self, fraction: float, stage: str) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_SECONDS or fraction >= 1:
            self._told_at = now
            _send(self._connection, {"progress": float(fraction), "stage": stage})

    def finished(self, output: Output) -> None:
        _send(self._connection, {"finished": output_to_json(output)})
        if _received(self._connection) is None:
            sys.exit(1)  # the worker went away before it counted this output


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    body = json.dumps(message).encode()
    connection.sendall(HEADER.pack(len(body)) + body)


def _received(connection: socket.socket) -> Any:
    """The parent's next message, or None when it closed the socket or stayed silent for too long."""
    try:
        header = _exactly(connection, HEADER.size)
        body = _exactly(connection, HEADER.unpack(header)[0]) if header else None
    except (TimeoutError, ConnectionError):
        return None
    return pickle.loads(body) if body else None  # noqa: S301 - from our own parent only


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
