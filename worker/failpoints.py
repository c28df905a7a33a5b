"""Named points at which a test kills the process: off unless FERMATA_FAILPOINTS names one and the environment is test.

`FERMATA_FAILPOINTS=settle.before:kill` kills at the first passage, `settle.before:stop:2` freezes at the second.
"""

from __future__ import annotations

import signal
import threading

#: Every point there is, in the order of a job's path. A test kills a process at each; a name that no code passes, or
#: that has no such test, fails.
POINTS = frozenset(
    {
        "submit.after",
        "dispatch.marked",
        "dispatch.sent",
        "claim.before",
        "claim.locked",
        "claim.committed",
        "claim.after",
        "run.before",
        "run.kept",
        "run.after",
        "settle.before",
        "settle.locked",
        "settle.committed",
        "settle.after",
        "deliver.claimed",
        "deliver.sent",
    }
)

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}

_armed: dict[str, tuple[signal.Signals, int]] = {}


def arm(specification: str) -> None:
    """Arm the points of `name:kill|stop|term[:passage]`, comma separated. Called by the composition root only."""
    for part in filter(None, specification.split(",")):
        name, action, *passage = part.split(":")
        if name not in POINTS or action not in _SIGNALS:
            raise ValueError(f"no failpoint {part!r}")
        _armed[name] = (_SIGNALS[action], int(passage[0]) if passage else 1)


def any_armed() -> bool:
    """Whether any point does anything: what it takes to find out whether one is passed may be left out otherwise."""
    return bool(_armed)


def failpoint(name: str) -> None:
    """A place where a test may end or freeze this process. Costs a dictionary look-up."""
    if name not in _armed:
        return
    number, passages = _armed[name]
    if passages > 1:
        _armed[name] = (number, passages - 1)
        return
    del _armed[name]
    # To this very thread: a stop sent to the process lets us run on until its main thread has been scheduled.
    signal.pthread_kill(threading.get_ident(), number)
