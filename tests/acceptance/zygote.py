"""Starts `fermata` processes for tests by forking: `python -m tests.acceptance.zygote [MODULE…]`, orders as JSON lines
on stdin. The modules are imported too.

Each child runs the command line's own `main` with an environment, arguments, log and session of its own, just as the
installed script would; only importing our modules (over a second of processor each time) was done once, here.
Some tests start the script itself, so nothing rests on this alone. Orders:

    {"argv": […], "env": {…}, "log": path}   start; answers {"pid": number}
    {"step": [name, subject], …}             the same, but one step of `crash_steps` instead of the command line
    {"reap": pid}                            wait for one that has ended; answers {"code": number}, negative: a signal
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

# Everything that the processes under trial import. None of it acts at import.
import tests.kinds  # noqa: F401
import worker.actors
import worker.boot
import worker.cli
import worker.duties
import worker.local.processes
import worker.logs
import worker.processes
import worker.queue.process
from tests.acceptance import crash_steps

_more = sys.argv[1:] if __name__ == "__main__" else []
for module in [*(f"worker.duties.{duty.name}" for duty in pkgutil.iter_modules(worker.duties.__path__)), *_more]:
    importlib.import_module(module)


def main() -> None:
    """Obey until stdin ends. The children end with us."""
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"code": _reap(order["reap"])} if "reap" in order else {"pid": _start(order)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _reap(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _start(order: dict[str, Any]) -> int:
    ours = os.getpid()
    pid = os.fork()
    return pid or _become(order, ours)


def _become(order: dict[str, Any], parent: int) -> NoReturn:
    def act() -> None:
        os.setsid()
        end_with(parent)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        take_over([nothing, log, log], order["env"])
        if "step" in order:
            crash_steps.play(*order["step"])
        else:
            be_fermata(order["argv"])

    os._exit(code_of(act))


def end_with(parent: int) -> None:
    """End when the parent does."""
    worker.local.processes._libc.prctl(worker.local.processes.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def take_over(streams: Sequence[int], environment: Mapping[str, str]) -> None:
    """Go on with these for stdin, stdout and stderr, and in this environment."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(environment)


def be_fermata(arguments: Sequence[str]) -> None:
    """What the installed script does."""
    sys.argv = ["fermata", *arguments]
    worker.cli.main()


def code_of(act: Callable[[], None]) -> int:
    """What a process that does this ends with."""
    try:
        act()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
