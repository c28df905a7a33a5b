"""What clients asked for and were told, written before and after each call; and whether the books agree with it.

The judge is pure: a history and a look at the database in, disagreements out. A call without an answer may have been
done or not; every other answer binds the books.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import count
from pathlib import Path
from time import time
from typing import Any


class Told(StrEnum):
    """How a call ended, as its client was told."""

    OK = "ok"
    REFUSED = "refused"  # nothing was stored
    AWAY = "away"  # the books could not be reached: nothing was stored either
    UNKNOWN = "unknown"  # no answer, or one that says so


#: Answers that promise that this very call changed nothing.
NOTHING_DONE = frozenset({Told.REFUSED, Told.AWAY})
ENDED = frozenset({"succeeded", "failed", "cancelled", "refused"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `key` is what makes it happen once: an idempotency key, a purchase's reference, a job's id."""

    number: int
    what: str  # submit, cancel, topup, look, balance
    account: str
    key: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    told: Told = Told.UNKNOWN
    answer: Mapping[str, Any] = field(default_factory=dict)
    #: Between which times of the database it was made, in seconds since 1970.
    asked_at: float = 0.0
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class JobInBooks:
    """A job as the database has it after all."""

    job_id: str
    account: str
    key: str
    kind: str
    params: Mapping[str, Any]
    state: str
    quoted: int
    charged: int | None


@dataclass(frozen=True, slots=True)
class Books:
    """The database after all, as far as clients can hold us to it."""

    jobs: Sequence[JobInBooks]
    #: (account, reference) -> (credits, how many lots)
    purchases: Mapping[tuple[str, str], tuple[int, int]]


class Journal:
    """One client's calls, in a file that outlives the client."""

    def __init__(self, path: Path, clock: Callable[[], tuple[float, float]]) -> None:
        """`clock`: the earliest and the latest that it can be by the database's, which may be about to jump."""
        self._file = path.open("a", buffering=1)
        self._clock = clock
        self._numbers = count(1)
        self.calls: list[Call] = []
        self.told: dict[Told, int] = defaultdict(int)

    def ask(self, what: str, account: str, key: str, asked: Mapping[str, Any]) -> Call:
        """Note what is about to be asked."""
        call = Call(next(self._numbers), what, account, key, asked, asked_at=self._clock()[0])
        self._write("invoke", call)
        self.calls.append(call)
        return call

    def tell(self, call: Call, told: Told, answer: Mapping[str, Any]) -> None:
        """Note what it came to."""
        ended = replace(call, told=told, answer=answer, told_at=self._clock()[1])
        self._write(told.value, ended)
        self.calls[call.number - 1] = ended
        self.told[told] += 1

    def _write(self, phase: str, call: Call) -> None:
        self._file.write(json.dumps({"at": time(), "phase": phase, **asdict(call)}, default=str) + "\n")


def disagreements(history: Iterable[Call], books: Books) -> Iterator[str]:
    """Where the books are not what some client was told."""
    calls = list(history)
    yield from _submits([call for call in calls if call.what == "submit"], books)
    yield from _topups([call for call in calls if call.what == "topup"], books)
    by_id = {job.job_id: job for job in books.jobs}
    for call in calls:
        if call.what in ("cancel", "look") and call.told is Told.OK:
            yield from _of_state(call, by_id.get(call.key))


def _submits(calls: Sequence[Call], books: Books) -> Iterator[str]:
    stored: dict[tuple[str, str], list[JobInBooks]] = defaultdict(list)
    for one in books.jobs:
        stored[one.account, one.key].append(one)
    asked = _by_key(calls)
    for place, jobs in stored.items():
        if place not in asked:
            yield f"a job that nobody asked for: {jobs[0]}"
        if len(jobs) > 1:
            yield f"two jobs of one key: {jobs}"
    for place, of_key in asked.items():
        job: JobInBooks | None = next(iter(stored.get(place, ())), None)
        if job is None:
            yield from (f"acknowledged, and lost: {call}" for call in of_key if call.told is Told.OK)
            continue
        if all(call.told in NOTHING_DONE for call in of_key):
            yield f"every call of this key was told that nothing was done, and there is {job}: {of_key}"
        yield from _answers(of_key, job)


def _answers(calls: Sequence[Call], job: JobInBooks) -> Iterator[str]:
    for call in calls:
        same_body = call.asked["kind"] == job.kind and _within(call.asked["params"], job.params)
        if call.told is Told.OK:
            if not same_body:
                yield f"another body was taken for this key: {call} against {job}"
            if (call.answer["id"], call.answer["quoted"]) != (job.job_id, job.quoted):
                yield f"answered otherwise than stored: {call} against {job}"
        if call.told is Told.REFUSED and call.answer.get("code") == "idempotency_conflict" and same_body:
            yield f"a replay was taken for a conflict: {call} against {job}"


def _topups(calls: Sequence[Call], books: Books) -> Iterator[str]:
    asked = _by_key(calls)
    for place, (amount, lots) in books.purchases.items():
        if place not in asked:
            yield f"a purchase that nobody made: {place} of {amount}"
        if lots != 1:
            yield f"purchase {place} came as {lots} lots"
    for place, of_key in asked.items():
        bought = books.purchases.get(place)
        for call in of_key:
            if call.told is Told.OK and (bought is None or bought[0] != call.asked["credits"]):
                yield f"credited by word only: {call} against {bought}"
        if bought is not None and all(call.told in NOTHING_DONE for call in of_key):
            yield f"every call of this purchase was told that nothing was done, and it was credited: {of_key}"


def _of_state(call: Call, job: JobInBooks | None) -> Iterator[str]:
    """What was once said of an ended job holds for ever."""
    if job is None:
        yield f"answered for a job that is not there: {call}"
        return
    said = call.answer["state"]
    if said in ENDED and job.state != said:
        yield f"an ended job has ended otherwise since: {call} against {job}"
    if said in ENDED and "charged" in call.answer and call.answer["charged"] != job.charged:
        yield f"an ended job has been charged otherwise since: {call} against {job}"


def _within(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """What was asked for stands in what was stored, which has the defaults too."""
    return all(stored.get(name) == value for name, value in asked.items())


def _by_key(calls: Sequence[Call]) -> dict[tuple[str, str], list[Call]]:
    grouped: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        grouped[call.account, call.key].append(call)
    return grouped
