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

for module in [*(f"worker.duties.{duty.name}" for duty in pkgutil.iter_modules(worker.duties.__path__)), *sys.argv[1:]]:
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
    code = 70
    try:
        os.setsid()
        worker.local.processes._libc.prctl(worker.local.processes.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["env"])
        if "step" in order:
            crash_steps.play(*order["step"])
        else:
            sys.argv = ["fermata", *order["argv"]]
            worker.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
