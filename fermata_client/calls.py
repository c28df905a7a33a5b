"""Every call, written once and without I/O: a generator yields what to do and is told what came of it.

Whoever drives it (`client.py`) sends and sleeps, blocking or not. Each call that changes something carries an
idempotency key that stays the same over all its tries, so an answer that was lost is asked for again, not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path
from random import random
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import quote as quoted
from uuid import UUID, uuid4

from pydantic import ValidationError

from fermata_client.answers import (
    Answer,
    Artifact,
    Balance,
    Cancelled,
    Event,
    Job,
    JobsPage,
    OnInsufficient,
    Quote,
    Receipt,
    State,
    Submitted,
)
from fermata_client.errors import (
    Broken,
    Conflict,
    Damaged,
    FermataError,
    NotAllowed,
    Problem,
    Refused,
    TimedOut,
    TooManyRequests,
    Unavailable,
    Unreachable,
    invalid,
    problem_of,
)
from fermata_client.requests import Request

T = TypeVar("T")
Read = TypeVar("Read", bound=Answer)

#: Tries of one call in all; with the waits between them about half a minute.
TRIES = 8
_WAIT_SECONDS, _WAIT_SECONDS_MAX = 0.25, 8.0
#: How long the server is asked to hold its answer while a job runs: below the time after which we give it up.
_LONG_LOOK_SECONDS = 20
#: Between looks at a job that is waited for, where it answers at once.
_LOOK_SECONDS, _LOOK_SECONDS_MAX = 0.2, 2.0
#: How long a job that was seen once is looked for without an answer, where no time was given to wait.
_AWAY_SECONDS = 600.0
#: What a look is given at least, also when the time to wait is all but over.
_LAST_LOOK_SECONDS = 1.0
#: Jobs in one request, and its bytes; more travel in several.
BATCH_MAX, BATCH_BYTES_MAX = 1_000, 8 * 1024**2
#: Characters of an idempotency key, and of what people call a file.
_KEY_LENGTH_MAX, _NAME_LENGTH_MAX = 255, 200


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. `body`: JSON. `file` goes along as a multipart body; a good answer's body goes `into` a file, if
    given. `seconds`: without a byte for so long it is given up; None leaves that to whoever sends.
    """

    method: str
    path: str
    body: bytes | None = None
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    into: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `sha256` (hex): of what went into a file."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    sha256: str | None = None

    @property
    def document(self) -> Any:
        """The body as JSON; what is none is an empty document."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


#: A call: yields what to do, is told the reply (or thrown `Unreachable`), returns its answer.
Steps = Generator[Send | Pause, Reply | None, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """A job to be asked for. `inputs` name artifacts of the account. Without a key, one is made."""

    account: str
    request: Request | Mapping[str, Any]
    kind: str | None = None
    inputs: Mapping[str, UUID | str] = field(default_factory=dict)
    key: str = field(default_factory=lambda: str(uuid4()))
    on_insufficient: OnInsufficient = "refuse"
    max_credits: int | None = None
    run_at: datetime | None = None
    ends_by: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it is sent. What stands at its default is left out: then older servers take it too."""
        kind, params = asked(self.request, self.kind)
        self.check()
        more = {
            "inputs": {name: str(artifact) for name, artifact in self.inputs.items()},
            "on_insufficient": None if self.on_insufficient == "refuse" else self.on_insufficient,
            "max_credits": self.max_credits,
            "run_at": self.run_at and self.run_at.isoformat(),
            "ends_by": self.ends_by and self.ends_by.isoformat(),
            "metadata": dict(self.metadata),
        }
        given = {name: value for name, value in more.items() if value is not None and value != {}}
        return {"account": self.account, "kind": kind, "params": params, **given}

    def check(self) -> None:
        """Raise `Invalid` for what could not even be written down."""
        for name, given in (("inputs", self.inputs), ("metadata", self.metadata)):
            if not isinstance(given, Mapping):
                raise invalid(name, "must be an object of names and values")
        for name, time in (("run_at", self.run_at), ("ends_by", self.ends_by)):
            if time is not None and not isinstance(time, datetime):
                raise invalid(name, "must be a date and time")


