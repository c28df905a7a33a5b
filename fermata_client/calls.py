"""Every call, written once and without I/O: a generator yields what to do and is told what came of it.

Whoever drives it (`client.py`) sends and sleeps, blocking or not. Each call that changes something carries an
idempotency key that stays the same over all its tries, so an answer that was lost is asked for again, not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import random
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import quote as quoted
from uuid import UUID, uuid4

from pydantic import ValidationError

from fermata_client.answers import Answer, Artifact, Balance, Cancelled, Job, Quote, Submitted
from fermata_client.errors import (
    Broken,
    Conflict,
    Damaged,
    FermataError,
    Problem,
    TimedOut,
    TooManyRequests,
    Unavailable,
    Unreachable,
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
#: Jobs in one request; more travel in several.
BATCH_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. `file` goes along as a multipart body; a good answer's body goes `into` a file, if given."""

    method: str
    path: str
    body: Any = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    into: Path | None = None


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
    on_insufficient: str = "refuse"
    max_credits: int | None = None
    run_at: datetime | None = None
    ends_by: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it is sent. What stands at its default is left out: then older servers take it too."""
        kind, params = asked(self.request, self.kind)
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


def asked(request: Request | Mapping[str, Any], kind: str | None) -> tuple[str, dict[str, Any]]:
    """The kind and the fields of a request: a typed one knows its kind."""
    if isinstance(request, Request):
        return kind or str(getattr(request, "kind")), request.model_dump(mode="json", exclude_unset=True)  # noqa: B009
    if kind is None:
        raise TypeError("a request that is a plain mapping needs its kind")
    return kind, dict(request)


def submit(job: JobRequest) -> Steps[Submitted]:
    """Ask for a job. Once this returns it is stored. Raises `InsufficientCredits`, `Refused`, `Unreachable`."""
    reply = yield from _asked(Send("POST", "/v1/jobs", job.document(), headers=_key(job.key)))
    return _read(Submitted, reply.document)


def submit_many(jobs: Iterable[JobRequest]) -> Steps[list[Submitted | FermataError]]:
    """Ask for many jobs; one answer each, in their order. A bad one harms no other."""
    waiting, answers = list(jobs), []
    while waiting:
        batch, waiting = waiting[:BATCH_MAX], waiting[BATCH_MAX:]
        body = {"jobs": [{**job.document(), "key": job.key} for job in batch]}
        reply = yield from _asked(Send("POST", "/v1/jobs/batch", body, headers=_key(_key_of_all(batch))))
        answers += [_of_batch(result) for result in reply.document["results"]]
    return answers


def job(job_id: UUID | str) -> Steps[Job]:
    """A job as it stands. Raises `NotFound`."""
    return (yield from _looked(job_id, 0))


def wait(job_id: UUID | str, timeout: float | None = None) -> Steps[Job]:
    """Look until a job has ended; returns how. Raises `TimedOut` after `timeout` seconds: the job goes on."""
    ends_at = None if timeout is None else monotonic() + timeout
    pause = _LOOK_SECONDS
    while True:
        started = monotonic()
        left = _LONG_LOOK_SECONDS if ends_at is None else max(0, min(_LONG_LOOK_SECONDS, int(ends_at - started)))
        found = yield from _looked(job_id, left)
        if found.ended:
            return found
        if ends_at is not None and monotonic() + pause > ends_at:
            raise TimedOut(f"job {job_id} is {found.state} after {timeout:g} s")
        if monotonic() - started < left:  # it did not wait for us
            yield Pause(pause)
            pause = min(pause * 1.3, _LOOK_SECONDS_MAX)


def cancel(job_id: UUID | str, reason: str = "cancelled by request") -> Steps[Cancelled]:
    """End a queued or waiting job, or ask a running one to stop. Raises `Conflict` if it had ended otherwise."""
    send = Send("POST", f"/v1/jobs/{_in_path(job_id)}/cancel", {"reason": reason})
    try:
        reply = yield from _asked(send)
    except Conflict as error:
        found = yield from job(job_id)
        if error.code != "already_ended" or found.state != "cancelled":
            raise
        # An earlier try of this very call may have done it.
        return Cancelled(id=found.id, account=found.account, state=found.state, cancel_asked=False)
    return _read(Cancelled, reply.document)


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
    reply = yield from _asked(Send("POST", "/v1/quotes", body))
    return _read(Quote, reply.document)


def balance(account: str) -> Steps[Balance]:
    """What an account has. Raises `NotFound`."""
    reply = yield from _asked(Send("GET", f"/v1/accounts/{_in_path(account)}/balance"))
    return _read(Balance, reply.document)


def upload(account: str, path: Path | str, name: str | None = None) -> Steps[Artifact]:
    """Put an audio file in; its `artifact` id is what requests name. The same file again is the same artifact."""
    path = Path(path)
    params = {"account": account, "name": name or path.name}
    reply = yield from _asked(Send("POST", "/v1/artifacts", params=params, file=path))
    return _read(Artifact, reply.document.get("artifact"))


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


def _looked(job_id: UUID | str, wait_seconds: int) -> Steps[Job]:
    """A job as it stands, or once it has ended, within so many seconds."""
    params = {"wait": str(wait_seconds)} if wait_seconds else {}
    reply = yield from _asked(Send("GET", f"/v1/jobs/{_in_path(job_id)}", params=params))
    return _read(Job, reply.document)


def _asked(send: Send) -> Steps[Reply]:
    """Send it until an answer says yes or no. Every call of ours may be sent again.

    "Nothing was done" is said of the last try only: after one in doubt it is no answer to the call.
    """
    in_doubt = False
    for tried in range(1, TRIES + 1):
        try:
            reply = yield send
            assert reply is not None
            if 200 <= reply.status < 300:
                return reply
            raise problem_of(reply.status, _problem_in(reply), _retry_after(reply))
        except (Unreachable, Unavailable, TooManyRequests) as error:
            in_doubt = in_doubt or isinstance(error, Unreachable)
            if tried == TRIES and in_doubt and not isinstance(error, Unreachable):
                raise Unreachable(f"an earlier try had no answer; the last one: {error}") from error
            if tried == TRIES:
                raise
            yield Pause(_pause_after(tried, error))
    raise AssertionError("the last try returns or raises")


def _read(model: type[Read], document: object) -> Read:
    try:
        return model.model_validate(document)
    except ValidationError:
        raise Broken(200, {"code": "not_understood", "detail": f"the answer is no {model.__name__}"}) from None


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


def _of_batch(result: Mapping[str, Any]) -> Submitted | FermataError:
    if result.get("job") is not None:
        return _read(Submitted, result["job"])
    problem = result["problem"]
    return problem_of(int(problem["status"]), problem)


def _key(key: str) -> Mapping[str, str]:
    return {"Idempotency-Key": key}


def _key_of_all(jobs: Sequence[JobRequest]) -> str:
    """The same jobs again are the same batch."""
    return hashlib.sha256("\n".join(job.key for job in jobs).encode()).hexdigest()


def _in_path(part: UUID | str) -> str:
    return quoted(str(part), safe="")
