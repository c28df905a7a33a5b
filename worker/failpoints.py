"""Named points at which a test ends, freezes or holds a process: off unless the environment is test.

`FERMATA_FAILPOINTS=settle.before:kill` kills at the first passage, `settle.written:stop:2` freezes at the second.
`POINTS` is all there are. No transaction that writes is without two: its step is named where it is opened.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from dataclasses import dataclass, field

#: Between the transactions of a job's path, in its order.
PATH = frozenset(
    {
        "submit.after",
        "dispatch.marked",
        "dispatch.sent",
        "claim.before",
        "claim.after",
        "run.before",
        "run.kept",
        "run.after",
        "settle.before",
        "settle.after",
        "deliver.claimed",
        "deliver.sent",
    }
)

#: What travels in a batch. One more operation is one more line here.
OPERATIONS = frozenset(
    {
        "claim",
        "settle",
        "reap",
        "cancel",
        "force_end",
        "end_overdue",
        "expire",
        "wake",
        "turn",
        "notify",
    }
)

#: Every transaction that writes, by the name that it is opened with in `worker/store`.
TRANSACTIONS = frozenset(
    {
        # the books: a batch of operations, and an account's page for whoever moves lots by hand
        "batch",
        "page",
        # jobs: submit, dispatch, claim, run
        "take_turns",
        "submit",
        "ripen",
        "mark_hints",
        "unhint",
        "hold_off",
        "forget_marks",
        "recheck_waiting",
        "renew",
        "report_progress",
        "remember",
        # webhooks
        "claim_deliveries",
        "end_delivery",
        "deliver_again",
        "close_webhook",
        "create_webhook",
        "delete_webhook",
        "redeliver",
        # what is kept of processes, and for how long
        "worker_here",
        "worker_drain",
        "worker_gone",
        "process_here",
        "note_duty",
        "make_partitions",
        "forget_workers",
        "forget_turns",
        "forget_told",
        "forget_deliveries",
        # what is kept no longer, and what somebody wants to be gone
        "prune_jobs",
        "prune_inputs",
        "forget_old",
        "close_month",
        "detach_month",
        "drop_empty_months",
        "erase_account",
        "erase_jobs",
        "erase_log",
        "erase_artifacts",
        # people and pipelines
        "create_account",
        "set_limits",
        "add_artifact",
        "add_voice",
        "remove_voice",
        "apply_book",
        "withdraw_book",
        "keep_rehearsal",
        "pause",
        "resume",
        "limit_queue",
        "create_key",
        "make_token",
        "revoke_key",
        "rotate_key",
        "use_keys",
        "forget_tokens",
        "note_creation",
        "forget_creations",
        "open_session",
        "close_session",
        "tell_audit_log",
    }
)

#: `written`: all is written and nothing is committed. `committed`: it is, and nobody has been told yet.
MOMENTS = ("written", "committed")

#: Every point there is.
POINTS = PATH | {f"{step}.{moment}" for step in OPERATIONS | TRANSACTIONS for moment in MOMENTS}

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}

_armed: dict[str, tuple[signal.Signals, int]] = {}
_holds: dict[str, Hold] = {}


@dataclass(slots=True, eq=False)
class Hold:
    """Holds whoever passes a point next in this very process, until it is let go."""

    point: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _gone_on: asyncio.Event = field(default_factory=asyncio.Event)

    def let_go(self) -> None:
        """Let it go on."""
        self._gone_on.set()

    async def _held(self) -> None:
        self.reached.set()
        await self._gone_on.wait()


def arm(specification: str) -> None:
    """Arm the points of `name:kill|stop|term[:passage]`, comma separated. Called by the composition root only."""
    for part in filter(None, specification.split(",")):
        name, action, *passage = part.split(":")
        if name not in POINTS or action not in _SIGNALS:
            raise ValueError(f"no failpoint {part!r}")
        _armed[name] = (_SIGNALS[action], int(passage[0]) if passage else 1)


def hold(point: str) -> Hold:
    """Hold the next one that passes the point here: only a transaction's. For tests that interleave sessions."""
    if point not in POINTS - PATH or point in _holds:
        raise ValueError(f"nothing to hold at {point!r}")
    _holds[point] = Hold(point)
    return _holds[point]


def any_armed() -> bool:
    """Whether any point does anything: what it takes to find out whether one is passed may be left out otherwise."""
    return bool(_armed or _holds)


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


async def reached(step: str | None, moment: str) -> None:
    """A transaction's point: whoever only reads (None) has none. Ask `any_armed` first."""
    point = f"{step}.{moment}"
    failpoint(point)
    if point in _holds:
        await _holds.pop(point)._held()