def asked(request: Request | Mapping[str, Any], kind: str | None) -> tuple[str, dict[str, Any]]:
    """The kind and the fields of a request. A typed one knows its kind. Raises `Invalid` where it can't be told."""
    if isinstance(request, Request):
        own: str | None = getattr(request, "kind", None)
        if own is not None and kind not in (None, own):
            raise invalid("kind", f"is {kind}, but the request is one for {own}: leave it out")
        found, params = own or kind, request.model_dump(mode="json", exclude_unset=True)
    elif isinstance(request, Mapping):
        found, params = kind, dict(request)
    else:
        raise invalid("request", "must be one of `fermata_client.requests`, or a mapping with its kind")
    if found is None:
        raise invalid("kind", "must be given with a request that doesn't know its own")
    return found, params


def submit(job: JobRequest) -> Steps[Submitted]:
    """Ask for a job. Once this returns it is stored. Raises `InsufficientCredits`, `Refused`, `Unreachable`."""
    reply = yield from _asked(Send("POST", "/v1/jobs", _json(job.document()), headers=_key(job.key)))
    return _read(Submitted, reply.document)


def submit_many(jobs: Iterable[JobRequest]) -> Steps[list[Submitted | FermataError]]:
    """Ask for many jobs; one answer each, in their order. A bad one harms no other.

    An error stands in the place of its job, also where the request it travelled in was lost or turned down: what was
    stored before is never kept from you. Asked again with the same keys, nothing is done twice.
    """
    asked_for = list(jobs)
    answers: dict[int, Submitted | FermataError] = {}
    items = []
    for place, one in enumerate(asked_for):
        try:
            items.append(_Item(place, one.key, _json({**one.document(), "key": one.key})))
        except FermataError as error:
            answers[place] = error
    stopped: FermataError | None = None
    for batch in _batches(items):
        if stopped is None:
            stopped = yield from _batch_asked(batch, answers)
        else:
            answers.update({item.place: stopped for item in batch})
    return [answers[place] for place in range(len(asked_for))]


@dataclass(frozen=True, slots=True)
class _Item:
    """A job of a batch: its place among all that are asked for, and its JSON."""

    place: int
    key: str
    body: bytes


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """As many to a request as it takes, by number and by bytes."""
    batch: list[_Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH_MAX or size + len(item.body) + 1 > BATCH_BYTES_MAX - len(_BATCH) - 1):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.body) + 1
    if batch:
        yield batch


_BATCH = b'{"jobs":[%s]}'


def _batch_asked(batch: Sequence[_Item], answers: dict[int, Submitted | FermataError]) -> Steps[FermataError | None]:
    """Put in each one's answer. What only came at a bad moment is asked for again, as a submit of its own would be.

    Returns what would meet every other request too.
    """
    left, in_doubt, stopped = list(batch), set[int](), None
    for tried in range(1, TRIES + 1):
        send = Send("POST", "/v1/jobs/batch", _BATCH % b",".join(item.body for item in left), headers=_key_of(left))
        try:
            reply, doubtful = yield from _tried(send)
            told = _results(reply, len(left))
        except FermataError as error:
            told, doubtful = [error] * len(left), False
            stopped = None if isinstance(error, Refused) and not isinstance(error, NotAllowed) else error
        for item, one in zip(left, told, strict=True):
            answers[item.place] = one
            if doubtful or isinstance(one, Unreachable):
                in_doubt.add(item.place)
        left = [item for item in left if isinstance(answers[item.place], _ASKED_AGAIN)]
        if not left or stopped is not None or tried == TRIES:
            break
        yield Pause(max(_pause_after(tried, one) for one in told if isinstance(one, _ASKED_AGAIN)))
    for item in left:
        if item.place in in_doubt:
            answers[item.place] = _doubtful(answers[item.place])
    return stopped


def _results(reply: Reply, count: int) -> list[Submitted | FermataError]:
    document = reply.document
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise _not_understood("list of results")
    return [_of_batch(result) for result in results]


def job(job_id: UUID | str) -> Steps[Job]:
    """A job as it stands. Raises `NotFound`."""
    return _read(Job, (yield from _asked(_look(job_id))).document)


def wait(job_id: UUID | str, timeout: float | None = None) -> Steps[Job]:
    """Look until a job has ended; returns how. Raises `TimedOut` after `timeout` seconds: the job goes on.

    Nobody answering is no end: it is looked for until the time is over. Without one, `Unreachable` or `Unavailable`
    after half a minute for a job that was never seen, after ten for one that was.
    """
    heard = monotonic()
    ends_at = inf if timeout is None else heard + timeout
    pause, failed, found = _LOOK_SECONDS, 0, None
    while True:
        started, error = monotonic(), None
        left = max(0.0, ends_at - started)
        held = int(min(_LONG_LOOK_SECONDS, left))
        seconds = None if timeout is None else max(_LAST_LOOK_SECONDS, held + 0.5, min(left, _LONG_LOOK_SECONDS))
        try:
            found = _read(Job, (yield from _once(_look(job_id, held, seconds))).document)
        except _ASKED_AGAIN as away:
            error, failed = away, failed + 1
            if timeout is None and (failed >= TRIES if found is None else monotonic() - heard > _AWAY_SECONDS):
                raise
            rest = _pause_after(min(failed, TRIES), away)
        else:
            heard, failed, rest = monotonic(), 0, 0.0
            if found.ended:
                return found
            if heard - started < held or not held:  # it did not wait for us
                rest, pause = pause, min(pause * 1.3, _LOOK_SECONDS_MAX)
        if monotonic() >= ends_at:
            seen = "was not seen" if found is None else f"is {found.state}" if error is None else f"was {found.state}"
            raise TimedOut(f"job {job_id} {seen} after {timeout:g} s{f' ({error})' if error else ''}") from error
        if rest:
            yield Pause(min(rest, max(0.0, ends_at - monotonic())))


def cancel(job_id: UUID | str, reason: str = "cancelled by request") -> Steps[Cancelled]:
    """End a queued or waiting job, or ask a running one to stop. Raises `Conflict` if it had ended otherwise."""
    send = Send("POST", f"/v1/jobs/{_in_path(job_id)}/cancel", _json({"reason": reason}))
    try:
        reply = yield from _asked(send)
    except Conflict as error:
        found = yield from job(job_id)
        if error.code != "already_ended" or found.state != "cancelled":
            raise
        # An earlier try of this very call may have done it.
        return Cancelled(id=found.id, account=found.account, state=found.state, cancel_asked=False)
    return _read(Cancelled, reply.document)


def retry(job_id: UUID | str, key: str | None = None) -> Steps[Submitted]:
    """Ask for an ended job's request again: a new job with a fresh quote, once a key; by default once a job.

    Raises as `submit` does, and `Invalid` for a job that has not ended.
    """
    headers = {} if key is None else _key(key)
    reply = yield from _asked(Send("POST", f"/v1/jobs/{_in_path(job_id)}/retry", headers=headers))
    return _read(Submitted, reply.document)


def receipt(job_id: UUID | str) -> Steps[Receipt]:
    """Why a job cost what it did. Raises `NotFound`."""
    return _read(Receipt, (yield from _asked(Send("GET", f"/v1/jobs/{_in_path(job_id)}/receipt"))).document)


def jobs(
    account: str | None = None,
    *,
    state: State | None = None,
    kind: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_from: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = 50,
    after: UUID | None = None,
) -> Steps[JobsPage]:
    """Jobs, the newest first, a page at a time. A key that is bound to accounts names one; `metadata` needs one too."""
    params: dict[str, str | list[str]] = {
        name: str(value)
        for name, value in (("account", account), ("state", state), ("kind", kind), ("limit", limit), ("after", after))
        if value is not None
    }
    for name, time in (("created_from", created_from), ("created_before", created_before)):
        if time is not None:
            params[name] = time.isoformat()
    if metadata:
        params["metadata"] = [f"{name}={value}" for name, value in metadata.items()]
    return _read(JobsPage, (yield from _asked(Send("GET", "/v1/jobs", params=params))).document)


@dataclass(slots=True)
class Following:
    """A job's events as they come, for whoever drives it: where to go on when cut off, and when it is over."""

    job_id: UUID | str
    last: int | None = None
    over: bool = False
    _failed: int = 0

    @property
    def send(self) -> Send:
        """Asks for what comes behind the last one."""
        headers = {} if self.last is None else {"Last-Event-ID": str(self.last)}
        return Send("GET", f"/v1/jobs/{_in_path(self.job_id)}/events", headers=headers)

    def answered(self, reply: Reply) -> None:
        """What is no stream: there is nothing to come back for, or it raises what is wrong."""
        if reply.status != 204:
            raise _problem_of(reply)
        self.over = True

    def heard(self, event: str, data: str, number: str) -> Event:
        """An event of the stream. The last one is `ended`."""
        self._failed = 0
        try:
            document = json.loads(data)
        except ValueError:
            raise _not_understood("event") from None
        if not isinstance(document, dict):
            raise _not_understood("event")
        numbered = event != "progress" and number.isascii() and number.isdigit()
        if numbered:
            self.last = int(number)
        self.over = event == "ended"
        return _read(Event, document | {"event": event, "id": self.last if numbered else None})

    def rest(self, error: FermataError | None) -> float:
        """Seconds until it is asked for again, once it was cut off. Raises where that was so too often in a row."""
        if error is not None and not isinstance(error, _ASKED_AGAIN):
            raise error
        self._failed += 1
        if self._failed >= TRIES:
            raise error or Unreachable("the stream ends before the job does, again and again")
        return _pause_after(self._failed, error or Unreachable())


def quote(
    request: Request | Mapping[str, Any],
    *,
    kind: str | None = None,
    account: str | None = None,
    inputs: Mapping[str, UUID | str] | None = None,
) -> Steps[Quote]:
    """What a job would cost at most. Stores nothing. Inputs, and a plan's prices, need the account."""
    name, params = asked(request, kind)
    body: dict[str, Any] = {"kind": name, "params": params}
    if account is not None:
        body["account"] = account
    if inputs:
        body["inputs"] = {input_name: str(artifact) for input_name, artifact in inputs.items()}
    reply = yield from _asked(Send("POST", "/v1/quotes", _json(body)))
    return _read(Quote, reply.document)


def balance(account: str) -> Steps[Balance]:
    """What an account has. Raises `NotFound`."""
    reply = yield from _asked(Send("GET", f"/v1/accounts/{_in_path(account)}/balance"))
    return _read(Balance, reply.document)


def upload(account: str, path: Path | str, name: str | None = None) -> Steps[Artifact]:
    """Put an audio file in; its `artifact` id is what requests name. The same file again is the same artifact."""
    path = Path(path)
    params = {"account": account, "name": _shown_name(name or path.name)}
    reply = yield from _asked(Send("POST", "/v1/artifacts", params=params, file=path))
    document = reply.document
    return _read(Artifact, document.get("artifact") if isinstance(document, dict) else document)


def artifact(artifact_id: UUID | str) -> Steps[Artifact]:
    """What was measured of a file. Raises `NotFound`."""
    reply = yield from _asked(Send("GET", f"/v1/artifacts/{_in_path(artifact_id)}/facts"))
    return _read(Artifact, reply.document)


def download(artifact_id: UUID | str, path: Path | str) -> Steps[Path]:
    """Fetch a file to `path`, which it gets only once it is whole and its checksum fits. Raises `Damaged`."""
    path = Path(path)
    facts = yield from artifact(artifact_id)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        for _ in range(3):
            reply = yield from _asked(Send("GET", f"/v1/artifacts/{_in_path(artifact_id)}", into=part))
            if reply.sha256 == facts.sha256:
                part.replace(path)
                return path
        raise Damaged(f"artifact {artifact_id} did not arrive as it was stored")
    finally:
        part.unlink(missing_ok=True)


def _look(job_id: UUID | str, held: int = 0, seconds: float | None = None) -> Send:
    """A look at a job. `held`: answered once it has ended, or after so many seconds."""
    return Send("GET", f"/v1/jobs/{_in_path(job_id)}", params={"wait": str(held)} if held else {}, seconds=seconds)


#: What an answer, or none, may say of the moment only: the same is asked for again.
_ASKED_AGAIN = (Unreachable, Unavailable, TooManyRequests)


def _asked(send: Send) -> Steps[Reply]:
    """Send it until an answer says yes or no."""
    reply, _ = yield from _tried(send)
    return reply


def _tried(send: Send) -> Steps[tuple[Reply, bool]]:
    """Send it until an answer says yes or no, and whether an earlier try had none. Every call may be sent again.

    "Nothing was done" is said of the last try only: after one in doubt it is no answer to the call.
    """
    in_doubt = False
    for tried in range(1, TRIES + 1):
        try:
            return (yield from _once(send)), in_doubt
        except _ASKED_AGAIN as error:
            in_doubt = in_doubt or isinstance(error, Unreachable)
            if tried == TRIES and in_doubt:
                raise _doubtful(error) from error
            if tried == TRIES:
                raise
            yield Pause(_pause_after(tried, error))
    raise AssertionError("the last try returns or raises")


def _once(send: Send) -> Steps[Reply]:
    """Send it once. Raises what a bad answer says."""
    reply = yield send
    assert reply is not None
    if 200 <= reply.status < 300:
        return reply
    raise _problem_of(reply)


def _problem_of(reply: Reply) -> Problem:
    document = _problem_in(reply)
    if 300 <= reply.status < 400:
        to = reply.headers.get("location", "nowhere")
        detail = f"answered {reply.status}, which leads to {to}: no redirect is followed, it would carry the key along"
        document = {"status": reply.status, "code": "redirected", "detail": detail}
    return problem_of(reply.status, document, _retry_after(reply))


def _doubtful(error: FermataError | Submitted) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    return Unreachable(f"an earlier try had no answer; the last one: {error}")


def _read(model: type[Read], document: object) -> Read:
    try:
        return model.model_validate(document)
    except ValidationError:
        raise _not_understood(model.__name__) from None


def _not_understood(what: str) -> Broken:
    return Broken(200, {"code": "not_understood", "detail": f"the answer is no {what}"})


def _json(document: Mapping[str, Any]) -> bytes:
    """As it travels. Raises `Invalid` with the field that can't."""
    try:
        return _encoded(document)
    except (TypeError, ValueError, RecursionError):
        for name, value in document.items():
            try:
                _encoded(value)
            except (TypeError, ValueError, RecursionError):
                raise invalid(name, "must be JSON") from None
        raise


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _shown_name(name: str) -> str:
    """What people call a file, as the server takes it: on one line, not too long, also where its name is no UTF-8."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)[:_NAME_LENGTH_MAX]


def _pause_after(tried: int, error: FermataError) -> float:
    wait_seconds = min(_WAIT_SECONDS * 2.0**tried, _WAIT_SECONDS_MAX) * (0.5 + random())  # noqa: S311  spreads tries
    told = error.retry_after if isinstance(error, Problem) else None
    return max(wait_seconds, min(told or 0.0, 60.0))


def _problem_in(reply: Reply) -> Mapping[str, Any]:
    document = reply.document
    return document if isinstance(document, dict) else {}


def _retry_after(reply: Reply) -> float | None:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _of_batch(result: object) -> Submitted | FermataError:
    match result:
        case {"problem": {"status": int(status)} as problem}:
            return problem_of(status, problem)
        case {"job": dict(job)}:
            return _read(Submitted, job)
    raise _not_understood("result")


def _key(key: object) -> Mapping[str, str]:
    """As a header, whose bytes mean the same to everybody in ASCII only."""
    if not (isinstance(key, str) and key.isascii() and key.isprintable() and 1 <= len(key) <= _KEY_LENGTH_MAX):
        raise invalid("key", f"must be 1 to {_KEY_LENGTH_MAX} printable ASCII characters")
    return {"Idempotency-Key": key}


def _key_of(items: Sequence[_Item]) -> Mapping[str, str]:
    """The same jobs again are the same batch."""
    return _key(hashlib.sha256("\n".join(str(item.key) for item in items).encode()).hexdigest())


def _in_path(part: UUID | str) -> str:
    return quoted(str(part), safe="")
